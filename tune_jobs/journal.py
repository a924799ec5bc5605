"""trials.jsonl: what was tried, a line when a trial begins and one when it has ended. A search that continues reads it.

    {"trial": 3, "params": {"optim.lr": 0.004}}
    {"trial": 3, "state": "stopped", "params": {...}, "curve": [[150, 0.81], [300, 0.84]], "seconds": 4.1, "reason": ""}

JSON and nothing else: what others may have written is never unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["running", "finished", "stopped", "failed"]
TIME = "the time was up"


@dataclass(frozen=True)
class Trial:
    """One trial. `curve` holds (optimiser step, value of the task's goal on the validation rows)."""

    number: int
    params: dict[str, Any] = field(default_factory=dict)
    """Values by their names in the experiment: `optim.lr`, `optim.beta1`, `model.hidden_size`."""
    state: State = "running"
    """finished: trained to its end; stopped: by the scheduler; failed: `reason` says how."""
    curve: Sequence[tuple[int, float]] = ()
    seconds: float = 0.0
    """Time spent training."""
    reason: str = ""

    @property
    def ended(self) -> bool:
        """For good: when a search goes on, what failed is tried again, and what the end of the time stopped goes on."""
        return self.state in ("finished", "stopped") and self.reason != TIME

    def best(self, mode: str) -> float | None:
        return best(self.curve, mode)


def best(curve: Iterable[tuple[int, float]], mode: str) -> float | None:
    """The best value of a curve, NaN left aside; None without one."""
    values = [value for _, value in curve if math.isfinite(value)]
    return (max(values) if mode == "max" else min(values)) if values else None


def ranked(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """Those that have a value, the best first; none that failed, whatever it had reached before."""
    whole = [trial for trial in trials if trial.state != "failed"]
    valued = [(value, trial) for trial in whole if (value := trial.best(mode)) is not None]
    return [trial for _, trial in sorted(valued, key=lambda one: one[0], reverse=mode == "max")]


class Journal:
    """The file, open for appending; `trials` is what it held, by number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials = {trial.number: trial for trial in read(path)}

    def begin(self, number: int, params: dict[str, Any]) -> None:
        self._append({"trial": number, "params": params})

    def end(self, trial: Trial) -> None:
        self._append(
            {
                "trial": trial.number,
                "state": trial.state,
                "params": trial.params,  # population-based training changes them
                "curve": [list(point) for point in trial.curve],
                "seconds": round(trial.seconds, 3),
                "reason": trial.reason,
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Trial]:
    """The trials of a file, by number; a last line that a kill cut short counts for nothing."""
    found: dict[int, dict[str, Any]] = {}
    if not path.exists():
        return []
    for text in path.read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found.setdefault(line["trial"], {}).update(line)
    return [
        Trial(
            number,
            lines.get("params", {}),
            lines.get("state", "running"),
            [(step, value) for step, value in lines.get("curve", [])],
            lines.get("seconds", 0.0),
            lines.get("reason", ""),
        )
        for number, lines in sorted(found.items())
    ]
