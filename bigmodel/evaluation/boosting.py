"""Gradient boosting on the same columns: what a network for tables has to be compared with, as it often is the better
choice (Grinsztajn et al., 2022, https://arxiv.org/abs/2207.08815).

scikit-learn's histogram trees with its own settings (Ke et al., 2017, LightGBM), missing values and categories handled
as such. The settings are fixed, so that the numbers are a property of the data.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigmodel.evaluation import metrics
from bigmodel.evaluation.baselines import compare
from bigmodel.tasks.base import Row

if TYPE_CHECKING:
    from bigmodel.predictor import Predictor

NAME = "gradient boosting"
FEW = 2  # rows below which nothing can be fitted


def classifier(
    predictor: Predictor, training: Sequence[Row], rows: Sequence[Row], model: Sequence[str]
) -> dict[str, Any]:
    """Fit on `training`, answer `rows`, compare with the labels that `model` found; {"reason"} where it cannot be."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    start, wanted = time.perf_counter(), [row["label"] for row in rows]
    counts = Counter(row["label"] for row in training)
    if len(counts) < 2:
        return {"reason": "the training rows have one label only"}
    trees, (learnt, asked) = _trees(HistGradientBoostingClassifier, predictor), _tables(predictor, training, rows)
    if min(counts.values()) < 2:  # scikit-learn cannot then hold out rows of every label, to know when to stop
        trees.set_params(early_stopping=False)
    trees.fit(learnt, [row["label"] for row in training])
    names = [str(name) for name in trees.classes_]
    scores = [dict(zip(names, row, strict=True)) for row in trees.predict_proba(asked).tolist()]
    found = [max(score, key=score.__getitem__) for score in scores]
    labels = sorted({*found, *wanted})
    return {
        "training_rows": len(training),
        "seconds": round(time.perf_counter() - start, 2),
        "accuracy": metrics.accuracy(found, wanted),
        "macro_f1": metrics.macro_f1(found, wanted),
        "auc": metrics.area_under_curve(scores, wanted),
        "interval": list(metrics.accuracy_interval(metrics.confusion(found, wanted, labels))),
        "comparison": compare(model, found, wanted, NAME),
    }


def regressor(
    predictor: Predictor, training: Sequence[Row], rows: Sequence[Row], model: Sequence[float]
) -> dict[str, Any]:
    """The same for numbers; the comparison is of squared distances."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    start, wanted = time.perf_counter(), [row["label"] for row in rows]
    if len(training) < FEW:
        return {"reason": "there are too few training rows"}
    trees, (learnt, asked) = _trees(HistGradientBoostingRegressor, predictor), _tables(predictor, training, rows)
    found = trees.fit(learnt, [row["label"] for row in training]).predict(asked).tolist()
    return {
        "training_rows": len(training),
        "seconds": round(time.perf_counter() - start, 2),
        "rmse": metrics.rmse(found, wanted),
        "mae": metrics.mae(found, wanted),
        "r2": metrics.r2(found, wanted),
        "interval": list(metrics.rmse_interval(found, wanted)),
        "comparison": compare_distances(model, found, wanted),
    }


def compare_distances(model: Sequence[float], baseline: Sequence[float], wanted: Sequence[float]) -> dict[str, Any]:
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


def _trees(make: Any, predictor: Predictor) -> Any:
    processor = predictor.processor
    numbers, words = len(processor.number_names), len(processor.category_names)
    return make(categorical_features=[False] * numbers + [True] * words, random_state=0)


def _tables(predictor: Predictor, *parts: Sequence[Row]) -> list[Any]:
    """Rows as the network reads them, numbers first: (rows, N + C). Categories that training did not know are NaN."""
    tables = []
    for rows in parts:
        samples = predictor.encode([{"features": row["features"]} for row in rows])
        numbers = np.array([sample["numbers"] for sample in samples], np.float64)
        codes = np.array([sample["categories"] for sample in samples], np.float64)
        tables.append(np.hstack([numbers, np.where(codes == 0, np.nan, codes)]))
    return tables
