"""Why a run is to go on from a checkpoint: noted in its folder by whoever noticed, told by the worker that goes on; and
how often it had to, whoever noticed.

The one that notices, a worker, Ray Train's controller or the command, does not write events; the one that does is dead.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from bigmodel.training.events import Follower, Listener

SETBACK = "setback.txt"
COUNT = "setbacks"
"""A byte for each failure since the command began."""


def note(run: Path, why: str) -> None:
    part = run / f"{SETBACK}.{platform.node()}-{os.getpid()}"  # several may have something to note
    with suppress(OSError):  # it may be that the disk is full
        part.write_text(why, "utf-8")
        part.replace(run / SETBACK)


def noted(run: Path) -> bool:
    return (run / SETBACK).exists()


def taken(run: Path) -> str:
    """What was noted, once; nothing where nothing was."""
    try:
        why = (run / SETBACK).read_text("utf-8")
        (run / SETBACK).unlink()
    except OSError:
        return ""
    return why


def count(run: Path, known: int = 0) -> int:
    """A failure more. -> how many there were since the command began; on a full disk, those that who asks knows of."""
    with suppress(OSError), open(run / COUNT, "ab") as file:
        file.write(b".")
    return max(known, counted(run))


def counted(run: Path) -> int:
    try:
        return (run / COUNT).stat().st_size
    except OSError:
        return 0


class Heard(Follower):
    """Tells the listener of a note while nobody has gone on yet, which takes as long as workers take to start."""

    def __init__(self, run: Path, listener: Listener) -> None:
        super().__init__()
        self._file, self._listener = run / SETBACK, listener
        self._written = self._time()

    def read(self) -> None:
        if (written := self._time()) not in (0, self._written):
            self._written = written
            with suppress(OSError):
                line = f"{self._file.read_text('utf-8')}; the last checkpoint stays"
                self._listener({"kind": "say", "line": line})

    def _time(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0
