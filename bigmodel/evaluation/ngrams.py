"""What a language model of characters has to beat: counts of the last characters, in seconds.

p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h)), with t(h) the number of different characters seen after h, and h'
the history without its first character (Witten & Bell, 1991, doi:10.1109/18.87000); at the bottom all are as likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

ORDER = 6
MOST = 2_000_000
"""Characters of the training texts that are counted: more cost minutes."""
Ids = NDArray[np.int64]


def nats(training: Iterable[str], texts: Sequence[str], order: int = ORDER) -> tuple[float, int, int]:
    """Of all characters of the texts, each text from its beginning. -> sum, how many characters, how many were counted

    A character that training does not have has a place of its own in the alphabet.
    """
    taught = _first(training, MOST)
    alphabet = {character: i for i, character in enumerate(sorted(set(taught)))}
    size = len(alphabet) + 1
    if size**order >= 2**62:
        order = max(1, int(math.log(2**62) / math.log(size)))
    known = np.fromiter((alphabet[c] for c in taught), np.int64, len(taught))
    asked = [np.fromiter((alphabet.get(c, size - 1) for c in text), np.int64, len(text)) for text in texts if text]
    lengths = np.concatenate([np.arange(len(ids)) for ids in asked])  # characters before each in its own text
    ids = np.concatenate(asked)
    p = np.full(len(ids), 1 / size)
    for n in range(min(order, len(taught))):
        p = np.where(lengths >= n, _refine(known, ids, n, size, p), p)
    return float(-np.log(p).sum()), len(ids), len(taught)


def _refine(known: Ids, ids: Ids, n: int, size: int, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(c | n characters before), from p(c | n - 1 characters before)."""
    grams, histories = np.unique(_codes(known, n + 1, size), return_counts=True)
    before, first, kinds = np.unique(grams // size, return_index=True, return_counts=True)
    totals = np.add.reduceat(histories, first)
    wanted = np.zeros(len(ids), np.int64)
    wanted[n:] = _codes(ids, n + 1, size)
    seen = _looked_up(grams, histories, wanted)
    history = wanted // size
    number, different = _looked_up(before, totals, history), _looked_up(before, kinds, history)
    found: NDArray[np.float64] = np.where(
        number > 0, (seen + different * lower) / np.maximum(number + different, 1), lower
    )
    return found


def _codes(ids: Ids, length: int, size: int) -> Ids:
    """The number of each run of `length` characters."""
    codes = np.zeros(max(len(ids) - length + 1, 0), np.int64)
    for i in range(length):
        codes = codes * size + ids[i : i + len(codes)]
    return codes


def _looked_up(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Ids = np.where(keys[at] == wanted, values[at], 0)
    return found


def _first(texts: Iterable[str], most: int) -> str:
    parts, length = [], 0
    for text in texts:
        parts.append(text)
        length += len(text)
        if length >= most:
            break
    return "".join(parts)
