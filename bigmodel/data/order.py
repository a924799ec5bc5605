"""Which samples form which step: pure functions of (seed, epoch, step). There is no state to save, and nothing to skip.

An epoch is a pseudo-random permutation of the samples. It is walked in windows of `bucket` batches; a window is sorted
by length and cut into batches, of as many samples or of about as many tokens, which then come in random order: batches
hold texts of like length, epochs differ, and a step costs its window, not the data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
REAL = 0.95  # of the tokens of a batch that is cut by tokens, the part expected to be no padding
_ROUNDS = 4  # of a Feistel network: three make a pseudo-random permutation (Luby & Rackoff, 1988, doi:10.1137/0217022)


def generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The random numbers of one sample, or one window, in one epoch."""
    return np.random.Generator(np.random.Philox(key=np.array(_key(seed, epoch, number), dtype=np.uint64)))


def generators(seed: int, epoch: int, numbers: Iterable[int]) -> Iterator[np.random.Generator]:
    """`generator` of one number after another, in a fifth of the time: it is one generator that is set anew, so draw
    from each before the next is asked for."""
    bits = np.random.Philox(key=0)
    made, fresh = np.random.Generator(bits), bits.state
    for number in numbers:
        fresh["state"]["key"][:] = _key(seed, epoch, number)
        bits.state = fresh
        yield made


def _key(seed: int, epoch: int, number: int) -> tuple[int, int]:
    return seed, (epoch << 40) | number


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
    """The batches of a run, of `batch_size` samples over all workers, or of about `batch_tokens` tokens with their
    padding. `lengths` may be memory-mapped: (N,), or (N, S) where a sample has S sides, each padded by itself.

    So many tokens are not a bound: a window has as many samples as `bucket` batches hold on average, and is cut into
    exactly `bucket` batches of like size, so that which window a step belongs to stays arithmetic.
    """

    def __init__(self, lengths: NDArray[Any], batch_size: int, bucket: int, seed: int, batch_tokens: int = 0) -> None:
        self.lengths, self.bucket, self.seed, self.batch_tokens = lengths, bucket, seed, batch_tokens
        self.batch_size = batch_size
        if batch_tokens:
            mean = float(lengths.sum()) / max(len(lengths), 1)  # tokens of a sample, all sides
            self.batch_size = max(1, int(REAL * batch_tokens / max(mean, 1.0)))
        self.steps_per_epoch = -(-len(lengths) // self.batch_size)
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
            ids = ids[by_length(self.lengths[ids])]
        places = list(range(self.batch_size, len(ids), self.batch_size))
        if self.batch_tokens and self.bucket > 1:
            places = even_cuts(self.lengths[ids], len(places) + 1)
        cut = np.split(ids, places)
        return [cut[i] for i in generator(self.seed, epoch, 1 + window).permutation(len(cut))]


def by_length(lengths: NDArray[Any]) -> Ids:
    """The places of samples in an order in which neighbours are of like length. Of two sides: by the longer one, and
    where it is the same by how much the first is longer, now rising, now falling, so that it hardly jumps between."""
    if lengths.ndim == 1:
        return np.argsort(lengths, kind="stable")
    longer = lengths.max(1)
    apart = lengths[:, 0].astype(np.int64) - lengths[:, -1]
    _, level = np.unique(longer, return_inverse=True)
    return np.lexsort((np.where(level % 2, -apart, apart), longer))


def even_cuts(lengths: NDArray[Any], count: int) -> list[int]:
    """Where to cut samples in their order into `count` batches, so that the largest has as few tokens, with padding, as
    can be: the smallest limit with which filling one batch after the other needs no more batches."""
    sides = lengths.reshape(len(lengths), -1).tolist()
    low, high = 0, len(sides) * sum(map(max, zip(*sides, strict=True)))
    while low + 1 < high:
        limit = (low + high) // 2
        low, high = (low, limit) if len(_fill(sides, limit)) < count else (limit, high)
    cuts = _fill(sides, high)
    while len(cuts) < count - 1:  # fewer were enough: the one with the most samples is halved
        ends = [0, *cuts, len(sides)]
        widest = max(range(len(ends) - 1), key=lambda i: ends[i + 1] - ends[i])
        cuts.insert(widest, (ends[widest] + ends[widest + 1]) // 2)
    return cuts


def _fill(sides: list[list[int]], limit: int) -> list[int]:
    """Where batches begin, but the first, that take samples while they stay within the limit; one alone may exceed
    it."""
    cuts, start = [], 0
    longest = [0] * len(sides[0])
    for i, lengths in enumerate(sides):
        longest = [max(pair) for pair in zip(longest, lengths, strict=True)]
        if i > start and (i + 1 - start) * sum(longest) > limit:
            cuts.append(i)
            start, longest = i, lengths
    return cuts


def shard(batch: Ids, rank: int, world: int) -> Ids:
    """A worker's part of a batch: every `world`-th sample, so that all parts are of like length."""
    return batch[rank::world]
