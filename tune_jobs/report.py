"""tune_report.json: what a search found, for machines and for the page; in short for the terminal."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from bigmodel.evaluation.layout import heading, printable, put, table, wide
from bigmodel.tasks.base import Goal
from tune_jobs.journal import Trial
from tune_jobs.space import Range, Space
from tune_jobs.verdict import Verdict

Scale = Literal["log", "log of 1 - x", "linear", "choice"]
SHOWN = 10  # trials on the terminal


def report(
    name: str,
    trials: Sequence[Trial],
    goal: Goal,
    space: Space,
    verdict: Verdict | None = None,
    test: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    best: str = "",
    model: str = "",
) -> dict[str, Any]:
    """JSON only: a value that is no number is null, and the trials come best first.

    `verdict` is None where nothing was repeated; `test` is what `compare_rows` says of the test rows; `seconds` is what
    trials and repeats took, all runs of the command together; `best` and `model` are the paths of the winner's
    experiment and of its model directory.
    """
    return {
        "name": name,
        "goal": {"metric": goal.metric, "mode": goal.mode},
        "scales": {field: scale(values) for field, values in space.items()},
        "verdict": verdict.to_json() if verdict else None,
        "test": dict(test) if test else None,
        "seconds": seconds,
        "best": best,
        "model": model,
        "trials": [_trial(trial, goal) for trial in sorted(trials, key=lambda trial: _rank(trial, goal))],
    }


def scale(values: Range) -> Scale:
    if values.kind == "log":
        return "log of 1 - x" if values.from_one else "log"
    return "choice" if values.kind == "choice" else "linear"


def trials_of(report: Mapping[str, Any]) -> list[Trial]:
    """The trials again, by number."""
    return [
        Trial(
            one["number"],
            one["params"],
            one["state"],
            [(step, math.nan if value is None else value) for step, value in one["curve"]],
            one["seconds"],
            one["reason"],
        )
        for one in sorted(report["trials"], key=lambda one: one["number"])
    ]


def _rank(trial: Trial, goal: Goal) -> tuple[bool, bool, float, int]:
    value = trial.best(goal.mode)
    return trial.state == "failed", value is None, (value or 0) * (-1 if goal.mode == "max" else 1), trial.number


def _trial(trial: Trial, goal: Goal) -> dict[str, Any]:
    return {
        "number": trial.number,
        "value": trial.best(goal.mode),
        "params": trial.params,
        "state": trial.state,
        "steps": trial.curve[-1][0] if trial.curve else 0,
        "seconds": trial.seconds,
        "reason": trial.reason,
        "curve": [[step, value if math.isfinite(value) else None] for step, value in trial.curve],
    }


# ---- in words


def statements(report: Mapping[str, Any]) -> list[str]:
    """What is to be said first: the verdict, then what it rests on."""
    verdict, test = report["verdict"], report["test"]
    states = Counter(one["state"] for one in report["trials"])
    count = f"{len(report['trials'])} trial{'' if len(report['trials']) == 1 else 's'}"
    number = f"{count} in {_time(report['seconds'])}: {', '.join(f'{states[s]} {s}' for s in sorted(states))}."
    unrepeated = "Nothing was repeated with further seeds: whether the best trial beats the default is not known."
    return [verdict["words"] if verdict else unrepeated, *([test["words"]] if test else []), number]


def columns(report: Mapping[str, Any]) -> list[str]:
    """Of the table of trials."""
    return ["trial", report["goal"]["metric"], *report["scales"], "state", "steps", "seconds"]


def cells(one: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Of a trial, one a column."""
    params = (shown(one["params"][field]) if field in one["params"] else "" for field in report["scales"])
    value = "" if one["value"] is None else f"{one['value']:.4f}"
    return [str(one["number"]), value, *params, one["state"], f"{one['steps']:,}", f"{one['seconds']:,.1f}"]


def commands(report: Mapping[str, Any]) -> list[str]:
    """How to go on."""
    train = [f"bigmodel train {shlex.quote(report['best'])}"] if report["best"] else []
    return train + ([f"bigmodel serve {shlex.quote(report['model'])}"] if report["model"] else [])


def shown(value: Any) -> str:
    """A parameter's value in few letters."""
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def show(report: Mapping[str, Any]) -> None:
    """Print the summary on standard output."""
    put(Group(*_parts(report)))


def _parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield heading(f"search: {printable(report['name'])}")
    yield from map(Text, statements(report))
    best = report["trials"][:SHOWN]
    if best:
        total = len(report["trials"])
        yield heading("trials" if total <= SHOWN else f"trials: the best {SHOWN} of {total} (all are in the report)")
        names = [name.rpartition(".")[2] if name.startswith("optim.") else name for name in columns(report)]
        lines = [[wide(cell, 20) for cell in cells(one, report)] for one in best]
        yield table(names, lines, left={len(names) - 3})
    failed = [one for one in report["trials"] if one["state"] == "failed"]
    for one in failed[:SHOWN]:
        yield Text(f"trial {one['number']} failed: {printable(one['reason'])}", overflow="fold")
    if lines_to_type := commands(report):
        yield heading("to go on")
        yield from (Text("  " + line, no_wrap=True, overflow="ignore") for line in lines_to_type)
