"""Rows of aligned files, as translations are published: `train.{de,en}.gz` is train.de.gz beside train.en.gz. The words
in the braces are the columns' names, and row i is line i of each file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from bigmodel.data import encoding, files
from bigmodel.data.encoding import NO_TEXT, UNDECODABLE
from bigmodel.data.record import Bad, ReadOptions, Record, excerpt
from bigmodel.errors import DataError


def open_aligned(source: str, options: ReadOptions) -> tuple[list[str], Iterator[Record | Bad]]:
    """The words in the braces, and the rows. DataError, once the shorter file ends, if their lines are not as many."""
    names = files.alternatives(source)
    if len(set(names)) < len(names):
        raise DataError(f"{source}: the same word stands twice in the braces. Name each file once")
    return names, _rows(source, names, options)


def _rows(source: str, names: list[str], options: ReadOptions) -> Iterator[Record | Bad]:
    parts = files.aligned(source)
    number = 0
    for number, texts in enumerate(zip_longest(*(_lines(part, options) for part in parts)), 1):
        if None in texts:
            raise DataError(
                f"{source}: the files are not aligned: {_counts(parts, options)}. Line i of each is one row"
            )
        row = dict(zip(names, texts, strict=True))
        broken = [name for name, text in row.items() if UNDECODABLE.search(text)]
        if broken:
            yield Bad(source, number, broken[0], NO_TEXT, excerpt(row[broken[0]]))
        else:
            yield Record(source, number, row)
    if not number:
        raise DataError(f"{source}: is empty")


def _lines(part: str, options: ReadOptions) -> Iterator[str]:
    name = options.encoding
    name = encoding.detect(files.blocks(part), part) if name == "auto" else encoding.check(name)
    for block in encoding.decode(files.blocks(part), name, part):
        for line in block.lines:
            yield line.rstrip("\r\n")


def _counts(parts: list[str], options: ReadOptions) -> str:
    return ", ".join(f"{part} has {sum(1 for _ in _lines(part, options)):,} lines" for part in parts)
