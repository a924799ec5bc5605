"""What integrated gradients explain of a label, and how many points on the way are enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TOLERANCE = 0.01  # of the change that the weights must sum to, or of a unit where the change is smaller


def log_odds(logits: Tensor, target: int) -> Tensor:
    """Of one label against all others together: logits (P, K) -> (P,)"""
    import torch

    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
    return logits[:, target] - others.logsumexp(1)


def refined(
    attribute: Callable[[int], tuple[T, float]], change: float, steps: int, most: int, unit: float = 1.0
) -> tuple[T, float]:
    """Weights by so many points, twice as many, and so on, until their sum is right or there are `most`.

    attribute  number of points -> weights, how far their sum is off
    change     what they must sum to
    """
    while True:
        weights, off = attribute(steps)
        if off <= TOLERANCE * max(unit, abs(change)) or steps >= most:
            return weights, off
        steps *= 2
