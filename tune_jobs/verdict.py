"""Whether the winner beats the default by more than noise: repeated with the same seeds, and on the test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from bigmodel.evaluation.metrics import bootstrap_interval, mcnemar
from bigmodel.tasks.base import Goal

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Of the values: differences nearer to each other are the same."""
Values = Mapping[str, Mapping[int, float]]
"""Name of a candidate -> seed -> its best value on the validation rows, NaN where it failed. One that had failed in the
search, and was not repeated, has no seed."""
Outcome = Literal["better", "noise", "worse", "default", "unknown"]


@dataclass(frozen=True)
class Difference:
    """To the default, seed by seed. Positive is better, whichever way the goal goes."""

    seeds: list[int]
    """Those that both have a value with."""
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    """Student's t interval of 95 %; None with fewer than two seeds, or where all differences are the same."""


@dataclass(frozen=True)
class Verdict:
    winner: str
    default: str
    outcome: Outcome
    """default: it is the winner itself; noise: the interval holds 0; unknown: there is none."""
    words: str
    difference: Difference
    """Of the winner."""
    means: dict[str, float | None] = field(default_factory=dict)
    """Over the seeds of each candidate, best first."""
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    """What they are the means of: candidate -> seed -> value."""
    failed: dict[str, list[int]] = field(default_factory=dict)
    """Seeds with which a candidate has no value though another has."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(values: Values, default: str, goal: Goal) -> Verdict:
    """The winner is the candidate with fewest failed seeds, and of those the one with the best mean over its seeds;
    never one that was not repeated.

    The seed by which the search chose its candidates flatters them. Of 16 equal trials, with the best two repeated to 3
    seeds, 7 in 100 searches end with "better" where that seed is among the values, 4 in 100 where it is left out
    (5 with "better" or "worse" is what 95 % means). Where the trials differ in a few of 100 rows, it is no more than 3
    in 100, with 2 seeds as with 3.
    """
    assert default in values, f"the default is not among {sorted(values)}"
    good = {name: {seed: v for seed, v in own.items() if math.isfinite(v)} for name, own in values.items()}
    seeds = sorted({seed for own in values.values() for seed in own})
    failed = {name: [seed for seed in seeds if seed not in own] for name, own in good.items()}
    means = {name: sum(own.values()) / len(own) if own else math.nan for name, own in good.items()}
    sign = 1 if goal.mode == "max" else -1
    order = sorted(
        good,
        key=lambda name: (
            not values[name],
            len(failed[name]),
            -sign * means[name] if good[name] else 0.0,
            name != default,
        ),
    )

    winner = order[0]
    difference = compare_seeds(good[winner], good[default], sign)
    outcome = _outcome(difference, winner == default)
    return Verdict(
        winner,
        default,
        outcome,
        _words(winner, default, outcome, difference, values, good, failed, goal),
        difference,
        {name: means[name] if good[name] else None for name in order},
        {name: good[name] for name in order},
        {name: missing for name, missing in failed.items() if missing},
    )


def compare_seeds(ours: Mapping[int, float], theirs: Mapping[int, float], sign: int = 1) -> Difference:
    """Paired by seed: what the seeds share, such as the order of the rows, cancels out.

    Student's interval (1908, doi:10.1093/biomet/6.1.1) takes the differences for normal, of a spread that they
    themselves tell. Accuracies over n rows come in steps of 1/n: a few differences may fall on the same step by chance,
    and their spread of 0 is no estimate of noise. So there is no interval then.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return Difference([])
    differences = [sign * (ours[seed] - theirs[seed]) for seed in seeds]
    mean = float(np.mean(differences))
    if len(seeds) < 2:
        return Difference(seeds, mean)
    if np.ptp(differences) <= ROUNDING * max(abs(side[seed]) for side in (ours, theirs) for seed in seeds):
        return Difference(seeds, mean)
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(seeds))
    half = float(stdtrit(len(seeds) - 1, (1 + CONFIDENCE) / 2)) * error
    return Difference(seeds, mean, mean - half, mean + half)


def compare_rows(winner: Sequence[str], default: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Labels answered to the same rows: the difference in accuracy, a bootstrap interval over the rows, McNemar's p."""
    first = sum(w == right != d for w, d, right in zip(winner, default, wanted, strict=True))
    second = sum(d == right != w for w, d, right in zip(winner, default, wanted, strict=True))
    n = len(wanted)
    low, high = bootstrap_interval(lambda drawn: (drawn[:, 0] - drawn[:, 1]) / n, [first, second, n - first - second])
    difference, p = (first - second) / n, mcnemar(first, second)
    if first == second:
        words = f"On the {n:,} test rows both are right equally often"
    else:
        side = "better" if first > second else "worse"
        noise = "beyond noise" if p < 1 - CONFIDENCE else "within noise"
        points = f"{abs(difference) * 100:.2f} points"
        words = f"On the {n:,} test rows the winner is {side} than the default by {points}, {noise}"
    shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
    return {
        "rows": n,
        "only_winner_right": first,
        "only_default_right": second,
        "difference": difference,
        "interval": [low, high],
        "p": p,
        "words": f"{words} ({low * 100:+.2f} to {high * 100:+.2f}; McNemar {shown}).",
    }


def _outcome(difference: Difference, is_default: bool) -> Outcome:
    if is_default:
        return "default" if difference.seeds else "unknown"
    if difference.low is None or difference.high is None:
        return "unknown"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "noise"


def _words(
    winner: str,
    default: str,
    outcome: Outcome,
    difference: Difference,
    values: Values,
    good: Values,
    failed: Mapping[str, list[int]],
    goal: Goal,
) -> str:
    if not any(good.values()):
        return "No repetition has a value, so nothing is known."
    sentences = [_sentence(winner, default, outcome, difference, good, goal)]
    for name, missing in failed.items():
        with_seeds = (
            f"seed{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if good[name] else "every seed"
        )
        if not values[name]:
            sentences.append(f"{_title(name)} failed in the search, and was not repeated.")
        elif missing:
            sentences.append(f"{_title(name)} failed with {with_seeds}.")
    return " ".join(sentences)


def _sentence(winner: str, default: str, outcome: Outcome, difference: Difference, good: Values, goal: Goal) -> str:
    count = len(difference.seeds)
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    if outcome == "default":
        equals = " that failed with as few seeds" if len({len(own) for own in good.values()}) > 1 else ""
        return f"{_title(default)} wins: no other candidate{equals} has a better {goal.metric} on average ({seeds})."
    if not good[default]:
        return f"{_title(winner)} wins, with nothing to compare it to."
    if difference.mean is None or count < 2:
        return f"{_title(winner)} wins, but {seeds} in common with {default} cannot tell it from noise."

    share = goal.mode == "max" and all(0 <= value <= 1 for own in good.values() for value in own.values())
    shown, unit = (_points, "points of ") if share else (_plain, "of ")
    if difference.low is None or difference.high is None:
        gap = f"the same difference to {default} with each of {seeds} ({shown(difference.mean)} {unit}{goal.metric})"
        return f"{_title(winner)} wins, but {gap} cannot tell it from noise."
    low, high = difference.low, difference.high
    if outcome == "noise":
        mean, words = difference.mean, f"{_title(winner)} is no better than noise beside {default}:"
    else:
        mean, words = abs(difference.mean), f"{_title(winner)} is {outcome} than {default} by"
        low, high = (low, high) if outcome == "better" else (-high, -low)
    return f"{words} {shown(mean)} {unit}{goal.metric} ({shown(low)} to {shown(high)}, {seeds})."


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _points(value: float) -> str:
    """Hundredths, as people say of accuracies."""
    return f"{value * 100:.1f}" if abs(value) >= 0.001 or not value else f"{value * 100:.2f}"


def _plain(value: float) -> str:
    return f"{value:.3g}"
