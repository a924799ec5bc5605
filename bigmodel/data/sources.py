"""Rows of a file, whatever its format: every one is a Record, or a Bad that says why not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from bigmodel.data import delimited, encoding, files
from bigmodel.data.encoding import UNDECODABLE, Lines
from bigmodel.data.jsonlines import read_json
from bigmodel.data.record import Bad, ReadOptions, Record, excerpt
from bigmodel.errors import DataError

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "text",
}  # fmt: skip
PARQUET_ROWS = 8192


def read(source: str, options: ReadOptions) -> Iterator[Record | Bad]:
    """The rows of a file in order. DataError where the file as a whole cannot be read."""
    kind = format_of(source, options)
    if kind == "parquet":
        yield from _parquet(source)
        return
    blocks = _lines(source, options)
    if kind == "jsonl":
        yield from read_json(blocks, source)
    elif kind == "text":
        yield from _text(blocks, source, options)
    else:
        yield from delimited.read_table(blocks, source, _delimiter(kind, options), options.columns)


def columns(source: str, options: ReadOptions) -> list[str]:
    """The names a row of this file can be asked for: the header's, or those of the first readable row."""
    kind = format_of(source, options)
    if kind in ("csv", "tsv") and options.columns is None:
        table, _, _ = delimited.open_table(_lines(source, options), source, _delimiter(kind, options), None)
        return table.names
    if kind == "text":
        return list(options.columns or ["text"])
    first = next((row for row in islice(read(source, options), 1000) if isinstance(row, Record)), None)
    if first is None:
        raise DataError(
            f"{source}: none of the first rows can be read as {kind}. Its format can be named with data.format"
        )
    return list(first.values)


def format_of(source: str, options: ReadOptions) -> str:
    """As asked, by the extension, or by the first bytes."""
    if options.format != "auto":
        return options.format
    if known := FORMATS.get(files.suffix(source)):
        return "csv" if known == "text" and options.columns and options.delimiter == "auto" else known
    start = next(files.blocks(source), b"")[:4096].lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"{", b"[")):
        return "jsonl"
    return "text" if options.columns and len(options.delimiter) > 1 or options.delimiter == " " else "csv"


def _delimiter(kind: str, options: ReadOptions) -> str:
    return "\t" if kind == "tsv" and options.delimiter == "auto" else options.delimiter


def _lines(source: str, options: ReadOptions) -> Iterator[Lines]:
    name = options.encoding
    name = encoding.detect(files.blocks(source), source) if name == "auto" else encoding.check(name)
    return encoding.decode(files.blocks(source), name, source)


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
                yield Bad(source, number, None, "bytes that are no text in this encoding", excerpt(line))
            elif len(fields) < len(names) and line:
                reason = f"line has {len(fields)} of the {len(names)} fields between {delimiter!r}"
                yield Bad(source, number, None, reason, excerpt(line))
            elif line:
                yield Record(source, number, dict(zip(names, fields, strict=True)))
    if not number:
        raise DataError(f"{source}: is empty")


def _parquet(source: str) -> Iterator[Record | Bad]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    with files.seekable(source) as stream:
        try:
            batches: Any = parquet.ParquetFile(stream).iter_batches(PARQUET_ROWS)
            for batch in batches:
                for values in batch.to_pylist():
                    number += 1
                    yield Record(source, number, values)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{source}: not a whole Parquet file: {str(error).splitlines()[0]}") from None
