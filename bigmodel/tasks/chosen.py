"""The training rows that a table's columns are learnt from: all of them, or of many a choice, the same each time.

Where they are more than ROWS, or their JSON more than CHARS, rows are drawn by chance. What chance may miss is kept of
all rows, as values beside those drawn: the first VALUES different ones of each column, and the first number, date, word
or nothing in it. So few categories are known whole, a column whose value one row lacks may lack it, and one word among
millions of numbers is still asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from bigmodel.models import table_processor as cells
from bigmodel.tasks.base import Row
from bigmodel.tasks.columns import DATED, is_date
from bigmodel.tasks.records import AT_ONCE, Records

ROWS = 200_000
CHARS = 64 << 20
VALUES = 256


class Chosen(NamedTuple):
    rows: Sequence[Row]
    beside: Mapping[str, list[Any]]
    """Column -> values of rows that may not be among them; empty where all rows are."""
    note: str


def choose(rows: Callable[[], Iterable[Row]], missing: Sequence[str]) -> Chosen:
    """`missing` are the words that stand for nothing."""
    num_rows = num_chars = 0
    for row in rows():
        num_rows += 1
        num_chars += len(row["features"])
    share = min(ROWS / max(num_rows, 1), CHARS / max(num_chars, 1))
    if share >= 1:
        return Chosen(list(rows()), {}, "")
    rng, firsts, drawn, rest = np.random.default_rng(0), _Firsts(missing), list[Row](), iter(rows())
    while some := list(islice(rest, AT_ONCE)):
        firsts.see(Records(some)[:])
        drawn += [row for row, chance in zip(some, rng.random(len(some)), strict=True) if chance < share]
    note = f"columns are learnt from {len(drawn):,} of {num_rows:,} training rows, drawn by chance"
    return Chosen(drawn, firsts.values, note)


class _Firsts:
    """Told of all rows, some at a time, it knows the first values of each column and of each kind in it."""

    def __init__(self, missing: Sequence[str]) -> None:
        self.values: dict[str, list[Any]] = {}
        self._missing, self._known, self._seen = frozenset(missing), dict[str, set[Any]](), 0

    def see(self, records: Sequence[Mapping[str, Any]]) -> None:
        for name in dict.fromkeys(chain(self.values, chain.from_iterable(records))):
            if name not in self.values:
                self.values[name], self._known[name] = [], set()
                if self._seen:  # rows that lack it
                    self._add(name, [None])
            self._add(name, [cells.nothing(record.get(name), self._missing) for record in records])
        self._seen += len(records)

    def _add(self, name: str, values: Sequence[Any]) -> None:
        known = self._known[name]
        only_numbers = {"number", "None"} <= known or ("number" in known and None not in values)
        if len(known) >= VALUES and only_numbers and cells.numbers(values) is not None:
            return
        for key in dict.fromkeys(zip(map(type, values), values, strict=True)):
            if key not in known and (len(known) < VALUES or _kind(key[1]) not in known):
                known |= {key, _kind(key[1])}
                self.values[name].append(key[1])


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value)
    if cells.is_number(value):
        return "number"
    return "date" if is_date(value) else "written" if isinstance(value, str) and DATED.match(value) else "word"
