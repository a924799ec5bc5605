"""events.jsonl: a line a step, validation, checkpoint or decision. A continued run cuts off what it will do again.

The first line that a run, or its continuation, writes is its `start`.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, Self

from bigmodel.errors import ResourceError

START = b'{"kind": "start"'

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Events:
    """Appends to the file and tells the listener. `position` (bytes) goes into checkpoints. ResourceError if the file
    cannot be written.

    Without a path, as for all workers but the first, nothing is written.
    """

    def __init__(self, path: Path | None, listener: Listener) -> None:
        self._path, self._listener = path, listener
        with self._writing():
            self._file: IO[bytes] = open(path, "ab") if path else io.BytesIO()
        self._part = path.with_name(f"{path.name}.part") if path else Path()

    @property
    def position(self) -> int:
        self.flush()
        return self._file.tell()

    def start(self, position: int) -> list[Event]:
        """Cut off what will be done again. -> it. `begun` puts what is left in its place, once it says where the run
        goes on. It is another file then, which is how `Tail` notices."""
        if self._path is None:
            return []
        with self._writing():
            self._file.close()
            written = self._path.read_bytes()
            end = written.rfind(b"\n", 0, position) + 1  # after a power cut it may be shorter, and end within a line
            self._part.write_bytes(written[:end])
            self._file = open(self._part, "ab")
        return _whole(written[end:])

    def begun(self) -> None:
        """The new `start` is written."""
        if self._path is not None:
            self.flush()
            self.settle()
            with self._writing():
                os.replace(self._part, self._path)

    def settle(self) -> None:
        """Up to the last `position` it is on the disk, not only handed to the system: before a checkpoint tells of it.
        Another thread may ask for it."""
        if self._path is not None:
            with self._writing():
                os.fsync(self._file.fileno())

    def written(self) -> list[Event]:
        """What the file tells so far."""
        self.flush()
        return read(self._path) if self._path else []

    def write(self, kind: str, **fields: Any) -> None:
        event = {"kind": kind, **fields}
        with self._writing():
            self._file.write(json.dumps(event).encode() + b"\n")
        self._listener(event)

    def flush(self) -> None:
        with self._writing():
            self._file.flush()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(ResourceError) if kind else nullcontext(), self._writing():  # what is under way says why
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """ResourceError where the file cannot be written, such as on a full disk."""
        try:
            yield
        except OSError as e:
            raise ResourceError(f"{self._path}: the events cannot be written: {e}. The last checkpoint stays") from e


def read(path: Path) -> list[Event]:
    """All whole lines of the file; one that is still being written, or damaged, is left out."""
    return _whole(path.read_bytes()) if path.exists() else []


def _whole(lines: bytes) -> list[Event]:
    whole = (line for line in lines.splitlines(keepends=True) if line.endswith(b"\n"))
    return [event for line in whole if (event := parsed(line)) is not None]


def parsed(line: bytes) -> Event | None:
    """The event of a line; None if it is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def number(tree: Mapping[str, Any], key: str) -> float | None:
    """None also for what is not finite, or an integer beyond a float's range."""
    value = tree.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return value if abs(value) <= sys.float_info.max else None


def seconds_of(steps: Iterable[Event]) -> Iterator[float]:
    """That each step took, as far as it can be told: the rate of a very slow one is rounded to 0."""
    for step in steps:
        samples, rate = number(step, "samples"), number(step, "samples_per_s")
        if samples is not None and rate and math.isfinite(seconds := samples / rate):
            yield seconds


class Follower:
    """Reads what another process writes: in a thread, inside `with`, and once more on leaving; or by `read`."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.read()
        self.read()

    def read(self) -> None:
        """Tell what is new."""
        raise NotImplementedError


class Tail(Follower):
    """Tells the listener of the events of a file: those that come from now on, and of a file that has been replaced all
    since the newest `start`."""

    def __init__(self, path: Path, listener: Listener) -> None:
        super().__init__()
        self._path, self._listener = path, listener
        self._inode, self._position, self._last = _end(path)

    def read(self) -> None:
        try:
            file = open(self._path, "rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            file.seek(max(0, self._position - len(self._last)))
            # the number of a file that is gone may be given to the one after the next
            if status.st_ino != self._inode or file.read(len(self._last)) != self._last:
                file.seek(0)
                self._inode, self._position = status.st_ino, max(0, file.read().rfind(START))
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._position, self._last = self._position + len(line), line
                if (event := parsed(line)) is not None:
                    self._listener(event)


def _end(path: Path) -> tuple[int, int, bytes]:
    """(inode, bytes of the whole lines, the last of them): a line may be half written."""
    try:
        with open(path, "rb") as file:
            whole, newline, _ = file.read().rpartition(b"\n")
            return os.fstat(file.fileno()).st_ino, len(whole + newline), whole.rpartition(b"\n")[2] + newline
    except FileNotFoundError:
        return 0, 0, b""
