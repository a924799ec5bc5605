"""Records: the cells of a table's rows as Python has them, some rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel.tasks.base import Row

AT_ONCE = 2048  # rows whose cells are held


@dataclass(frozen=True)
class Records(Sequence[Mapping[str, Any]]):
    """The cells of rows, read anew each time: as Python has them they take ten times as much memory."""

    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for at in range(0, len(self), AT_ONCE):
            yield from self[at : at + AT_ONCE]

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return json.loads(f"[{','.join(row['features'] for row in self.rows[i])}]")
        return json.loads(self.rows[i]["features"])
