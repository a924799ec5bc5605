"""The training rows that a table's columns are learnt from: all of them, or of many a choice, the same each time.

Where they are more than ROWS, or their JSON more than CHARS, rows are drawn by chance. What chance may miss is kept of
all rows, as values beside those drawn: the first VALUES different ones of each column, and the first number, date, word
or nothing in it. So few categories are known whole, a column whose value one row lacks may lack it, and one word among
millions of numbers is still asked about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bigmodel.models import table_processor as cells
from bigmodel.tasks.base import Row
from bigmodel.tasks.columns import DATED, is_date

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
    rng, firsts, drawn = np.random.default_rng(0), _Firsts(missing), list[Row]()
    for row in rows():
        firsts.see(json.loads(row["features"]))
        if rng.random() < share:
            drawn.append(row)
    note = f"columns are learnt from {len(drawn):,} of {num_rows:,} training rows, drawn by chance"
    return Chosen(drawn, firsts.values, note)


class _Firsts:
    """Told of every row, it knows the first values of each column and of each kind in it."""

    def __init__(self, missing: Sequence[str]) -> None:
        self.values: dict[str, list[Any]] = {}
        self._missing, self._known = missing, dict[str, set[Any]]()

    def see(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            self._add(name, cells.nothing(value, self._missing))
        if len(record) < len(self.values):
            for name in self.values.keys() - record.keys():
                self._add(name, None)

    def _add(self, name: str, value: Any) -> None:
        known = self._known.setdefault(name, set())
        key: Any = (type(value), value)
        if key in known:
            return
        if len(known) >= VALUES and (key := _kind(value)) in known:
            return
        known |= {key, _kind(value)}
        self.values.setdefault(name, []).append(value)


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value)
    if cells.is_number(value):
        return "number"
    return "date" if is_date(value) else "written" if isinstance(value, str) and DATED.match(value) else "word"
