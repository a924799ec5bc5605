"""Rows and samples on disk: Arrow IPC files of one record batch each, memory-mapped, read without copying."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PART_ROWS = 65_536
PART_BYTES = 32 << 20
LENGTH = "__length__"  # the column that ordering reads, beside the sample's own fields
FILE, LINE, MD5, SIZE, TARGET = "__file__", "__line__", "__md5__", "__size__", "__target__"  # beside the roles of a row
Columns = dict[str, tuple[NDArray[Any], NDArray[np.int64] | None]]  # values, and where each list begins and ends


def write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=None)


def read(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def sample_table(samples: Sequence[dict[str, Any]], lengths: Sequence[int]) -> pa.Table:
    """Samples of like fields -> one column a field: arrays become lists, numbers stay numbers."""
    columns: dict[str, pa.Array] = {LENGTH: pa.array(lengths, pa.int32())}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        columns[name] = _lists(values) if isinstance(first, np.ndarray) else pa.array(values)
    return pa.table(columns)


def _lists(arrays: Sequence[NDArray[Any]]) -> pa.Array:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return pa.LargeListArray.from_arrays(offsets, np.concatenate(arrays))


class Samples(Sequence[dict[str, Any]]):
    """The samples of one split, in part files: `samples[i]` is views into the mapped file, `lengths` (N,) int32."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts = [_columns(read(path)) for path in paths]
        sizes = [len(part[LENGTH][0]) for part in self._parts]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        lengths = [part[LENGTH][0] for part in self._parts]
        return lengths[0] if len(lengths) == 1 else np.concatenate([*lengths, np.empty(0, np.int32)])

    def __getitem__(self, i: Any) -> Any:
        return self.take([i])[0]

    def column(self, name: str) -> list[tuple[NDArray[Any], NDArray[np.int64] | None]]:
        """A field of all samples as it is mapped, a pair for each part file: its values, and of lists where each begins
        and ends."""
        return [part[name] for part in self._parts]

    def take(self, ids: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        """The samples of many indices, in their order: several times as fast as one by one."""
        wanted = np.asarray(ids, np.int64)
        if (outside := (wanted < 0) | (wanted >= len(self))).any():
            raise IndexError(f"there are {len(self):,} samples; {wanted[outside][0]} was asked for")
        if len(self._parts) == 1:
            return _samples(self._parts[0], wanted)
        parts = np.searchsorted(self._starts, wanted, "right") - 1
        samples: list[dict[str, Any]] = [{}] * len(wanted)
        for part in np.unique(parts):
            (places,) = np.nonzero(parts == part)
            found = _samples(self._parts[part], wanted[places] - self._starts[part])
            for place, sample in zip(places.tolist(), found, strict=True):
                samples[place] = sample
        return samples

    def rows(self, ids: Sequence[int] | NDArray[np.int64]) -> Sequence[int] | NDArray[np.int64]:
        """A sample is a row."""
        return ids


def _samples(columns: Columns, at: NDArray[np.int64]) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {}
    for name, (values, offsets) in columns.items():
        if offsets is not None:
            spans = zip(offsets[at].tolist(), offsets[at + 1].tolist(), strict=True)
            fields[name] = [values[start:end] for start, end in spans]
        elif name != LENGTH:
            fields[name] = values[at].tolist()
    return [dict(zip(fields, sample, strict=True)) for sample in zip(*fields.values(), strict=True)]


def _columns(table: pa.Table) -> Columns:
    columns: Columns = {}
    for name in table.column_names:
        (array,) = table.column(name).chunks  # a part file is one batch; combine_chunks() would copy it into memory
        if pa.types.is_large_list(array.type):
            columns[name] = (array.values.to_numpy(zero_copy_only=True), array.offsets.to_numpy(zero_copy_only=True))
        else:
            columns[name] = (array.to_numpy(zero_copy_only=True), None)
    return columns


class Rows(Sequence[dict[str, Any]]):
    """The cleaned rows of one split: `rows[i]`, and `rows.place(i)`, the (file, line) it came from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, tables = paths, [read(path) for path in paths]
        self._table = pa.concat_tables(tables) if tables else pa.table({FILE: [], LINE: []})
        self._roles = [name for name in self._table.column_names if name not in (FILE, LINE)]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self._table.slice(*_span(i, len(self))).select(self._roles).to_pylist()
        return {role: self._table.column(role)[int(i)].as_py() for role in self._roles}

    def __iter__(self) -> Any:
        """A file at a time, read and not mapped: what has been mapped stays in the process as long as there is room."""
        for path in self._paths:
            with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as stored:
                table = stored.read_all().select(self._roles)
            for start in range(0, table.num_rows, 8192):
                yield from table.slice(start, 8192).to_pylist()

    def place(self, i: int) -> tuple[str, int]:
        return self._table.column(FILE)[i].as_py(), self._table.column(LINE)[i].as_py()


def _span(part: slice, size: int) -> tuple[int, int]:
    start, stop, step = part.indices(size)
    assert step == 1, "rows are sliced in order"
    return start, max(stop - start, 0)
