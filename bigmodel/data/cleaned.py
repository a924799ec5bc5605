"""Cleaned rows on disk: a file for each piece of the sources; those that are judged as prepared ones are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigmodel.data import arrow
from bigmodel.data.clean import Placed
from bigmodel.data.split import Parts
from bigmodel.errors import ResourceError
from bigmodel.tasks.base import Task

ROWS, CHARS = 8192, 8 << 20  # rows, or characters, in one batch


def in_batches(placed: Iterable[Placed]) -> Iterator[list[Placed]]:
    num_chars, held = 0, list[Placed]()
    for item in placed:
        held.append(item)
        num_chars += sum(len(value) for value in item.row.values() if isinstance(value, (str, bytes)))
        if len(held) == ROWS or num_chars > CHARS:
            yield held
            num_chars, held = 0, []
    if held:
        yield held


class CleanedFile:
    """An Arrow stream of cleaned rows: the roles, and source, line, md5 and size of the content, target. No file for no
    rows."""

    def __init__(self, path: Path, task: Task) -> None:
        self._path, self._task = path, task
        self._writer: Any = None

    def __enter__(self) -> CleanedFile:
        return self

    def write(self, placed: Sequence[Placed]) -> None:
        columns, rows = _columns(placed), [item.row for item in placed]
        contents = [self._task.content(row) for row in rows]
        md5s = [hashlib.md5(content.encode(), usedforsecurity=False).digest() for content in contents]
        columns[arrow.MD5] = pa.array(md5s, pa.binary(16))
        columns[arrow.SIZE] = pa.array([len(content) for content in contents], pa.int32())
        columns[arrow.TARGET] = pa.array([_key_of_target(self._task.target(row)) for row in rows], pa.uint64())
        batch = pa.RecordBatch.from_pydict(columns)
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._path), batch.schema)
        self._writer.write_batch(batch)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def keep(placed: Iterable[Placed], folder: Path) -> arrow.Rows:
    """The rows, with their places, in part files in the folder. ResourceError."""
    parts = Parts(folder, "rows")
    for some in in_batches(placed):
        try:
            parts.add(pa.table(_columns(some)))
        except OSError as e:
            raise ResourceError(f"{folder}: rows cannot be written: {e.strerror or e}") from None
    parts.close()
    return arrow.Rows(sorted(folder.iterdir()))


def _columns(placed: Sequence[Placed]) -> dict[str, Any]:
    rows = [item.row for item in placed]
    return {
        **{role: [row[role] for row in rows] for role in rows[0]},
        arrow.FILE: pa.array([item.source for item in placed], pa.string()).dictionary_encode(),
        arrow.LINE: pa.array([item.line for item in placed], pa.int64()),
    }


def key(text: str) -> int:
    """Of 64 bits: stands for a text where rows are compared."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8], "big")


_key_of_target = lru_cache(1024)(key)
