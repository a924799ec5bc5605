"""Numbers that say how good answers are. numpy only, so that importing this costs nothing.

Shapes: N rows, K labels, R resamples, C kinds of row (rows that count alike, such as the cells of a confusion matrix).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import chain
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Numbers = Sequence[float] | Floats

SMALLEST = 1e-12  # the least probability a loss is taken of: one certain mistake must not make the mean infinite


def accuracy(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of the rows whose label was found."""
    _check_rows(found, wanted)
    return sum(f == w for f, w in zip(found, wanted, strict=True)) / len(wanted)


def macro_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean F1 over the labels that were found or wanted at all, each label counting alike."""
    labels = sorted({*found, *wanted})
    return float(macro_f1_of(confusion(found, wanted, labels)))


def log_loss(scores: Iterable[Mapping[str, float]], wanted: Sequence[str]) -> float:
    """Mean -log p of the wanted label, in nats; a label without a score has p = 0. No p is taken below 1e-12."""
    return float(log_losses(scores, wanted).mean())


def log_losses(scores: Iterable[Mapping[str, float]], wanted: Sequence[str]) -> Floats:
    """-log p of each row's wanted label, in nats: (N,)."""
    p = np.fromiter((score.get(label, 0.0) for score, label in zip(scores, wanted, strict=True)), np.float64)
    _check_rows(p, wanted)
    losses: Floats = -np.log(p.clip(SMALLEST, 1.0))
    return losses


def area_under_curve(scores: Iterable[Mapping[str, float]], wanted: Sequence[str]) -> float | None:
    """Area under the ROC curve: how often a row of a label is scored above one of another, ties counting half. Of two
    labels one number; of more the mean over them, each against the rest. None where the rows show less than two.
    """
    rows = iter(scores)
    first = next(rows)
    every = np.fromiter((score[label] for score in chain([first], rows) for label in first), np.float64)
    every = every.reshape(-1, len(first))  # (N, K)
    _check_rows(every, wanted)
    areas = []
    for column, label in list(zip(every.T, first, strict=True))[len(first) == 2 :]:
        hits = np.fromiter((w == label for w in wanted), bool, len(wanted))
        if 0 < hits.sum() < len(hits):
            areas.append(_area(column, hits))
    return sum(areas) / len(areas) if areas else None


def _area(scores: Floats, hits: NDArray[np.bool_]) -> float:
    """Mann & Whitney, 1947, doi:10.1214/aoms/1177730491, from mean ranks."""
    _, kind, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[kind]
    n = int(hits.sum())
    return float((ranks[hits].sum() - n * (n + 1) / 2) / (n * (len(hits) - n)))


def rmse(found: Numbers, wanted: Numbers) -> float:
    """Root of the mean squared distance, in the target's unit."""
    return float(np.sqrt(np.square(distances(found, wanted)).mean()))


def mae(found: Numbers, wanted: Numbers) -> float:
    """Mean absolute distance, in the target's unit."""
    return float(np.abs(distances(found, wanted)).mean())


def r2(found: Numbers, wanted: Numbers) -> float:
    """1 - squared distances / squared distances of the rows' own mean. Where all rows want one number: 0, or 1 if it
    was found."""
    left, spread = np.square(distances(found, wanted)).sum(), np.square(np.asarray(wanted) - np.mean(wanted)).sum()
    return float(1 - left / spread) if np.ptp(wanted) else float(left == 0)


def rmse_interval(found: Numbers, wanted: Numbers, **options: Any) -> tuple[float, float]:
    """`bootstrap_interval` of `rmse`."""
    low, high = mean_interval(np.square(distances(found, wanted)), **options)
    return math.sqrt(low), math.sqrt(high)


def r2_interval(found: Numbers, wanted: Numbers, **options: Any) -> tuple[float, float]:
    """`bootstrap_interval` of `r2`, the mean of the rows drawn anew each time."""
    left, target = np.square(distances(found, wanted)), np.asarray(wanted, np.float64)
    target = target - target.mean()

    def statistic(drawn: Floats) -> Floats:
        squares = drawn @ np.square(target)
        spread = squares - np.square(drawn @ target) / len(target)
        differ = spread > SMALLEST * squares  # what is below are the roundings of one number
        share: Floats = np.divide(drawn @ left, spread, where=differ, out=np.ones(len(drawn)))
        return 1 - share

    return bootstrap_interval(statistic, np.ones(len(target), np.int64), **options)


def distances(found: Numbers, wanted: Numbers) -> Floats:
    """Found less wanted: (N,)."""
    _check_rows(found, wanted)
    apart: Floats = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    return apart


def confusion(found: Sequence[str], wanted: Sequence[str], labels: Sequence[str]) -> Counts:
    """How often each label was wanted (row) and found (column): (K, K). KeyError for a label not in `labels`."""
    _check_rows(found, wanted)
    number = {label: i for i, label in enumerate(labels)}
    assert len(number) == len(labels), "a label stands twice"
    cells = _numbers(wanted, number) * len(labels) + _numbers(found, number)
    return np.bincount(cells, minlength=len(labels) ** 2).reshape(len(labels), -1).astype(np.int64, copy=False)


class PerClass(NamedTuple):
    """One number a label. What has no denominator is 0."""

    precision: Floats  # of the rows given this label, the share that wanted it
    recall: Floats  # of the rows that wanted this label, the share that got it
    f1: Floats  # their harmonic mean
    support: Counts  # rows that wanted it


def per_class(matrix: Counts) -> PerClass:
    """Precision, recall, F1 and support of every label, from a confusion matrix (K, K)."""
    hits, wanted, found = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return PerClass(_ratio(hits, found), _ratio(hits, wanted), _ratio(2 * hits, wanted + found), wanted)


def macro_f1_of(matrix: Counts) -> float:
    """`macro_f1` from a confusion matrix (K, K)."""
    hits, wanted, found = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return float(_mean_f1(hits[None], (wanted + found)[None])[0])


def calibration_error(confidence: Numbers, right: Sequence[bool], bins: int = 15) -> float:
    """Expected calibration error: the mean distance between how sure and how right the answers are, in bins of equal
    width over (0, 1], weighted by their rows (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    No interval is given for it: resampling raises it systematically.
    """
    _check_rows(confidence, right)
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    bin_of = (np.ceil(sure * bins) - 1).clip(0, bins - 1).astype(np.int64)
    gaps = np.bincount(bin_of, sure - hit, minlength=bins)  # in each bin: its rows times the distance of the two means
    return float(np.abs(gaps).sum() / len(sure))


Statistic = Callable[[Floats], Floats]  # how often each kind of row was drawn (R, C) -> one number a resample (R,)


def bootstrap_interval(
    statistic: Statistic,
    counts: Sequence[int] | Counts,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap: where `statistic` lies when as many rows are drawn again, with replacement
    (Efron & Tibshirani, 1993, chapter 13). The same seed gives the same interval.

    Rows of one kind are exchangeable, so `counts` (C,) says how many rows there are of each; a resample is then one
    multinomial draw. That is the plain bootstrap over rows, at the cost of C instead of N. Rows all different: ones(N).
    """
    weights = np.asarray(counts, np.float64)
    n, rng = int(weights.sum()), np.random.default_rng(seed)
    assert n > 0, "nothing to draw from"
    chunk = max(1, 2_000_000 // len(weights))  # 16 MB of draws at a time
    drawn = [
        statistic(rng.multinomial(n, weights / n, size=min(chunk, resamples - start)).astype(np.float64))
        for start in range(0, resamples, chunk)
    ]
    low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def accuracy_interval(matrix: Counts, confidence: float = 0.95) -> tuple[float, float]:
    """Of the accuracy, from a confusion matrix (K, K): the score interval of a binomial share (Wilson, 1927,
    doi:10.1080/01621459.1927.10502953). A bootstrap of rows that are all right would know no doubt."""
    hits, n = int(matrix.trace()), int(matrix.sum())
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(hits * (n - hits) / n + z**2 / 4) / (n + z**2)
    return max(0.0, middle - half), min(1.0, middle + half)


def macro_f1_interval(matrix: Counts, **options: Any) -> tuple[float, float]:
    """`bootstrap_interval` of macro F1, from a confusion matrix (K, K)."""
    wanted, found = np.nonzero(matrix)
    return bootstrap_interval(macro_f1_statistic(wanted, found, len(matrix)), matrix[wanted, found], **options)


KINDS = 1000  # of values a mean is resampled from


def mean_interval(values: Floats, **options: Any) -> tuple[float, float]:
    """`bootstrap_interval` of the mean of one number a row (N,).

    Values closer than a thousandth of their range count as one kind, with their own mean: what that takes from the
    variance is at most range^2 / 12e6, and a million rows cost no more than a thousand.
    """
    low, spread = values.min(), float(np.ptp(values)) or 1.0
    kind = ((values - low) / spread * KINDS).astype(np.int64).clip(0, KINDS - 1)
    counts, sums = np.bincount(kind), np.bincount(kind, values)
    occurs = counts > 0
    means = sums[occurs] / counts[occurs]
    return bootstrap_interval(lambda drawn: drawn @ means / len(values), counts[occurs], **options)


def macro_f1_statistic(wanted: Counts, found: Counts, num_labels: int) -> Statistic:
    """Macro F1 of resamples, where the kinds of row are pairs of wanted and found label numbers (C,)."""
    columns = np.eye(num_labels)
    marginal = columns[wanted] + columns[found]  # (C, K): what a row adds to 2 TP + FP + FN of each label
    hit = columns[wanted] * (wanted == found)[:, None]
    return lambda drawn: _mean_f1(drawn @ hit, drawn @ marginal)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two classifiers err equally often, from the rows that only one of them has right
    (McNemar, 1947, doi:10.1007/BF02295996; binomial form)."""
    n = only_first + only_second
    k = np.arange(min(only_first, only_second) + 1)
    log_factorial = np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))
    log_factorial = np.concatenate([[0.0], log_factorial])
    log_p = log_factorial[n] - log_factorial[k] - log_factorial[n - k] - n * math.log(2)
    return float(min(1.0, 2 * np.exp(log_p).sum()))


def _mean_f1(hits: NDArray[Any], marginal: NDArray[Any]) -> Floats:
    """True positives (R, K) and 2 TP + FP + FN (R, K) -> mean F1 (R,) over the labels that occur."""
    occurs = marginal > 0
    f1: Floats = np.divide(2 * hits, marginal, where=occurs, out=np.zeros(marginal.shape))
    mean: Floats = f1.sum(1) / occurs.sum(1)
    return mean


def _ratio(over: Counts, under: Counts) -> Floats:
    quotient: Floats = np.divide(over, under, where=under > 0, out=np.zeros(len(under)))
    return quotient


def _numbers(labels: Sequence[str], number: Mapping[str, int]) -> Counts:
    return np.fromiter((number[label] for label in labels), np.int64, len(labels))


def _check_rows(left: Sized, right: Sized) -> None:
    assert len(left) == len(right), f"{len(left)} answers for {len(right)} rows"
    assert len(right), "there are no rows"
