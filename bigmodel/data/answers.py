"""Answers in the order of their rows, however many: all but the last stand on disk, and are read some at a time."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bigmodel.errors import ResourceError
from bigmodel.tasks.base import Answer

AT_ONCE = 1024


class Answers(Sequence[Answer]):
    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self._file = tempfile.TemporaryFile()
        weakref.finalize(self, self._file.close)
        self._ends, self._last = [0], list[Answer]()
        self._read: tuple[int, list[Answer]] = (-1, [])
        self.extend(answers)

    def extend(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self._last.append(answer)
            if len(self._last) == AT_ONCE:
                self._write()

    def _write(self) -> None:
        try:
            self._file.seek(self._ends[-1])
            size = self._file.write(json.dumps(self._last).encode())
        except OSError as e:
            raise ResourceError(f"{tempfile.gettempdir()}: answers cannot be written: {e.strerror}") from None
        self._ends.append(self._ends[-1] + size)
        self._last = []

    def __len__(self) -> int:
        return AT_ONCE * (len(self._ends) - 1) + len(self._last)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        block, place = divmod(range(len(self))[i], AT_ONCE)
        return self._block(block)[place]

    def __iter__(self) -> Iterator[Answer]:
        for block in range(len(self._ends)):
            yield from self._block(block)

    def _block(self, number: int) -> list[Answer]:
        if number == len(self._ends) - 1:
            return self._last
        if number != self._read[0]:
            start, end = self._ends[number : number + 2]
            self._file.seek(start)
            self._read = number, json.loads(self._file.read(end - start))
        return self._read[1]
