"""What a good user of Optuna writes: rows prepared once, the loop in this process, trial after trial, all threads."""

from __future__ import annotations

import copy
import math
import time

import optuna
import torch
from training import Job
from trial_loop import GRACE, REDUCTION, SPACE, USUAL, Rows, Trial, epochs, timed


def search(job: Job, trials: int | None, minutes: float | None, seed: int, pruned: bool) -> tuple[list[Trial], float]:
    """-> the trials, and the seconds since the search began, preparation not counted."""
    torch.set_num_threads(job.threads)
    rows = Rows(job)
    start = time.perf_counter()
    limit = math.inf if minutes is None else minutes * 60  # a trial that is running ends then too, as others' do
    found: list[Trial] = []

    def objective(trial: optuna.Trial) -> float:
        params = {name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in SPACE.items()}
        one = Trial(params, "failed")
        found.append(one)
        for value, one.seconds in timed(epochs(copy.deepcopy(rows.model), rows, params, job)):
            one.curve.append(value)
            trial.report(value, len(one.curve))
            late = time.perf_counter() - start > limit
            if len(one.curve) < job.epochs and (late or (pruned and trial.should_prune())):
                one.state = "stopped"
                raise optuna.TrialPruned()
        one.state = "finished"
        return max(one.curve)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(GRACE, REDUCTION) if pruned else optuna.pruners.NopPruner()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    study.enqueue_trial(USUAL)
    study.optimize(objective, n_trials=trials, timeout=limit, catch=(FloatingPointError,))
    return found, time.perf_counter() - start
