"""Oracles: scikit-learn, scipy, and the definitions written out as loops."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from bigmodel.evaluation import generation, metrics

LABELS = ["bad", "fair", "好", "excellent"]
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=60)


def sample(n=10_000, k=10, right=0.8, seed=0):
    """n wanted labels of k unequal classes, and found ones of which a share is right."""
    rng = np.random.default_rng(seed)
    wanted = (rng.random(n) ** 2 * k).astype(int)
    found = np.where(rng.random(n) < right, wanted, rng.integers(0, k, n))
    return [str(i) for i in found], [str(i) for i in wanted], [str(i) for i in range(k)]


@given(pairs)
def test_accuracy_and_macro_f1_agree_with_scikit_learn(rows):
    found, wanted = zip(*rows, strict=True)
    assert metrics.accuracy(found, wanted) == pytest.approx(sk.accuracy_score(wanted, found))
    assert metrics.macro_f1(found, wanted) == pytest.approx(
        sk.f1_score(wanted, found, average="macro", zero_division=0)
    )


@given(pairs)
def test_confusion_and_per_class_agree_with_scikit_learn(rows):
    found, wanted = zip(*rows, strict=True)
    matrix = metrics.confusion(found, wanted, LABELS)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, np.array([[rows.count((f, w)) for f in LABELS] for w in LABELS]))
    theirs = sk.precision_recall_fscore_support(wanted, found, labels=LABELS, zero_division=0)
    for ours, oracle in zip(metrics.per_class(matrix), theirs, strict=True):
        np.testing.assert_allclose(ours, oracle)


@given(pairs)
def test_metrics_do_not_change_with_the_order_of_the_rows(rows):
    found, wanted = zip(*rows, strict=True)
    again_found, again_wanted = zip(*reversed(rows), strict=True)
    assert metrics.macro_f1(found, wanted) == metrics.macro_f1(again_found, again_wanted)
    assert metrics.accuracy(found, wanted) == metrics.accuracy(again_found, again_wanted)


@given(st.lists(st.sampled_from(LABELS), min_size=1))
def test_perfect_answers_score_one(wanted):
    assert metrics.accuracy(wanted, wanted) == metrics.macro_f1(wanted, wanted) == 1.0


def test_log_loss_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=50)
    wanted = [sorted(LABELS)[i] for i in rng.integers(0, 4, 50)]
    scores = [dict(zip(sorted(LABELS), row, strict=True)) for row in p]
    assert metrics.log_loss(scores, wanted) == pytest.approx(sk.log_loss(wanted, p, labels=sorted(LABELS)))


@pytest.mark.parametrize("scores", [{"a": 0.0, "b": 1.0}, {"b": 1.0}])
def test_log_loss_of_a_certain_mistake_is_finite(scores):
    assert metrics.log_loss([scores], ["a"]) == pytest.approx(12 * np.log(10))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_calibration_error_follows_its_definition(rows):
    expected = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        inside = [(p, hit) for p, hit in rows if low < p <= high or (b == 0 and p == 0)]
        if inside:
            sure, right = np.mean(inside, axis=0)
            expected += len(inside) / len(rows) * abs(sure - right)
    confidence, right = zip(*rows, strict=True)
    assert metrics.calibration_error(confidence, right) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("confidence", "right", "error"),
    [([1.0, 1.0], [True, True], 0.0), ([1.0, 1.0], [False, False], 1.0), ([0.75] * 4, [True, True, True, False], 0.0)],
)
def test_calibration_error_knows_the_clear_cases(confidence, right, error):
    assert metrics.calibration_error(confidence, right) == pytest.approx(error)


def test_bootstrap_draws_what_a_loop_over_rows_would_draw():
    found, wanted, labels = sample(n=400, k=4)
    rng = np.random.default_rng(1)
    loop = []
    for _ in range(2000):
        drawn = rng.integers(0, 400, 400)
        f, w = [found[i] for i in drawn], [wanted[i] for i in drawn]
        loop.append(metrics.macro_f1(f, w))
    matrix = metrics.confusion(found, wanted, labels)
    np.testing.assert_allclose(
        metrics.macro_f1_interval(matrix, resamples=4000), np.quantile(loop, [0.025, 0.975]), atol=0.006
    )


@pytest.mark.parametrize(("hits", "n"), [(1800, 2000), (200, 200), (0, 3), (1, 1), (57, 80)])
def test_accuracy_interval_is_that_of_the_binomial(hits, n):
    oracle = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    interval = metrics.accuracy_interval(np.array([[hits, n - hits], [0, 0]]))
    assert interval == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert 0 <= interval[0] < interval[1] <= 1


def test_mean_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).exponential(size=4000)
    low, high = metrics.mean_interval(values)
    half = 1.96 * values.std() / 4000**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


@pytest.mark.parametrize("name", ["losses", "one outlier", "two kinds"])
def test_the_interval_of_a_mean_is_that_of_a_bootstrap_over_its_rows(name):
    rng = np.random.default_rng(0)
    values = {
        "losses": -np.log(rng.beta(4, 0.5, 500)),
        "one outlier": np.concatenate([rng.exponential(0.1, 499), [27.6]]),
        "two kinds": (rng.random(500) < 0.1).astype(float),
    }[name]
    means = [values[rng.integers(0, 500, 500)].mean() for _ in range(4000)]
    spread = np.std(means)
    np.testing.assert_allclose(
        metrics.mean_interval(values, resamples=4000), np.quantile(means, [0.025, 0.975]), atol=0.2 * spread
    )


@pytest.mark.parametrize("values", [[0.25], [0.1, 0.1, 0.1], [0.0, 5e-324]])
def test_the_interval_of_equal_values_is_that_value(values):
    assert metrics.mean_interval(np.array(values)) == pytest.approx((values[0], values[0]))


def test_a_million_values_cost_no_more_than_a_thousand():
    values = np.random.default_rng(0).exponential(size=1_000_000)
    start = time.perf_counter()
    low, high = metrics.mean_interval(values)
    assert time.perf_counter() - start < 3.0  # 0.25 s on a quiet machine
    assert low < values.mean() < high


def test_the_interval_of_a_ratio_is_drawn_in_little_memory():
    rng = np.random.default_rng(0)
    under = rng.integers(1, 9, 20_000).astype(np.float64)
    over = under * rng.normal(2, 0.5, 20_000)
    tracemalloc.start()
    low, high = generation._ratio_interval(over, under)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64_000_000, "a thousand draws of every row at once are 160 MB"
    assert low < over.sum() / under.sum() < high
    spread = np.sqrt(np.mean((over - under * over.sum() / under.sum()) ** 2) / 20_000) / under.mean()
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


@given(pairs)
def test_intervals_are_ordered_repeatable_and_inside_zero_and_one(rows):
    found, wanted = zip(*rows, strict=True)
    matrix = metrics.confusion(found, wanted, LABELS)
    low, high = metrics.macro_f1_interval(matrix, resamples=50)
    assert 0 <= low <= high <= 1
    assert metrics.macro_f1_interval(matrix, resamples=50) == (low, high)


@pytest.mark.parametrize("k", [10, 300])
def test_bootstrap_of_ten_thousand_rows_takes_well_under_a_second(k):
    found, wanted, labels = sample(k=k)
    matrix = metrics.confusion(found, wanted, labels)
    start = time.perf_counter()
    low, high = metrics.macro_f1_interval(matrix)
    assert time.perf_counter() - start < 2.0  # 0.03 s and 0.5 s on a quiet machine
    assert low < metrics.macro_f1_of(matrix) < high


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_scipys_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert metrics.mcnemar(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_importing_metrics_imports_nothing_heavy():
    heavy = "{'torch', 'sklearn', 'scipy', 'pandas', 'transformers'}"
    code = f"import bigmodel.evaluation.metrics, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
