"""events.jsonl: a line a step, validation, checkpoint or decision. A continued run cuts off what it will do again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Events:
    """Appends to the file and tells the listener. `position` (bytes) goes into checkpoints; `start` cuts back to it.

    Without a path, as for all workers but the first, nothing is written.
    """

    def __init__(self, path: Path | None, listener: Listener) -> None:
        self._listener = listener
        self._file: IO[bytes] = open(path, "ab") if path else io.BytesIO()

    @property
    def position(self) -> int:
        self._file.flush()
        return self._file.tell()

    def start(self, position: int) -> None:
        self._file.truncate(position)
        self._file.seek(position)

    def write(self, kind: str, **fields: Any) -> None:
        event = {"kind": kind, **fields}
        self._file.write(json.dumps(event).encode() + b"\n")
        self._listener(event)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Event]:
    """All whole lines of the file; a line that is still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
