"""Dropout whose random bits are drawn in bulk: on a CPU torch draws them one by one, a quarter of an encoder's step."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 1 << 16  # a rate is rounded to this fraction, and what stays is scaled by the rounded rate


class BulkDropout:
    """Inside `with`, every dropout of a CPU tensor draws its bits here: they follow from the seeds and earlier calls.

    Neither torch's generator nor the number of threads matters. It stands in for `torch.nn.functional.dropout`, which
    modules look up at each call: torch's own way, a TorchFunctionMode, sees every function that is called, for 15 us
    each, 3 % of a small network's step. One thread of a process trains.
    """

    def __init__(self, *seeds: int) -> None:
        self._seeds = seeds
        self._bits: np.random.SFC64 | None = None

    def __enter__(self) -> BulkDropout:
        self._usual = functional.dropout
        functional.dropout = self._dropout
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        functional.dropout = self._usual

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        dropped = min(round(p * LEVELS), LEVELS - 1)
        keep = self._draw(input.numel()).view(input.shape) >= dropped - LEVELS // 2
        return input * keep.to(input.dtype).mul_(LEVELS / (LEVELS - dropped))

    def _draw(self, count: int) -> Tensor:
        """Uniform int16 (count,)."""
        if self._bits is None:  # seeded where it is needed: that takes as long as a small layer
            self._bits = np.random.SFC64(self._seeds)
        words: Any = self._bits.random_raw(-(-count // 4))
        return torch.from_numpy(words.view(np.int16)[:count])
