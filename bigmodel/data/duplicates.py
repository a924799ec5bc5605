"""Rows that stand several times: written to disk by their md5, counted a part at a time, however many there are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

PARTS = 64
RECORD = np.dtype([("high", "u8"), ("low", "u8"), ("target", "u8"), ("place", "i1")])


class Duplicates:
    """Told of every row, it counts in the end. What it is told lies in `folder` meanwhile, 25 bytes a row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Duplicates:
        self._folder.mkdir()
        self._files: list[IO[bytes]] = [open(self._folder / str(part), "w+b") for part in range(PARTS)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self._folder)

    def add(self, md5s: NDArray[np.uint64], targets: NDArray[np.uint64], places: NDArray[np.int8]) -> None:
        """Rows in their order: md5 (N, 2), a number of the target (N,), the place of the split (N,), 0 for training."""
        records = np.empty(len(md5s), RECORD)
        records["high"], records["low"] = md5s.T
        records["target"], records["place"] = targets, places
        parts = (md5s[:, 1] % PARTS).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=PARTS))
        for file, own in zip(self._files, np.split(records[order], ends[:-1]), strict=True):
            file.write(own.tobytes())

    def count(self) -> dict[str, int]:
        """Rows beyond the first of their content; those whose target is not the first one's; those that are not for
        training while training has them too."""
        totals = {"duplicates": 0, "conflicting_labels": 0, "also_in_training": 0}
        for file in self._files:
            file.seek(0)
            for name, number in _count(np.frombuffer(file.read(), RECORD)).items():
                totals[name] += number
        return totals


def _count(records: NDArray[Any]) -> dict[str, int]:
    rows = records[np.lexsort((records["low"], records["high"]))]  # stable: the first of a content stays the first
    first = np.ones(len(rows), bool)
    first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    starts, group = np.flatnonzero(first), np.cumsum(first) - 1
    trained = np.maximum.reduceat(rows["place"] == 0, starts) if len(rows) else first
    return {
        "duplicates": int((~first).sum()),
        "conflicting_labels": int((rows["target"] != rows["target"][starts][group]).sum()),
        "also_in_training": int((~first & (rows["place"] != 0) & trained[group]).sum()),
    }
