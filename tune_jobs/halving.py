"""Successive halving: ASHA (Li et al., 2020, arXiv:1810.05934) stops the worse trials early, but never the default.

The winner is compared with the default on the test rows, so the default is trained to its end in any case: better
beside other trials than after them, alone.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler


class Halving(ASHAScheduler):
    """Ray Tune's, which sees the default's results as it does all others."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.config["own"]["number"] == 0 else decision
