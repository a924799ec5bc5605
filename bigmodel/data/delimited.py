"""Rows of CSV and TSV (RFC 4180 and what is met in its place)."""

import csv
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bigmodel.data.encoding import UNDECODABLE, Lines
from bigmodel.data.record import Bad, Record, excerpt
from bigmodel.errors import DataError

CANDIDATES = (",", "\t", ";", "|")
SAMPLE_LINES = 500
LONGEST_FIELD = 16 << 20
"""Characters: a field that is longer counts as a quote that is never closed."""


@dataclass(frozen=True, slots=True)
class Table:
    """How the rows of one file are cut, and what their fields are called."""

    source: str
    delimiter: str
    names: list[str]
    skip_space: bool = False
    """Quotes stand after a delimiter and a blank: `1, "a, b"`."""

    def fields(self, lines: Iterable[str], strict: bool = True) -> Any:
        """The csv module's reader of these lines."""
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.skip_space, strict=strict)

    def row(self, line: int, fields: list[str], raw: str, num_lines: int = 1) -> Record | Bad:
        if len(fields) == len(self.names):
            return Record(self.source, line, dict(zip(self.names, fields, strict=True)))
        span = f" (lines {line} to {line + num_lines - 1})" if num_lines > 1 else ""
        plural = "" if len(fields) == 1 else "s"
        return self.bad(line, f"row has {len(fields)} field{plural}, header has {len(self.names)}{span}", raw)

    def bad(self, line: int, reason: str, raw: str) -> Bad:
        return Bad(self.source, line, None, reason, excerpt(raw))


def read_table(
    blocks: Iterator[Lines], source: str, delimiter: str, columns: Sequence[str] | None
) -> Iterator[Record | Bad]:
    """The rows of a file.  `delimiter` may be "auto"; `columns` are the names where the file has no header."""
    table, num_header, blocks = open_table(blocks, source, delimiter, columns)
    first = num_header + 1
    held: list[str] = []  # the lines of a row whose quote is still open
    held_damaged = False
    for block in blocks:
        if not (held or block.quoted or block.damaged):
            yield from _plain_rows(table, block.lines, first)
            first += len(block.lines)
            continue
        lines = held + block.lines
        damaged = held_damaged or block.damaged
        used = yield from _rows(table, lines, first, damaged, last=False)
        held, held_damaged, first = lines[used:], damaged, first + used
    yield from _rows(table, held, first, held_damaged, last=True)


def open_table(
    blocks: Iterator[Lines], source: str, delimiter: str, columns: Sequence[str] | None
) -> tuple[Table, int, Iterator[Lines]]:
    """How the file is cut; how many lines its header took; its lines after the header."""
    # The limit belongs to the whole process, so it is only ever raised: whoever set it higher keeps it.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    head = next(blocks, None)
    while head is not None and not any(line.strip("\r\n") for line in head.lines[:SAMPLE_LINES]):
        more = next(blocks, None)  # blank lines only, so far
        head = more and Lines(head.lines + more.lines, head.damaged or more.damaged, head.quoted or more.quoted)
    if head is None:
        raise DataError(f"{source}: is empty")
    sample = head.lines[:SAMPLE_LINES]
    table = Table(source, _delimiter(source, delimiter, sample, columns), list(columns or ()))
    spaced, tight = f'{table.delimiter} "', f'{table.delimiter}"'
    if any(spaced in line for line in sample) and not any(tight in line for line in sample):
        table = replace(table, skip_space=True)
    if columns is not None:
        return table, 0, chain([head], blocks)
    names, num_lines = _header(table, head.lines)
    rest = Lines(head.lines[num_lines:], head.damaged, head.quoted)
    return replace(table, names=names), num_lines, chain([rest], blocks)


def _plain_rows(table: Table, lines: list[str], first: int) -> Iterator[Record | Bad]:
    """Rows of lines without quotes or damage: each line is a row.  This is where the time goes."""
    source, names, num_names = table.source, table.names, len(table.names)
    for i, fields in _numbered(table, lines):
        if len(fields) == num_names:
            yield Record(source, first + i, dict(zip(names, fields, strict=True)))
        elif fields:
            yield table.row(first + i, fields, lines[i])


def _numbered(table: Table, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from enumerate(table.fields(lines))
    except csv.Error as error:  # another part of the process lowered the limit
        raise DataError(f"{table.source}: {error}") from error


def _rows(table: Table, lines: list[str], first: int, damaged: bool, last: bool) -> Generator[Record | Bad, None, int]:
    """Rows that may span lines; returns how many lines were used: not a row that is still open, unless this is the last."""
    begin = 0
    while begin < len(lines):
        reader = table.fields(map(lines.__getitem__, range(begin, len(lines))))
        start = begin
        try:
            for fields in reader:
                end = start + reader.line_num
                if end - begin > 1 and _each_is_a_row(table, lines[begin:end]):
                    break
                if fields:
                    yield _checked(table, first + begin, fields, lines[begin:end], damaged)
                begin = end
            else:
                return begin
            fault = "a quote runs over lines that are rows by themselves"
        except csv.Error as error:
            end, fault = start + reader.line_num, str(error)
        open_at_end = "unexpected end" in fault
        if open_at_end and not last and sum(map(len, lines[begin:])) < LONGEST_FIELD:
            return begin
        row, used = _repaired(table, lines[begin:end], first + begin, fault, open_at_end)
        yield row
        begin += used
    return begin


def _each_is_a_row(table: Table, lines: Sequence[str]) -> bool:
    """Whether lines that a quote holds together look like rows by themselves: then the quote is a stray one.

    Every line but the first has as many fields as the header, without a quote of its own.
    """
    rest = [line for line in lines[1:-1] if line.strip("\r\n")]
    return len(rest) >= 2 and all(
        '"' not in line and line.count(table.delimiter) + 1 == len(table.names) > 1 for line in rest
    )


def _checked(table: Table, line: int, fields: list[str], lines: Sequence[str], damaged: bool) -> Record | Bad:
    raw = "".join(lines)
    if damaged and UNDECODABLE.search(raw):
        return table.bad(line, "bytes that are no text in this encoding", raw)
    return table.row(line, fields, raw, len(lines))


def _repaired(table: Table, lines: Sequence[str], line: int, fault: str, open_at_end: bool) -> tuple[Record | Bad, int]:
    """The row at a broken quote is refused, and reading goes on with the next line: nothing else is swallowed."""
    reason = f"a quote opens here and is never closed ({len(lines)} lines)" if open_at_end else fault
    return table.bad(line, reason, lines[0]), 1


def _header(table: Table, lines: Sequence[str]) -> tuple[list[str], int]:
    """Names of the columns, and how many lines they took, blank ones before them included."""
    reader = table.fields(iter(lines))
    try:
        names = next(fields for fields in reader if any(field.strip() for field in fields))
    except (csv.Error, StopIteration) as error:
        raise DataError(f"{table.source}:1: the header cannot be read: {error}") from None
    names = [name.strip() for name in names]
    where = f"{table.source}:{reader.line_num}"
    if empty := [i for i, name in enumerate(names, 1) if not name]:
        names = [name or f"column_{i}" for i, name in enumerate(names, 1)]
        if len(empty) == len(names):
            raise DataError(f"{where}: the header has no names")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: the header names {', '.join(map(repr, twice))} more than once")
    return names, reader.line_num


def _delimiter(source: str, asked: str, sample: Sequence[str], columns: Sequence[str] | None) -> str:
    """As asked; else the candidate that cuts most of the sample into the same number of fields, at least two."""
    if asked != "auto":
        if len(asked) != 1:
            raise DataError(f"{source}: data.delimiter is {asked!r}; for CSV it is one character")
        return asked
    best, best_score = ",", 0.0
    for candidate in CANDIDATES:
        counts = _num_fields(sample, candidate)
        wanted = len(columns) if columns else (counts[0] if counts else 1)
        score = sum(count == wanted for count in counts) / len(counts) if counts and wanted > 1 else 0.0
        if score > best_score:
            best, best_score = candidate, score
    return best


def _num_fields(sample: Sequence[str], delimiter: str) -> list[int]:
    try:
        return [len(fields) for fields in csv.reader(sample, delimiter=delimiter) if fields]
    except csv.Error:
        return []
