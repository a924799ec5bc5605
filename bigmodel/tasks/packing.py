"""Documents as one stream of tokens, cut into windows of like length: no token is lost, and none is padding.

The stream is never built: a window is a few slices of the mapped samples. Every token but the first of a document is
predicted once an epoch, from its own document alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel.errors import DataError

Ids = NDArray[np.int64]


class Packed:
    """Windows of `size` targets. Sample i: `input_ids` (size + 1,), whose last one is only a target, and `starts`, the
    places in the window where another document, or another part of one, begins."""

    def __init__(self, parts: Sequence[tuple[NDArray[Any], NDArray[np.int64]]], blocks: NDArray[np.int64], size: int):
        """parts   (tokens, where each block begins and ends) of each file
        blocks  (number << 2 | edges) of each block, as BLOCK of `tasks.base` has it
        """
        self._tokens = [tokens for tokens, _ in parts]
        self._ends = [ends for _, ends in parts]
        self._begins = np.cumsum([0, *(len(tokens) for tokens in self._tokens)])
        starts = np.concatenate([ends[:-1] + begin for (_, ends), begin in zip(parts, self._begins, strict=False)])
        continues = np.zeros(len(blocks), bool)
        continues[1:] = (blocks[1:] >> 2 == (blocks[:-1] >> 2) + 1) & (blocks[1:] & 1 == 0)
        self._starts = starts[~continues]
        self.size, self.num_tokens = size, int(self._begins[-1])
        if self.num_tokens < 2:
            raise DataError("the training texts hold fewer than two tokens: there is nothing to predict")
        count = -(-(self.num_tokens - 1) // size)
        self.lengths = np.full(count, size, np.int32)
        self.lengths[-1] = self.num_tokens - 1 - (count - 1) * size

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, ids: Any) -> list[dict[str, Any]]:
        return [self._window(int(i)) for i in ids]

    def rows(self, ids: Any) -> NDArray[np.int64]:
        """The numbers of the blocks that the windows show the model, each once."""
        firsts = np.cumsum([0, *(len(ends) - 1 for ends in self._ends)])
        found = []
        for i in map(int, ids):
            for part, begin, end in self._pieces(i * self.size, i * self.size + int(self.lengths[i])):
                ends = self._ends[part]
                first, last = np.searchsorted(ends, begin, "right") - 1, np.searchsorted(ends, end)
                found.append(np.arange(first, last) + firsts[part])
        return np.unique(np.concatenate(found))

    def _window(self, i: int) -> dict[str, Any]:
        begin = i * self.size
        end = min(begin + self.size + 1, self.num_tokens)
        first, last = np.searchsorted(self._starts, [begin + 1, end])
        return {"input_ids": self._slice(begin, end), "starts": self._starts[first:last] - begin}

    def _slice(self, begin: int, end: int) -> NDArray[Any]:
        """Tokens of the stream."""
        found = [self._tokens[part][start:stop] for part, start, stop in self._pieces(begin, end)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(file, begin, end) of a slice of the stream, over as many files as it lies in."""
        part = int(np.searchsorted(self._begins, begin, "right")) - 1
        while begin < end:
            offset = int(self._begins[part])
            stop = min(end, int(self._begins[part + 1]))
            yield part, begin - offset, stop - offset
            begin, part = stop, part + 1
