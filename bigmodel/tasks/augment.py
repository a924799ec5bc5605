"""Random changes to the tokens of a training text. The generator is a function of (seed, epoch, sample id)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigmodel.errors import ConfigError

Ids = NDArray[np.int32]


def token_dropout(ids: Ids, rng: np.random.Generator, rate: float) -> Ids:
    """Each token is left out with probability `rate`, but one always stays
    (Iyyer et al., 2015, doi:10.3115/v1/P15-1162)."""
    keep = rng.random(len(ids)) >= rate
    if len(ids) and not keep.any():
        keep[rng.integers(len(ids))] = True
    return ids[keep]


def swap(ids: Ids, rng: np.random.Generator, rate: float) -> Ids:
    """Each token changes places with its right neighbour with probability `rate`, one half at most, as none moves twice
    (random swap; Wei & Zou, 2019, https://arxiv.org/abs/1901.11196)."""
    rate = min(rate, 0.5)
    free = rng.random(max(len(ids) - 1, 0)) < rate / (1 - rate)  # of those whose left neighbour has not just moved
    free[:1] &= rng.random() < 1 - rate  # the first has none
    left, last = [], -2
    for i in np.flatnonzero(free).tolist():
        if i > last + 1:
            left.append(last := i)
    at = np.array(left, dtype=np.intp)
    ids = ids.copy()
    ids[at], ids[at + 1] = ids[at + 1], ids[at]
    return ids


def mask(ids: Ids, rng: np.random.Generator, rate: float, unknown: int | None) -> Ids:
    """Each token becomes the unknown token with probability `rate`, as rare words are at prediction. ConfigError where
    the tokenizer has none."""
    if unknown is None:
        raise ConfigError(f"data.augment.mask is {rate}, and this tokenizer has no unknown token: take token_dropout")
    return np.where(rng.random(len(ids)) < rate, np.int32(unknown), ids)
