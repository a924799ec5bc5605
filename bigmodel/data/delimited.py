"""Rows of CSV and TSV (RFC 4180 and what is met in its place)."""

import csv
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from bigmodel.data.encoding import NO_TEXT, UNDECODABLE, Lines
from bigmodel.data.record import Bad, Record, excerpt
from bigmodel.errors import DataError

STRAY = "a quote runs over lines that are rows by themselves"
CANDIDATES = (",", "\t", ";", "|")
SAMPLE_LINES = 500
ENOUGH = 100
"""Lines that look like rows by themselves before an open quote is given up."""
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

    def fields(self, lines: Iterable[str]) -> Any:
        """The csv module's reader of these lines."""
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.skip_space, strict=True)

    def cut(self, line: str) -> list[str]:
        """The fields of one line, quotes taken literally. Where there is one column, a comma is part of the text."""
        line = line.rstrip("\r\n")
        return [line] if len(self.names) == 1 else line.split(self.delimiter)

    def row(self, line: int, fields: list[str], raw: str, num_lines: int = 1) -> Record | Bad:
        if len(self.names) == 1 and num_lines == 1 and len(fields) > 1:
            fields = self.cut(raw)
        if len(fields) == len(self.names):
            return Record(self.source, line, dict(zip(self.names, fields, strict=True)))
        span = f" (lines {line} to {line + num_lines - 1})" if num_lines > 1 else ""
        plural = "" if len(fields) == 1 else "s"
        return self.bad(line, f"row has {len(fields)} field{plural}, header has {len(self.names)}{span}", raw)

    def bad(self, line: int, reason: str, raw: str) -> Bad:
        return Bad(self.source, line, None, reason, excerpt(raw))


def open_table(
    blocks: Iterator[Lines], source: str, delimiter: str, columns: Sequence[str] | None
) -> tuple[list[str], Iterator[Record | Bad]]:
    """Names of the columns, and the rows. `delimiter` may be "auto"; `columns` are the names if there is no header."""
    # The limit belongs to the whole process, so it is only ever raised: whoever set it higher keeps it.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    first, head = _without_blank_lines(blocks, source)
    sample = head.lines[:SAMPLE_LINES]
    table = Table(source, _delimiter(source, delimiter, sample, columns), list(columns or ()))
    spaced, tight = f'{table.delimiter} "', f'{table.delimiter}"'
    if any(spaced in line for line in sample) and not any(tight in line for line in sample):
        table = replace(table, skip_space=True)
    if columns is not None:
        _refuse_header(table, head.lines[0], first)
        return table.names, _all_rows(table, chain([head], blocks), first)
    names, num_header = _header(table, head, first)
    rest = Lines(head.lines[num_header:], head.damaged, head.quoted)
    return names, _all_rows(replace(table, names=names), chain([rest], blocks), first + num_header)


def _without_blank_lines(blocks: Iterator[Lines], source: str) -> tuple[int, Lines]:
    """The number of the first line with anything on it, and the block from there on."""
    first = 1
    for block in blocks:
        for i, line in enumerate(block.lines):
            if line.strip("\r\n"):
                return first + i, replace(block, lines=block.lines[i:])
        first += len(block.lines)
    raise DataError(f"{source}: is empty")


def _all_rows(table: Table, blocks: Iterator[Lines], first: int) -> Iterator[Record | Bad]:
    held: list[str] = []  # the lines of a row whose quote is still open
    held_damaged = False
    for block in blocks:
        lines, damaged = held + block.lines, held_damaged or block.damaged
        if held or block.quoted or block.damaged:
            used = yield from _rows(table, lines, first, damaged, last=False)
        else:
            used = yield from _plain_rows(table, lines, first)
        held, held_damaged, first = lines[used:], damaged and used < len(lines), first + used
    yield from _rows(table, held, first, held_damaged, last=True)


def _plain_rows(table: Table, lines: list[str], first: int) -> Generator[Record | Bad, None, int]:
    """Rows of lines without quotes or damage: each line is a row. This is where the time goes. -> lines used."""
    source, names, num_names = table.source, table.names, len(table.names)
    used = -1
    try:
        for used, fields in enumerate(table.fields(lines)):
            if len(fields) == num_names:
                yield Record(source, first + used, dict(zip(names, fields, strict=True)))
            elif fields:
                yield table.row(first + used, fields, lines[used])
    except csv.Error:
        return used + 1  # the next line has a field that is too long
    return len(lines)


def _rows(table: Table, lines: list[str], first: int, damaged: bool, last: bool) -> Generator[Record | Bad, None, int]:
    """Rows that may span lines. -> lines used; a row that is still open waits for more, unless this is the last."""
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
            fault = STRAY
        except csv.Error as error:
            end, fault = start + reader.line_num, str(error)
        if fault.startswith("unexpected end"):
            stray = len(lines) - begin > ENOUGH and _each_is_a_row(table, lines[begin : begin + ENOUGH])
            if not (last or stray) and sum(map(len, lines[begin:])) < LONGEST_FIELD:
                return begin
            fault = f"a quote opens here and is never closed ({end - begin} lines)"
        yield _repaired(table, lines[begin:end], first + begin, fault, damaged)
        begin += 1
    return begin


def _each_is_a_row(table: Table, lines: Sequence[str]) -> bool:
    """Whether lines that a quote holds together look like rows by themselves: then the quote is a stray one.

    Tabs are rare in prose, so it is enough that every line has as many fields as the header. Of other delimiters at
    least two lines between the first and the last must have, and no quote of their own.
    """
    if len(table.names) == 1:
        return False
    if table.delimiter == "\t":
        return all(len(table.cut(line)) == len(table.names) for line in lines)
    rest = [line for line in lines[1:-1] if line.strip("\r\n")]
    return len(rest) >= 2 and all('"' not in line and len(table.cut(line)) == len(table.names) for line in rest)


def _checked(table: Table, line: int, fields: list[str], lines: Sequence[str], damaged: bool) -> Record | Bad:
    raw = "".join(lines)
    if damaged and UNDECODABLE.search(raw):
        return table.bad(line, NO_TEXT, raw)
    return table.row(line, fields, raw, len(lines))


def _repaired(table: Table, lines: Sequence[str], line: int, fault: str, damaged: bool) -> Record | Bad:
    """The first of these lines, whose quote is broken; reading goes on with the next, so nothing else is swallowed.

    Cut without regard to quotes it may be a row after all: `"Jaws" again,1`. Lines of tabs are written so on purpose.
    Where a comma stands between the fields, a quote that runs on over the next lines is not explained so easily.
    """
    fields, in_line = table.cut(lines[0]), len(lines) == 1 and "expected after" in fault
    if len(fields) == len(table.names) and (in_line or table.delimiter == "\t" and "larger" not in fault):
        return _checked(table, line, fields, lines[:1], damaged)
    return table.bad(line, fault, lines[0])


def _header(table: Table, head: Lines, first: int) -> tuple[list[str], int]:
    """Names of the columns, and how many lines they took."""
    reader = table.fields(iter(head.lines))
    try:
        names = next(reader)
    except csv.Error as error:
        raise DataError(f"{table.source}:{first}: the header cannot be read: {error}") from None
    if head.damaged and UNDECODABLE.search("".join(names)):
        raise DataError(f"{table.source}:{first}: the header has {NO_TEXT}. Name another with data.encoding")
    return [name.strip() or f"column_{i}" for i, name in enumerate(names, 1)], reader.line_num


def _refuse_header(table: Table, line: str, number: int) -> None:
    """A header in a file that is said to have none would become a row of its own, and its label a class."""
    if [field.strip(' "') for field in table.cut(line)] == table.names:
        where = f"{table.source}:{number}"
        raise DataError(f"{where}: this line is a header. data.columns is for files without: leave it out")


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
