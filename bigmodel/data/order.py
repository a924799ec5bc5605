"""Which samples form which step: pure functions of (seed, epoch, step). There is no state to save, and nothing to skip.

An epoch is a pseudo-random permutation of the samples. It is walked in windows of `bucket` batches; a window is sorted
by length and cut into batches, which then come in random order: batches hold texts of like length, epochs differ, and a
step costs its window, not the data set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
_ROUNDS = 4  # of a Feistel network: three make a pseudo-random permutation (Luby & Rackoff, 1988, doi:10.1137/0217022)


def generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The random numbers of one sample, or one window, in one epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, (epoch << 40) | number], dtype=np.uint64)))


def permute(positions: Ids, size: int, seed: int, epoch: int) -> Ids:
    """Positions in the order of an epoch -> sample ids: a permutation of range(size), computed only where it is asked.

    A balanced Feistel network over the next power of four, walked again while it leaves the range (Black & Rogaway,
    2002, doi:10.1007/3-540-45760-7_9).
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = generator(seed, epoch, 0).integers(0, 2**63, _ROUNDS, dtype=np.uint64)
    ids = _feistel(positions.astype(np.uint64), half, low, keys)
    while (outside := ids >= size).any():
        ids[outside] = _feistel(ids[outside], half, low, keys)
    return ids.astype(np.int64)


def _feistel(x: NDArray[np.uint64], half: np.uint64, low: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    left, right = x >> half, x & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << half) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014, doi:10.1145/2714064.2660195)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """The batches of a run. `lengths` (N,) may be memory-mapped; `batch_size` counts samples over all workers."""

    def __init__(self, lengths: NDArray[Any], batch_size: int, bucket: int, seed: int) -> None:
        self.lengths, self.batch_size, self.bucket, self.seed = lengths, batch_size, bucket, seed
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        self._window: tuple[int, int] = (-1, -1)
        self._batches: list[Ids] = []

    def batch(self, step: int) -> Ids:
        """Sample ids (B,) of optimiser step `step`, counted from 0 over all epochs; one of an epoch may be short."""
        epoch, place = divmod(step, self.steps_per_epoch)
        window, place = divmod(place, self.bucket)
        if self._window != (epoch, window):
            self._batches, self._window = self._cut(epoch, window), (epoch, window)
        return self._batches[place]

    def _cut(self, epoch: int, window: int) -> list[Ids]:
        size = self.bucket * self.batch_size
        positions = np.arange(window * size, min((window + 1) * size, len(self.lengths)))
        ids = permute(positions, len(self.lengths), self.seed, epoch)
        if self.bucket > 1:
            ids = ids[np.argsort(self.lengths[ids], kind="stable")]
        cut = np.split(ids, range(self.batch_size, len(ids), self.batch_size))
        return [cut[i] for i in generator(self.seed, epoch, 1 + window).permutation(len(cut))]


def shard(batch: Ids, rank: int, world: int) -> Ids:
    """A worker's part of a batch: every `world`-th sample, so that all parts are of like length."""
    return batch[rank::world]
