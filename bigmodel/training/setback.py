"""Why a run is to go on from a checkpoint: noted in its folder by whoever noticed, told by the worker that goes on.

The one that notices, Ray Train's controller or the command, does not write events; the one that does is dead.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

SETBACK = "setback.txt"


def note(run: Path, why: str) -> None:
    with suppress(OSError):  # it may be that the disk is full
        (run / SETBACK).write_text(why, "utf-8")


def taken(run: Path) -> str:
    """What was noted, once; nothing where nothing was."""
    try:
        why = (run / SETBACK).read_text("utf-8")
        (run / SETBACK).unlink()
    except OSError:
        return ""
    return why
