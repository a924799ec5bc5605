"""Population-based training: PBT (Jaderberg et al., 2017, arXiv:1711.09846) has the worse trials take over weights and
values of the better ones, but never the default.

What the winner is compared with is the experiment as it was written, to its end.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import PopulationBasedTraining


class Population(PopulationBasedTraining):
    """Ray Tune's; others may take over from the default as they do from each other."""

    _default: Any = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if trial.config["own"]["number"] == 0:  # later it may be the number of what the trial took over
            self._default = trial

    def _quantiles(self) -> tuple[list[Any], list[Any]]:
        """The worst of the others, and the best of all."""
        worse, better = super()._quantiles()
        if (state := self._trial_state.get(self._default)) is not None:
            score, state.last_score = state.last_score, None  # as of one that has not reported yet
            worse, _ = super()._quantiles()
            state.last_score = score
        return worse, better
