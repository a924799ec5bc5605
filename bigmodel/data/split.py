"""Which split a row belongs to, by the md5 of its content; the rows of all sources to the files of their split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigmodel.data import arrow
from bigmodel.experiment import SplitConfig

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


class Split:
    """A test fraction of 1/5 takes the rows whose md5 % 5 == 0; validation is cut the same way from md5 // 5.

    A row's split follows from its content alone: duplicates stay together, and rows that are added move no other.
    """

    def __init__(self, config: SplitConfig, declared: Sequence[str] = ()) -> None:
        """`declared` splits have files of their own and take none of the training rows."""
        test = Fraction(0) if "test" in declared else Fraction(str(config.test))
        valid = Fraction(0) if "valid" in declared else Fraction(str(config.valid)) / (1 - test)
        self._test, self._tests = test.denominator, test.numerator
        self._valid, self._valids = valid.denominator, valid.numerator

    def place(self, md5: bytes) -> int:
        rest, number = divmod(int.from_bytes(md5, "big"), self._test)
        if number < self._tests:
            return TEST
        return VALID if rest % self._valid < self._valids else TRAIN


def distribute(cleaned: Sequence[tuple[str, Path]], folder: Path, config: SplitConfig) -> dict[str, Any]:
    """Rows of (split, cleaned file) to part files in `folder`. -> how many; duplicates, conflicting labels, rows of
    validation and test that training has too."""
    split = Split(config, [named for named, _ in cleaned])
    parts = [_Parts(folder, name) for name in SPLITS]
    seen: dict[bytes, int] = {}  # md5 -> number of the target << 3 | a bit for each split it stands in
    numbers: dict[str, int] = {}
    counts = {"rows": 0, "duplicates": 0, "conflicting_labels": 0, "also_in_training": 0}
    for named, path in cleaned:
        for batch in _batches(path):
            places = np.empty(batch.num_rows, np.int8)
            md5s, targets = batch.column(arrow.MD5).to_pylist(), batch.column(arrow.TARGET).to_pylist()
            for i, (md5, target) in enumerate(zip(md5s, targets, strict=True)):
                places[i] = at = split.place(md5) if named == "train" else SPLITS.index(named)
                number = numbers.setdefault(target, len(numbers))
                before = seen.get(md5)
                if before is not None:
                    counts["duplicates"] += 1
                    counts["conflicting_labels"] += before >> 3 != number
                    counts["also_in_training"] += at != TRAIN and before & 1
                seen[md5] = (number << 3 if before is None else before) | 1 << at
            counts["rows"] += batch.num_rows
            rows = pa.table(batch.drop_columns([arrow.MD5, arrow.TARGET]))
            for at, part in enumerate(parts):
                part.add(rows.filter(pa.array(places == at)))
    return counts | {"splits": {part.split: part.close() for part in parts}}


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if not path.exists():  # nothing was left of that file
        return
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
        yield from stream


class _Parts:
    """Rows of one split to part files of at most `arrow.PART_ROWS` rows; none is written for no rows."""

    def __init__(self, folder: Path, split: str) -> None:
        self.split = split
        self._folder, self._held = folder, list[pa.Table]()
        self._num_held = self._num_parts = self._num_rows = 0

    def add(self, rows: pa.Table) -> None:
        self._held.append(rows)
        self._num_held += rows.num_rows
        self._num_rows += rows.num_rows
        while self._num_held >= arrow.PART_ROWS:
            self._write(arrow.PART_ROWS)

    def close(self) -> int:
        if self._num_held:
            self._write(self._num_held)
        return self._num_rows

    def _write(self, size: int) -> None:
        table = pa.concat_tables(self._held)
        arrow.write(self._folder / f"{self.split}-{self._num_parts:05d}.arrow", table[:size])
        self._held, self._num_held, self._num_parts = [table[size:]], self._num_held - size, self._num_parts + 1
