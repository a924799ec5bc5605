"""Gradient boosting on the same columns: what a network for tables has to be compared with, as it often is the better
choice (Grinsztajn et al., 2022, https://arxiv.org/abs/2207.08815).

scikit-learn's histogram trees with its own settings (Ke et al., 2017, LightGBM), missing values and categories handled
as such. The settings are fixed, so that the numbers are a property of the data.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bigmodel.evaluation import metrics
from bigmodel.evaluation.baselines import MAX_ROWS, compare
from bigmodel.evaluation.metrics import Floats
from bigmodel.tasks.base import Row
from bigmodel.tasks.labels import named
from bigmodel.tasks.table import encoded

if TYPE_CHECKING:
    from bigmodel.predictor import Predictor

NAME = "gradient boosting"
CELLS = 4_000_000  # of the training rows it is fitted on, drawn by chance where they have more
AT_ONCE = 65_536  # rows answered together
FEW = 2  # rows below which nothing can be fitted


def classifier(
    predictor: Predictor, training: Sequence[Row], rows: Sequence[Row], model: Sequence[str]
) -> dict[str, Any]:
    """Fit on `training`, answer `rows`, compare with the labels that `model` found; {"reason"} where it cannot be."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    start, wanted = time.perf_counter(), named(rows)
    counts = Counter(row["label"] for row in training)
    if len(counts) < 2:
        return {"reason": "the training rows have one label only"}
    trees = _trees(HistGradientBoostingClassifier, predictor)
    if min(counts.values()) < 2:  # scikit-learn cannot then hold out rows of every label, to know when to stop
        trees.set_params(early_stopping=False)
    trees.fit(_table(predictor, training), [row["label"] for row in training])
    names = [str(name) for name in trees.classes_]
    scores = np.concatenate(list(_answers(trees.predict_proba, predictor, rows)))  # (N, K)
    found = [names[i] for i in scores.argmax(1).tolist()]
    labels = sorted({*found, *wanted})
    return {
        "training_rows": len(training),
        "seconds": round(time.perf_counter() - start, 2),
        "accuracy": metrics.accuracy(found, wanted),
        "macro_f1": metrics.macro_f1(found, wanted),
        "auc": metrics.area_under_curve((dict(zip(names, row.tolist(), strict=True)) for row in scores), wanted),
        "interval": list(metrics.accuracy_interval(metrics.confusion(found, wanted, labels))),
        "comparison": compare(model, found, wanted, NAME),
    }


def regressor(predictor: Predictor, training: Sequence[Row], rows: Sequence[Row], model: Floats) -> dict[str, Any]:
    """The same for numbers; the comparison is of squared distances."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    start, wanted = time.perf_counter(), np.fromiter((row["label"] for row in rows), np.float64)
    if len(training) < FEW:
        return {"reason": "there are too few training rows"}
    trees = _trees(HistGradientBoostingRegressor, predictor)
    trees.fit(_table(predictor, training), [row["label"] for row in training])
    found = np.concatenate(list(_answers(trees.predict, predictor, rows)))
    return {
        "training_rows": len(training),
        "seconds": round(time.perf_counter() - start, 2),
        "rmse": metrics.rmse(found, wanted),
        "mae": metrics.mae(found, wanted),
        "r2": metrics.r2(found, wanted),
        "interval": list(metrics.rmse_interval(found, wanted)),
        "comparison": compare_distances(model, found, wanted),
    }


def compare_distances(model: Floats, baseline: Floats, wanted: Floats) -> dict[str, Any]:
    """Whose squared distances are smaller, and whether by more than chance: a paired bootstrap of the rows."""
    apart = np.square(metrics.distances(baseline, wanted)) - np.square(metrics.distances(model, wanted))
    interval = metrics.mean_interval(apart)
    ahead, beyond = float(apart.mean()), not interval[0] <= 0 <= interval[1]
    better = "model" if ahead > 0 else NAME if ahead < 0 else "neither"
    ours, theirs = metrics.rmse(model, wanted), metrics.rmse(baseline, wanted)
    noise = "beyond noise" if beyond else "within noise: these rows do not tell them apart"
    return {
        "squared_difference": ahead,
        "interval": list(interval),
        "better": better,
        "beyond_noise": beyond,
        "statement": f"RMSE {ours:.4g} of the model, {theirs:.4g} of {NAME}: {noise} (95 % of a paired bootstrap).",
    }


def advice(baseline: Mapping[str, Any]) -> str:
    """Names gradient boosting where it is the better choice; nothing else."""
    comparison = baseline.get("comparison", {})
    if comparison.get("better") != NAME:
        return ""
    sure = "" if comparison["beyond_noise"] else ", as far as these rows can tell"
    took = f"scikit-learn fits it in {baseline['seconds']:.1f} s"
    return f"Gradient boosting is the better choice for this table{sure}: {took}."


def most_rows(predictor: Predictor | None) -> int | None:
    """Training rows that it is fitted on at most; None where there is no table."""
    columns = len(getattr(predictor.processor, "columns", [])) if predictor else 0
    return min(MAX_ROWS, max(1, CELLS // columns)) if columns else None


def drawn(fitted: int, num_rows: int) -> dict[str, int]:
    """For the report, where it was not fitted on all training rows: of how many they were drawn."""
    return {"drawn_from": num_rows} if fitted < num_rows else {}


def drawn_from(baseline: Mapping[str, Any]) -> Iterator[str]:
    if "drawn_from" in baseline:
        yield (
            f"Gradient boosting was fitted on {baseline['training_rows']:,} of {baseline['drawn_from']:,} training "
            "rows, drawn by chance."
        )


def _trees(make: Any, predictor: Predictor) -> Any:
    processor = predictor.processor
    numbers, words = len(processor.number_names), len(processor.category_names)
    return make(categorical_features=[False] * numbers + [True] * words, random_state=0)


def _answers(answer: Any, predictor: Predictor, rows: Sequence[Row]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), AT_ONCE):
        found: NDArray[Any] = answer(_table(predictor, rows[start : start + AT_ONCE]))
        yield found


def _table(predictor: Predictor, rows: Sequence[Row]) -> Floats:
    """Rows as the network reads them, numbers first: (rows, N + C). Categories that training did not know are NaN."""
    numbers, codes = encoded(rows, predictor.processor)
    return np.hstack([numbers.astype(np.float64), np.where(codes == 0, np.nan, codes.astype(np.float64))])
