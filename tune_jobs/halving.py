"""Successive halving: ASHA (Li et al., 2020, arXiv:1810.05934) stops the worse trials early, but never the default.

The winner is compared with the default on the test rows, so the default is trained to its end in any case: better
beside other trials than after them, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from tune_jobs.journal import Trial


class Halving(ASHAScheduler):
    """Ray Tune's, which sees the default's results as it does all others, and those of `ended` trials, which an earlier
    search has judged."""

    def __init__(self, ended: Sequence[Trial], **settings: Any) -> None:
        super().__init__(**settings)
        for trial in ended:
            known: Any = SimpleNamespace(trial_id=f"ended {trial.number}", config={"own": {"number": trial.number}})
            controller: Any = None  # which it does not ask
            self.on_trial_add(controller, known)
            for validations, (_, value) in enumerate(trial.curve, 1):
                self.on_trial_result(controller, known, {settings["time_attr"]: validations, settings["metric"]: value})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.config["own"]["number"] == 0 else decision
