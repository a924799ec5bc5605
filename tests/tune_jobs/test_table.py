"""What a person sees of a search while it runs: the trials that Ray Tune tells of, drawn on a terminal."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bigmodel.tasks.base import Goal
from tune_jobs.journal import Journal, read
from tune_jobs.propose import Listed
from tune_jobs.table import Table

PARAMS = {number: {"optim.lr": 0.001 * (number + 1), "model.type": "gru"} for number in range(5)}
STYLE = re.compile("\x1b\\[[0-9;]*m")


def trial(number: int, **result: Any) -> Any:
    """As much of Ray Tune's as a callback reads."""
    own = {"number": number, "params": PARAMS[number]}
    return SimpleNamespace(trial_id=f"t{number}", config={"own": own}, last_result=result, error_file=None)


@pytest.mark.parametrize(("mode", "worse", "better"), [("max", 0.5, 0.75), ("min", 0.75, 0.5)])
def test_a_terminal_shows_what_runs_then_the_best_then_what_has_no_value(mode, worse, better, tmp_path: Path) -> None:
    goal, screen = Goal("score", mode), io.StringIO()
    table = Table(Listed(PARAMS, Journal(tmp_path / "trials.jsonl"), goal), tmp_path, goal, 0)
    table.on_trial_error(1, [], trial(0))
    table.on_trial_complete(1, [], trial(1, curve=[(5, worse)], finished=True))
    table.on_trial_complete(1, [], trial(2, curve=[(5, better), (10, math.nan)]))
    best = 0.99 if mode == "max" else 0.01
    table.on_trial_complete(1, [], trial(3, curve=[(5, best)], failed="the loss is nan"))
    table.on_trial_result(1, [], trial(4), {"curve": [(5, 0.625)]})
    Console(file=screen, force_terminal=True, width=100, color_system=None).print(table._drawn())
    title, heads, *rows = STYLE.sub("", screen.getvalue()).splitlines()
    assert title.strip() == f"4 of 5 ended, best {better:.4f} of trial 2"
    assert heads.split() == ["trial", "score", "validations", "state", "optim.lr", "model.type"]
    assert [row.split() for row in rows] == [
        ["4", "0.6250", "1", "running", "0.005", "gru"],
        ["2", f"{better:.4f}", "2", "stopped", "0.003", "gru"],
        ["1", f"{worse:.4f}", "1", "finished", "0.002", "gru"],
        ["0", "0", "failed", "0.001", "gru"],
        ["3", f"{best:.4f}", "1", "failed", "0.004", "gru"],
    ]
    assert [one.state for one in read(tmp_path / "trials.jsonl")] == ["failed", "finished", "stopped", "failed"]
