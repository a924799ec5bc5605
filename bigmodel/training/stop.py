"""Ctrl-C, or SIGTERM, ends a run after the step that is under way."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any


class Stop:
    """Inside `with`: the first signal asks, a second one ends at once. A `file` tells those that train elsewhere."""

    def __init__(self, file: Path | None = None) -> None:
        self.asked = False
        self._file = file
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._file is not None:
            self._file.touch()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
