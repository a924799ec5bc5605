"""Oracles: scipy's paired t-test and binomial test, values by hand, and searches without a best trial."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from bigmodel.tasks.base import Goal
from tune_jobs.verdict import compare_rows, compare_seeds, judge

ACCURACY, LOSS = Goal("accuracy", "max"), Goal("loss", "min")
NAN = math.nan


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9))
def test_the_interval_is_that_of_scipys_paired_t_test(pairs):
    ours, theirs = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    found = compare_seeds(ours, theirs)
    gaps = [a - b for a, b in pairs]
    assert found.mean == pytest.approx(sum(gaps) / len(gaps))
    if np.std(gaps) > 1e-9:
        low, high = ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("gap", [2.0, 0.01, -0.1])
def test_differences_that_are_all_the_same_have_no_interval(gap):
    theirs = {0: 0.80, 1: 0.82, 2: 0.84}
    found = compare_seeds({seed: value + gap for seed, value in theirs.items()}, theirs)
    assert found.mean == pytest.approx(gap) and (found.low, found.high) == (None, None)


BETTER = {"default": {0: 0.85, 1: 0.85, 2: 0.86}, "trial 5": {0: 0.858, 1: 0.856, 2: 0.870}}
# differences 0.008, 0.006, 0.010: mean 0.008, sd 0.002, half width 4.3027 * 0.002 / sqrt(3) = 0.00497


@pytest.mark.parametrize(
    "values, goal, winner, outcome, words",
    [
        (BETTER, ACCURACY, "trial 5", "better",
         "Trial 5 is better than default by 0.8 points of accuracy (0.3 to 1.3, 3 seeds)."),
        ({"default": {0: 0.8, 1: 0.9}, "trial 5": {0: 0.9, 1: 0.81}}, ACCURACY, "trial 5", "noise",
         "Trial 5 is no better than noise beside default: 0.5 points of accuracy (-120.2 to 121.2, 2 seeds)."),
        ({"default": {0: 0.9, 1: 0.9}, "trial 5": {0: 0.8, 1: 0.9}}, ACCURACY, "default", "default",
         "Default wins: no other candidate has a better accuracy on average (2 seeds)."),
        ({"default": {0: 1.5, 1: 2.5}, "trial 5": {0: 1.25, 1: 2.24}}, LOSS, "trial 5", "better",
         "Trial 5 is better than default by 0.255 of loss (0.191 to 0.319, 2 seeds)."),
        ({"default": {0: 1.5, 1: 2.5}, "trial 5": {0: 1.25, 1: 2.25}}, LOSS, "trial 5", "unknown",
         "Trial 5 wins, but the same difference to default with each of 2 seeds (0.25 of loss) cannot tell it from "
         "noise."),
        ({"default": {0: 0.8}, "trial 5": {0: 0.9}}, ACCURACY, "trial 5", "unknown",
         "Trial 5 wins, but 1 seed in common with default cannot tell it from noise."),
        ({"default": {0: NAN, 1: NAN}, "trial 5": {0: 0.9, 1: 0.9}}, ACCURACY, "trial 5", "unknown",
         "Trial 5 wins, with nothing to compare it to. Default failed with every seed."),
        ({"default": {0: NAN}, "trial 5": {0: NAN}}, ACCURACY, "default", "unknown",
         "No repetition has a value, so nothing is known."),
        ({"default": {}, "trial 5": {0: NAN}}, ACCURACY, "trial 5", "unknown",
         "No repetition has a value, so nothing is known."),
        ({"default": {}, "trial 5": {0: 0.8, 1: 0.9}}, ACCURACY, "trial 5", "unknown",
         "Trial 5 wins, with nothing to compare it to. Default failed in the search, and was not repeated."),
        ({"default": {0: 0.8, 1: 0.8}, "trial 5": {0: 0.95, 1: NAN}}, ACCURACY, "default", "default",
         "Default wins: no other candidate that failed with as few seeds has a better accuracy on average (2 seeds). "
         "Trial 5 failed with seed 1."),
        ({"default": {0: 0.9, 1: 0.9, 2: NAN}, "trial 5": {0: 0.8, 1: 0.801, 2: 0.8}}, ACCURACY, "trial 5", "worse",
         "Trial 5 is worse than default by 9.9 points of accuracy (9.3 to 10.6, 2 seeds). "
         "Default failed with seed 2."),
    ],
)  # fmt: skip
def test_the_verdict_in_words(values, goal, winner, outcome, words):
    verdict = judge(values, "default", goal)
    assert (verdict.winner, verdict.outcome, verdict.words) == (winner, outcome, words)
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["words"] == words


def test_the_winner_has_the_best_mean_and_not_the_one_lucky_seed():
    values = {
        "default": {0: 0.5, 1: 0.5, 2: 0.5},
        "trial 1": {0: 0.99, 1: 0.4, 2: 0.4},
        "trial 2": {0: 0.7, 1: 0.7, 2: 0.7},
    }
    verdict = judge(values, "default", ACCURACY)
    assert list(verdict.means) == ["trial 2", "trial 1", "default"]
    assert judge(values, "default", LOSS).winner == "default"


def test_a_candidate_that_diverges_with_one_seed_does_not_win():
    values = {
        "default": {0: 0.5, 1: 0.5},
        "trial 1": {0: 0.9, 1: NAN},
        "trial 2": {0: 0.6, 1: 0.6},
        "trial 3": {1: 0.9},
    }
    verdict = judge(values, "default", ACCURACY)
    assert verdict.winner == "trial 2"
    assert verdict.failed == {"trial 1": [1], "trial 3": [0]}


def test_among_equals_the_default_wins():
    assert judge({"trial 1": {0: 0.5, 1: 0.7}, "default": {0: 0.7, 1: 0.5}}, "default", ACCURACY).winner == "default"


@pytest.mark.parametrize("with_own_seed, expected", [(True, 0.07), (False, 0.04)])
def test_how_often_a_search_without_a_best_trial_finds_one(with_own_seed, expected):
    """The figures of the docstring: the seed that chose the candidates flatters them."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        first = rng.normal(size=16)
        seeds = [0, 1, 2] if with_own_seed else [1, 2]
        trials = [0, *(np.argsort(-first[1:])[:2] + 1)]
        values = {str(t): dict(enumerate([first[t], *rng.normal(size=2)])) for t in trials}
        values = {name: {seed: own[seed] for seed in seeds} for name, own in values.items()}
        found += judge(values, "0", ACCURACY).outcome == "better"
    assert found / 1000 == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_accuracies_of_few_rows_find_no_more(num_seeds):
    """Trials that are equal but for 4 of 100 rows, which each run answers by chance."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        first = rng.binomial(4, 0.5, 16)
        trials = [0, *(np.argsort(-first[1:])[:2] + 1)]
        values = {str(t): dict(enumerate(0.9 + rng.binomial(4, 0.5, num_seeds) / 100)) for t in trials}
        found += judge(values, "0", ACCURACY).outcome == "better"
    assert found / 1000 < 0.04


@given(st.lists(st.tuples(*[st.sampled_from("ab")] * 3), min_size=1, max_size=80))
def test_test_rows_are_compared_row_by_row(rows):
    winner, default, wanted = zip(*rows, strict=True)
    found = compare_rows(winner, default, wanted)
    gaps = np.array([(w == y) - (d == y) for w, d, y in rows], float)
    assert found["difference"] == pytest.approx(gaps.mean())
    disagree = found["only_winner_right"] + found["only_default_right"]
    p = binomtest(found["only_winner_right"], disagree).pvalue if disagree else 1.0
    assert found["p"] == pytest.approx(p)
    assert found["interval"][0] <= found["difference"] + 1e-9 and found["difference"] - 1e-9 <= found["interval"][1]


def test_the_interval_of_test_rows_is_that_of_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    gaps = rng.choice([1, -1, 0], size=500, p=[0.08, 0.05, 0.87])
    found = compare_rows(
        [("a" if g >= 0 else "b") for g in gaps], [("a" if g <= 0 else "b") for g in gaps], ["a"] * 500
    )
    means = [rng.choice(gaps, 500).mean() for _ in range(4000)]
    assert found["interval"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)
    assert found["words"].startswith("On the 500 test rows the winner is better than the default by ")


def test_answers_that_are_the_same_are_said_so():
    assert compare_rows(["a"], ["a"], ["b"])["words"] == (
        "On the 1 test rows both are right equally often (+0.00 to +0.00; McNemar p = 1)."
    )
