"""How far preparation is: bytes read and rows cleaned, told every few seconds.

Whoever prepares in this process follows a Progress; whoever reads and cleans tells of it, if there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY_S = 5.0  # between two lines of progress, of whatever goes on
_followed: ContextVar[Progress | None] = ContextVar("progress", default=None)


class Progress:
    """`what` is being done to `total` bytes or rows."""

    def __init__(self, say: Callable[[str], None], what: str, total_bytes: int = 0, total_rows: int = 0) -> None:
        self._say, self._what = say, what
        self._total_bytes, self._total_rows = total_bytes, total_rows
        self._bytes = self._rows = 0
        self._began = self._last = time.monotonic()

    def add(self, num_bytes: int, num_rows: int) -> None:
        self._bytes += num_bytes
        self._rows += num_rows
        now = time.monotonic()
        if now - self._last >= EVERY_S:
            self._last = now
            self._say(f"{self._what}: {', '.join(self._told(max(now - self._began, 1e-9)))}")

    def _told(self, seconds: float) -> Iterator[str]:
        if self._total_bytes:
            done = min(self._bytes, self._total_bytes)
            yield f"{in_units(done)} of {in_units(self._total_bytes)} ({done / self._total_bytes:.0%})"
        of = f" of {self._total_rows:,}" if self._total_rows else ""
        yield f"{self._rows:,}{of} rows"
        read, cleaned = self._bytes / seconds, self._rows / seconds
        yield f"{in_units(int(read))}/s" if self._total_bytes else f"{cleaned:,.0f} rows/s"


@contextmanager
def following(progress: Progress) -> Iterator[None]:
    token = _followed.set(progress)
    try:
        yield
    finally:
        _followed.reset(token)


def advance(num_bytes: int = 0, num_rows: int = 0) -> None:
    """So much more has been done."""
    if (progress := _followed.get()) is not None:
        progress.add(num_bytes, num_rows)


def in_units(num_bytes: int) -> str:
    """12.3 MB: powers of a thousand."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
