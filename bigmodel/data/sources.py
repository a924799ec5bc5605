"""Rows of a file, whatever its format: every one is a Record, or a Bad that says why not."""

from __future__ import annotations

import zlib
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from typing import Any

from bigmodel.data import delimited, encoding, files, images
from bigmodel.data.aligned import open_aligned
from bigmodel.data.encoding import NO_TEXT, UNDECODABLE, Lines
from bigmodel.data.jsonlines import read_json
from bigmodel.data.record import Bad, ReadOptions, Record, excerpt
from bigmodel.errors import DataError, first_line
from bigmodel.tasks.base import BLOCK

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "text",
}  # fmt: skip
PARQUET_ROWS, PARQUET_BYTES = 8192, 16 << 20
"""Rows of Parquet that are read at once; fewer where they have more bytes, by the average of what is stored."""
PIECE = 64 << 20
"""Bytes of row groups, unpacked, that are one piece of work."""
PEEKED = 1000
"""Rows of JSON Lines that are looked at for the names there are."""
BLOCK_SIZE = 4096
"""Characters from which a block of text ends, at its next line end."""
LONGEST_BLOCK = 4 * BLOCK_SIZE
"""Characters of a block: a line that is longer is cut."""


def open_rows(
    source: str, options: ReadOptions, wanted: Collection[str] | None = None, groups: range | None = None
) -> tuple[list[str], Iterator[Record | Bad]]:
    """The names that a row of this file can be asked for, and the rows in order. DataError where the file as a whole
    cannot be read. Of a format that is stored by columns only the `wanted` ones are read, and of one that is stored in
    row groups only those `groups`."""
    if files.alternatives(source):
        return open_aligned(source, options)
    kind = format_of(source, options)
    in_blocks = wanted is not None and BLOCK in wanted
    if in_blocks and kind == "csv" and options.format == "auto" and files.suffix(source) not in FORMATS:
        kind = "text"
    if kind == "parquet":
        return _parquet(source, wanted, groups)
    if kind == "images":
        return ["image", "label"], images.read_images(source)
    blocks = _lines(source, options, of_rows=kind != "text" or not in_blocks)
    if kind == "jsonl":
        return _named(read_json(blocks, source), source)
    if kind == "text" and in_blocks:
        name = options.columns[0] if options.columns else "text"
        return [name], text_blocks(blocks, source, name, options.separator)
    if kind == "text":
        return list(options.columns or ["text"]), _text(blocks, source, options)
    delimiter = "\t" if kind == "tsv" and options.delimiter == "auto" else options.delimiter
    return delimited.open_table(blocks, source, delimiter, options.columns)


def _named(rows: Iterator[Record | Bad], source: str) -> tuple[list[str], Iterator[Record | Bad]]:
    """The names in the first rows, some of which may leave names out."""
    first = list(islice(rows, PEEKED))
    names = list(dict.fromkeys(name for row in first if isinstance(row, Record) for name in row.values))
    if not names:
        raise DataError(f"{source}: {_why_nameless(first)}. Another format can be named with data.format")
    return names, chain(first, rows)


def _why_nameless(first: list[Record | Bad]) -> str:
    bad = next((row for row in first if isinstance(row, Bad)), None)
    return f"no row can be read: line {bad.line}: {bad.reason}" if bad else "no row has a name and a value"


def format_of(source: str, options: ReadOptions) -> str:
    """As asked, by the extension, or by the first bytes."""
    if options.format != "auto":
        return options.format
    if is_of_images(source, options):
        return "images"
    if known := FORMATS.get(files.suffix(source)):
        return "csv" if known == "text" and options.columns and options.delimiter == "auto" else known
    start = next(files.blocks(source), b"")[:4096].removeprefix(BOM_UTF8).lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"{", b"[")):
        return "jsonl"
    return "text" if options.columns and len(options.delimiter) > 1 or options.delimiter == " " else "csv"


def is_of_images(source: str, options: ReadOptions) -> bool:
    return options.format == "images" or (options.format == "auto" and images.holds_images(source))


def _lines(source: str, options: ReadOptions, of_rows: bool) -> Iterator[Lines]:
    name = options.encoding
    name = encoding.detect(files.blocks(source, told=False), source) if name == "auto" else encoding.check(name)
    return encoding.decode(files.blocks(source), name, source, of_rows)


def _text(blocks: Iterator[Lines], source: str, options: ReadOptions) -> Iterator[Record | Bad]:
    """A row a line. With a delimiter and columns the line is cut at its first delimiters: `1 a good film`."""
    names, delimiter = list(options.columns or ["text"]), options.delimiter
    if len(names) > 1 and delimiter == "auto":
        raise DataError(f"{source}: text lines of {len(names)} columns need data.delimiter, such as a blank or a tab")
    number = 0
    for block in blocks:
        for line in block.lines:
            number += 1
            line = line.rstrip("\r\n")
            fields = line.split(delimiter, len(names) - 1) if len(names) > 1 else [line]
            if UNDECODABLE.search(line):
                yield Bad(source, number, None, NO_TEXT, excerpt(line))
            elif len(fields) < len(names) and line:
                reason = f"line has {len(fields)} of the {len(names)} fields between {delimiter!r}"
                yield Bad(source, number, None, reason, excerpt(line))
            elif line:
                yield Record(source, number, dict(zip(names, fields, strict=True)))
    if not number:
        raise DataError(f"{source}: is empty")


def text_blocks(blocks: Iterator[Lines], source: str, name: str, separator: str | None) -> Iterator[Record | Bad]:
    """A row a block of consecutive lines, with their ends: the rows of a document together are its text.

    A document ends where the file does, and at lines that are `separator` and nothing else, which belong to no block.
    A line that is no text is refused; what follows it continues nothing.
    """
    number = zlib.crc32(source.encode()) % 2**24 << 36  # so that no block of another file seems to continue this one
    held, begins = "", True
    start = line = 1
    empty = True
    for part, is_text, is_end in _parts_of_lines(blocks, separator):
        empty = False
        if held and (is_end or not is_text or len(held) >= BLOCK_SIZE or len(held) + len(part) > LONGEST_BLOCK):
            yield Record(source, start, {name: held, BLOCK: number << 2 | begins | is_end << 1})
            number, held, begins = number + 1 + (is_end or not is_text), "", is_end
        elif is_end:
            begins = True
        if not is_text:
            yield Bad(source, line, None, NO_TEXT, excerpt(part))
            number += 1
        elif not is_end:
            start = start if held else line
            held += part
        line += part.endswith(("\n", "\r"))
    if held:
        yield Record(source, start, {name: held, BLOCK: number << 2 | begins | 2})
    if empty:
        raise DataError(f"{source}: is empty")


def _parts_of_lines(blocks: Iterator[Lines], separator: str | None) -> Iterator[tuple[str, bool, bool]]:
    """Lines, long ones in parts -> (part, whether it is text, whether it is the line between two documents). One
    that is no text is whole, unless it was cut before."""
    goes_on = False
    for block in blocks:
        for i, line in enumerate(block.lines):
            is_cut = (goes_on and i == 0) or (block.unended and i == len(block.lines) - 1)
            if separator is not None and not is_cut and line.rstrip("\r\n") == separator:
                yield line, True, True
                continue
            whole = not is_cut and block.damaged and bool(UNDECODABLE.search(line))
            size = len(line) if whole else LONGEST_BLOCK
            for at in range(0, len(line), size):
                part = line[at : at + size]
                yield part, not (block.damaged and UNDECODABLE.search(part)), False
        goes_on = block.unended


def pieces(source: str, options: ReadOptions) -> list[range | None]:
    """How a file can be cut to be read in several places: row groups of Parquet, of about `PIECE` bytes; else not."""
    if files.alternatives(source) or format_of(source, options) != "parquet":
        return [None]
    with _parquet_file(source) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    starts, total = [0], 0
    for i, size in enumerate(sizes):
        if total >= PIECE:
            starts.append(i)
            total = 0
        total += size
    return [range(start, end) for start, end in pairwise([*starts, len(sizes)])]


def _parquet(
    source: str, wanted: Collection[str] | None, groups: range | None
) -> tuple[list[str], Iterator[Record | Bad]]:
    with _parquet_file(source) as file:
        names: list[str] = file.schema_arrow.names
    return names, _parquet_rows(source, [name for name in names if wanted is None or name in wanted], groups)


def _parquet_rows(source: str, names: list[str], groups: range | None) -> Iterator[Record | Bad]:
    """The line of a row is its number."""
    with _parquet_file(source) as file:
        chosen = range(file.num_row_groups) if groups is None else groups
        number = sum(file.metadata.row_group(i).num_rows for i in range(chosen.start))
        for batch in file.iter_batches(_at_once(file, names, chosen), row_groups=list(chosen), columns=names):
            for values in _values(batch):
                number += 1
                if values is None:
                    yield Bad(source, number, None, "bytes that are no text in UTF-8, in a column of text", "")
                else:
                    yield Record(source, number, values)


def _at_once(file: Any, names: Collection[str], groups: range) -> int:
    every = [file.metadata.row_group(i) for i in groups]
    columns = [group.column(i) for group in every for i in range(group.num_columns)]
    num_bytes: int = sum(each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] in names)
    num_rows: int = sum(group.num_rows for group in every)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES * num_rows // max(1, num_bytes)))


def holds_bytes(source: str, options: ReadOptions, column: str) -> bool:
    """Whether the file is Parquet, and this column of it holds something else than text."""
    if files.alternatives(source) or format_of(source, options) != "parquet":
        return False
    import pyarrow as pa

    with _parquet_file(source) as file:
        kind = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)).get(column, pa.string())
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
        else:
            for i in range(batch.num_rows):
                yield from _values(batch.slice(i, 1))


@contextmanager
def _parquet_file(source: str) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    with files.seekable(source) as stream:
        try:
            yield parquet.ParquetFile(stream, buffer_size=files.BLOCK, pre_buffer=False)  # else columns are read whole
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{source}: not a whole Parquet file: {first_line(error)}") from None
