"""How population-based training changes the values of a trial that takes over another's weights.

Jaderberg et al., 2017, arXiv:1711.09846: each value is multiplied by 0.8 or 1.25, here on the scale of its range.
Values that shape the weights stay those of the weights' owner.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from optuna.distributions import FloatDistribution

from tune_jobs.space import Space

FACTORS = (0.8, 1.25)
MAY_CHANGE = ("optim.", "data.augment.", "train.label_smoothing")


def explorer(space: Space, seed: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """-> what Ray Tune calls with the config of the trial that is taken over."""
    rng = random.Random(seed)

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        params = dict(config["own"]["params"])
        for name, found in space.items():
            distribution = found.distribution
            if name not in params or not name.startswith(MAY_CHANGE) or not isinstance(distribution, FloatDistribution):
                continue
            drawn, low, high = found.drawn(params[name]), distribution.low, distribution.high
            if distribution.log:
                drawn *= rng.choice(FACTORS)
            else:
                drawn += rng.choice((-0.2, 0.2)) * (high - low)
            params[name] = found.value(min(max(drawn, low), high))
        return {**config, "own": {**config["own"], "params": params}}

    return explore
