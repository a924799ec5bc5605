"""Which values the next trial tries: Optuna's samplers, behind the interface of Ray Tune's searchers.

A proposal is a function of (seed, number of the trial, results so far), with a sampler made anew for each: nothing has
to be saved, and a search that goes on after a kill proposes what it would have proposed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bigmodel.experiment import Experiment
from bigmodel.tasks.base import Goal
from tune_jobs.journal import Journal, Trial
from tune_jobs.space import Space, current

RANDOM_FIRST = 6
"""Trials at random before the estimators have something to estimate from."""
NOTHING: Any = object()
"""What the experiment says of a field that it leaves out."""


class Unsaved(Searcher):
    """A searcher of which Ray keeps nothing: the journal is read instead."""

    def __init__(self, journal: Journal, goal: Goal, num_trials: int, ended: Sequence[Trial] = ()) -> None:
        super().__init__(metric=goal.metric, mode=goal.mode)
        self.journal, self.num_trials = journal, num_trials
        self.ended = ended
        """Of these, what an earlier search has done."""
        self.num_left = num_trials - len(ended)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("the journal is read instead")


class Proposals(Unsaved):
    """Proposes `{"own": {"number": 3, "params": {"optim.lr": 0.004}}}`: what the experiment says itself, the default,
    then what the sampler draws or the grid has; of the journal's, those that have not ended. Finished after
    `tune.trials`."""

    def __init__(self, space: Space, experiment: Experiment, journal: Journal, goal: Goal) -> None:
        written = {name: current(experiment, name, NOTHING) for name in space}
        self._default = {
            name: value
            for name, value in written.items()
            if value is not NOTHING and (value is not None or None in space[name].values)
        }
        self._grid: list[dict[str, Any]] = []
        if experiment.tune.search == "grid":
            places = ({name: space[name].value(drawn) for name, drawn in place.items()} for place in grid(space))
            self._grid = [self._default, *(place for place in places if place != self._default)]
        ended = [trial for trial in journal.trials.values() if trial.ended]
        super().__init__(journal, goal, len(self._grid) or experiment.tune.trials, ended)
        self._space, self._tune = space, experiment.tune
        self._distributions = {name: found.distribution for name, found in space.items()}
        self._goal = goal
        self._numbers: dict[str, int] = {}
        self._params = {trial.number: trial.params for trial in ended}
        self._values = {trial.number: trial.best(goal.mode) for trial in ended}
        """Of the trials that have ended; None of one that failed."""

    def suggest(self, trial_id: str) -> Any:
        number = next(number for number in itertools.count() if number not in self._params)
        if number >= self.num_trials:
            return Searcher.FINISHED
        known = self.journal.trials.get(number)
        params = known.params if known is not None else self._choose(number)
        if known is None:
            self.journal.begin(number, params)
        self._numbers[trial_id], self._params[number] = number, params
        return {"own": {"number": number, "params": params}}

    def _choose(self, number: int) -> dict[str, Any]:
        if self._grid:
            return self._grid[number]
        if number == 0:
            return self._default
        study = self._study(number)
        trial = study.ask(self._distributions)
        return {name: self._space[name].value(trial.params[name]) for name in self._space}

    def _study(self, number: int) -> optuna.Study:
        """All that is known so far, and a sampler for the next trial."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = (self._tune.seed * 1_000_003 + number) % 2**32
        sampler = (
            TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST, constant_liar=True)
            if self._tune.search == "tpe"
            else RandomSampler(seed=seed)
        )
        study = optuna.create_study(direction="maximize" if self._goal.mode == "max" else "minimize", sampler=sampler)
        for earlier in sorted(self._params):
            study.add_trial(self._trial(earlier))
        return study

    def _trial(self, number: int) -> optuna.trial.FrozenTrial:
        drawn = {name: self._space[name].drawn(value) for name, value in self._params[number].items()}
        drawn = {name: value for name, value in drawn.items() if value is not None}
        value = self._values.get(number)
        ended = TrialState.COMPLETE if value is not None else TrialState.FAIL
        return optuna.trial.create_trial(
            state=ended if number in self._values else TrialState.RUNNING,
            params=drawn,
            distributions={name: self._distributions[name] for name in drawn},
            value=value,
        )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        value = (result or {}).get("best")
        failed = error or value is None or not math.isfinite(value)
        self._values[self._numbers[trial_id]] = None if failed else value


class Listed(Unsaved):
    """Proposes the given params, one after the other, each with its number."""

    def __init__(self, params: Mapping[int, dict[str, Any]], journal: Journal, goal: Goal) -> None:
        super().__init__(journal, goal, len(params))
        self._left = list(params.items())

    def suggest(self, trial_id: str) -> Any:
        if not self._left:
            return Searcher.FINISHED
        number, params = self._left.pop(0)
        if number not in self.journal.trials:
            self.journal.begin(number, params)
        return {"own": {"number": number, "params": params}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination, as Optuna draws them."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(r.grid() for r in space.values()))]
