"""Which of the tested rows stand in the training rows too, of however many: 8 bytes a tested row stand for its content,
by which one of ten billion pairs of others would be taken for the same once in two billion times."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bigmodel.data.cleaned import key

AT_ONCE = 8192


class Overlap:
    def __init__(self, tested: Iterable[str]) -> None:
        """`tested` are the contents of the rows asked about, in their order."""
        keys = np.fromiter(map(key, tested), np.uint64)
        self._keys, self._of = np.unique(keys, return_inverse=True)
        self._seen, self._waiting = np.zeros(len(self._keys), bool), list[int]()
        self.num_seen = 0

    def see(self, content: str) -> None:
        """A training row's."""
        self._waiting.append(key(content))
        self.num_seen += 1
        if len(self._waiting) == AT_ONCE:
            self._compare()

    def found(self) -> NDArray[np.bool_]:
        """(N,): which of the tested rows have been seen."""
        self._compare()
        return self._seen[self._of]

    def _compare(self) -> None:
        keys, self._waiting = np.array(self._waiting, np.uint64), []
        at = np.searchsorted(self._keys, keys)
        inside = at < len(self._keys)
        at, keys = at[inside], keys[inside]
        self._seen[at[self._keys[at] == keys]] = True
