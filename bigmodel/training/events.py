"""events.jsonl: a line a step, validation, checkpoint or decision. A continued run cuts off what it will do again.

The first line that a run, or its continuation, writes is its `start`.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

START = b'{"kind": "start"'

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Events:
    """Appends to the file and tells the listener. `position` (bytes) goes into checkpoints.

    Without a path, as for all workers but the first, nothing is written.
    """

    def __init__(self, path: Path | None, listener: Listener) -> None:
        self._path, self._listener = path, listener
        self._file: IO[bytes] = open(path, "ab") if path else io.BytesIO()

    @property
    def position(self) -> int:
        self._file.flush()
        return self._file.tell()

    def start(self, position: int) -> None:
        """Cut off what will be done again. It is another file then, which is how `Tail` notices."""
        if self._path is None:
            return
        self._file.close()
        kept = self._path.read_bytes()[:position]
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_bytes(kept)
        os.replace(part, self._path)
        self._file = open(self._path, "ab")

    def write(self, kind: str, **fields: Any) -> None:
        event = {"kind": kind, **fields}
        self._file.write(json.dumps(event).encode() + b"\n")
        self._listener(event)

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> list[Event]:
    """All whole lines of the file; a line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


class Tail:
    """Reads the file as another process writes it, for the listener in this one: all since the newest `start`."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self._path, self._listener = path, listener
        self._inode, self._position = (path.stat().st_ino, path.stat().st_size) if path.exists() else (0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Tail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            file = open(self._path, "rb")
        except FileNotFoundError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._position = inode, max(0, file.read().rfind(START))
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                self._listener(json.loads(line))
