"""A random choice of things that come one after the other, however many: the same each time."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def sample(items: Iterable[T], most: int) -> list[T]:
    """All items, in their order; a random choice of `most` of them where there are more: reservoir sampling (Vitter,
    1985, algorithm R)."""
    chosen: list[T] = []
    rng = random.Random(0)
    for number, item in enumerate(items):
        if number < most:
            chosen.append(item)
        elif (place := rng.randint(0, number)) < most:
            chosen[place] = item
    return chosen
