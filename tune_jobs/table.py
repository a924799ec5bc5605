"""What a person sees of a search, and what the journal is told: Ray Tune calls this at every result.

A table that is drawn anew on a terminal, a line a trial elsewhere.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ray.tune import Callback

from bigmodel.tasks.base import Goal
from bigmodel.training.run import Run
from tune_jobs.journal import TIME, Trial, ranked
from tune_jobs.propose import Unsaved

REFRESH_S = 0.5
ROWS = 20


class Table(Callback):
    """Inside `with`, rows of `trials` are shown as they change."""

    def __init__(self, proposals: Unsaved, folder: Path, goal: Goal, minutes: float) -> None:
        self._journal, self._folder, self._goal = proposals.journal, folder, goal
        self._num_trials, self._limit_s = proposals.num_trials, minutes * 60
        self._rows = {trial.number: trial for trial in proposals.ended}
        self._began = time.monotonic()
        self._live: Any = None
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps a copy of its callbacks, which must not hold a terminal."""
        return {**self.__dict__, "_live": None}

    @property
    def num_ended(self) -> int:
        return sum(trial.state != "running" for trial in self._rows.values())

    @property
    def time_is_up(self) -> bool:
        return bool(self._limit_s) and time.monotonic() - self._began >= self._limit_s

    def __enter__(self) -> Table:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._drawn, refresh_per_second=1 / REFRESH_S)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---- what Ray Tune tells

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._take(trial, result, "running")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if result.get("failed"):
            self._end(self._take(trial, result, "failed", result["failed"]))
        else:
            self._end(self._take(trial, result, "finished" if result.get("finished") else "stopped"))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(self._take(trial, trial.last_result or {}, "failed", reason(trial)))

    def end_the_rest(self) -> None:
        """What the end of the time stopped."""
        for trial in list(self._rows.values()):
            if trial.state == "running" and self.time_is_up:
                self._end(Trial(trial.number, trial.params, "stopped", trial.curve, reason=TIME))

    def _take(self, trial: Any, result: dict[str, Any], state: Any, reason: str = "") -> Trial:
        own = trial.config["own"]
        number = self._numbers.setdefault(trial.trial_id, own["number"])  # pbt copies the config of others
        row = Trial(number, own["params"], state, result.get("curve", ()), reason=reason)
        self._rows[number] = row
        return row

    def _end(self, row: Trial) -> None:
        seconds = Run(self._folder / f"{row.number:03}").seconds()
        ended = Trial(row.number, row.params, row.state, row.curve, seconds, row.reason)
        self._rows[row.number] = ended
        self._journal.end(ended)
        if self._live is None:
            print(self._line(ended), flush=True)

    # ---- what is shown

    def _line(self, trial: Trial) -> str:
        best = trial.best(self._goal.mode)
        value = f"{self._goal.metric} {best:.4f}" if best is not None else ""
        values = "  ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        what = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        return f"trial {trial.number}  {value}  {what}  {trial.seconds:.1f} s  {values}  ({self._count()})"

    def _count(self) -> str:
        top = self._top()
        best = f", best {top.best(self._goal.mode):.4f} of trial {top.number}" if top else ""
        return f"{self.num_ended} of {self._num_trials} ended{best}"

    def _top(self) -> Trial | None:
        return next(iter(ranked(self._rows.values(), self._goal.mode)), None)

    def _drawn(self) -> Any:
        from rich.table import Table as Grid

        grid = Grid(title=self._count(), title_justify="left", box=None)
        names = list(dict.fromkeys(name for trial in self._rows.values() for name in trial.params))
        for head in ("trial", self._goal.metric, "validations", "state", *names):
            grid.add_column(head, justify="left" if head == "state" else "right")
        running = [trial for trial in self._rows.values() if trial.state == "running"]
        ended = [trial for trial in self._rows.values() if trial.state != "running"]
        valued = ranked(ended, self._goal.mode)
        for trial in [*running, *valued, *(trial for trial in ended if trial not in valued)][:ROWS]:
            best = trial.best(self._goal.mode)
            value = f"{best:.4f}" if best is not None else ""
            values = [shown(trial.params.get(name)) for name in names]
            grid.add_row(str(trial.number), value, str(len(trial.curve)), trial.state, *values)
        return grid


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def reason(trial: Any) -> str:
    """Why a trial's process was lost, in one line."""
    text = ""
    if trial.error_file and Path(trial.error_file).exists():
        text = Path(trial.error_file).read_text("utf-8", "replace").strip()
    return text.splitlines()[-1][:200] if text else "its process died"
