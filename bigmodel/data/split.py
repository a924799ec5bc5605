"""Which split a row belongs to, by the md5 of its content; the rows of all sources to the files of their split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigmodel.data import arrow
from bigmodel.data.duplicates import Duplicates
from bigmodel.experiment import SplitConfig

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


class Split:
    """A test fraction of 1/5 takes the rows whose md5 % 5 == 0; validation is cut the same way from md5 // 5.

    A row's split follows from its content alone: duplicates stay together, and rows that are added move no other. By
    position the last rows are held out instead.
    """

    def __init__(self, config: SplitConfig, declared: Sequence[str] = ()) -> None:
        """`declared` splits have files of their own and take none of the training rows."""
        test = Fraction(0) if "test" in declared else Fraction(str(config.test))
        valid = Fraction(0) if "valid" in declared else Fraction(str(config.valid)) / (1 - test)
        self.by_position, self._held_out = config.by == "position", (float(valid * (1 - test) + test), float(test))
        self._test, self._tests = test.denominator, test.numerator
        self._valid, self._valids = valid.denominator, valid.numerator

    def places(self, md5s: NDArray[np.uint64]) -> NDArray[np.int8]:
        """Of many rows (N, 2), each md5 its high and its low half."""
        both = self._test * self._valid
        if both >= 1 << 31:  # products would not fit: odd fractions, one by one
            high_low = md5s.astype(">u8").tobytes()
            return np.array([self.place(high_low[i : i + 16]) for i in range(0, len(high_low), 16)], np.int8)
        m = np.uint64(both)
        rest = (md5s[:, 0] % m * np.uint64((1 << 64) % both) + md5s[:, 1] % m) % m
        test, valid = rest % np.uint64(self._test) < self._tests, rest // np.uint64(self._test) < self._valids
        return np.where(test, TEST, np.where(valid, VALID, TRAIN)).astype(np.int8)

    def last(self, starts: NDArray[np.int64], total: int) -> NDArray[np.int8]:
        """By position: of rows before which there are so many of all characters (N,)."""
        held_out, test = (total - part * total for part in self._held_out)
        return np.where(starts >= test, TEST, np.where(starts >= held_out, VALID, TRAIN)).astype(np.int8)

    def place(self, md5: bytes) -> int:
        rest, number = divmod(int.from_bytes(md5, "big"), self._test)
        if number < self._tests:
            return TEST
        return VALID if rest % self._valid < self._valids else TRAIN


def distribute(cleaned: Sequence[tuple[str, Path]], folder: Path, config: SplitConfig) -> dict[str, Any]:
    """Rows of (split, cleaned file) to part files in `folder`. -> how many; duplicates, conflicting labels, rows of
    validation and test that training has too."""
    split = Split(config, [named for named, _ in cleaned])
    parts = [Parts(folder, name) for name in SPLITS]
    num_rows = before = 0
    total = _characters(path for named, path in cleaned if named == "train") if split.by_position else 0
    with Duplicates(folder.with_name("duplicates")) as duplicates:
        for named, batch in ((named, batch) for named, path in cleaned for batch in _batches(path)):
            md5s, targets = _md5s(batch), batch.column(arrow.TARGET).to_numpy()
            at = SPLITS.index(named)
            places = split.places(md5s) if named == "train" else np.full(batch.num_rows, at, np.int8)
            if named == "train" and split.by_position:
                ends = before + np.cumsum(batch.column(arrow.SIZE).to_numpy(), dtype=np.int64)
                places = split.last(np.concatenate([[before], ends[:-1]]), total)
                before = int(ends[-1])
            duplicates.add(md5s, targets, places)
            num_rows += batch.num_rows
            rows = _freed(pa.table(batch.drop_columns([arrow.MD5, arrow.SIZE, arrow.TARGET])))
            for place, part in enumerate(parts):
                part.add(rows.filter(pa.array(places == place)))
        counts = {"rows": num_rows, **duplicates.count()}
    return counts | {"splits": {part.split: part.close() for part in parts}}


def _freed(rows: pa.Table) -> pa.Table:
    """With names of files of their own: those that were read with a batch keep all of it in memory."""
    (column,) = rows.column(arrow.FILE).chunks
    names = pa.array(column.dictionary.to_pylist(), column.dictionary.type)
    place = rows.schema.get_field_index(arrow.FILE)
    return rows.set_column(place, rows.field(place), pa.DictionaryArray.from_arrays(column.indices, names))


def _characters(paths: Iterable[Path]) -> int:
    return sum(int(batch.column(arrow.SIZE).to_numpy().sum()) for path in paths for batch in _batches(path))


def _md5s(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """(N, 2): the high and the low half of each."""
    column = batch.column(arrow.MD5)
    halves = np.frombuffer(column.buffers()[1], ">u8").astype(np.uint64).reshape(-1, 2)
    return halves[column.offset : column.offset + len(column)]


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if not path.exists():  # nothing was left of that file
        return
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from stream


class Parts:
    """Rows of one split to part files of at most `arrow.PART_ROWS` rows, or about `most_bytes`; none for none."""

    def __init__(self, folder: Path, split: str, most_bytes: int = 0) -> None:
        self.split, self._most_bytes = split, most_bytes or arrow.PART_BYTES
        self._folder, self._held = folder, list[pa.Table]()
        self._num_held = self._num_parts = self._num_rows = self._num_bytes = 0

    def add(self, rows: pa.Table) -> None:
        self._held.append(rows)
        self._num_held += rows.num_rows
        self._num_rows += rows.num_rows
        self._num_bytes += rows.nbytes
        while self._num_held >= arrow.PART_ROWS:
            self._write(arrow.PART_ROWS)
        if self._num_bytes >= self._most_bytes and self._num_held:
            self._write(self._num_held)

    def close(self) -> int:
        if self._num_held:
            self._write(self._num_held)
        return self._num_rows

    def _write(self, size: int) -> None:
        table = pa.concat_tables(self._held)
        arrow.write(self._folder / f"{self.split}-{self._num_parts:05d}.arrow", table[:size])
        rest = table[size:]
        self._held, self._num_held, self._num_bytes = [rest], rest.num_rows, rest.nbytes
        self._num_parts += 1
