"""Rows of CSV and TSV (RFC 4180 and what is met in its place)."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

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

    def fields(self, lines: Iterable[str], strict: bool = True) -> Iterator[list[str]]:
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


def _rows(
    table: Table, lines: list[str], first: int, damaged: bool, last: bool
) -> Generator[Record | Bad, None, int]:
    """Rows that may span lines; returns how many lines were used: not a row that is still open, unless this is the last."""
    begin = 0
    while begin < len(lines):
        reader = csv_reader = table.fields(map(lines.__getitem__, range(begin, len(lines))))
        start = begin
        try:
            for fields in reader:
                end = start + csv_reader.line_num
                if end - begin > 1 and _each_is_a_row(table, lines[begin:end]):
                    break
                if fields:
                    yield _checked(table, first + begin, fields, lines[begin:end], damaged)
                begin = end
            else:
                return begin
            fault = "a quote runs over lines that are rows by themselves"
        except csv.Error as error:
            end, fault = start + csv_reader.line_num, str(error)
        open_at_end = "unexpected end" in fault
        if open_at_end and not last and sum(map(len, lines[begin:])) < LONGEST_FIELD:
            return begin
        row, used = _repaired(table, lines[begin:end], first + begin, fault, open_at_end)
        yield row
        begin += used
    return begin
