"""What a report says of a task that answers with a number.

analyse   answers and rows -> the report's keys of this kind of task
render    those keys -> what a person reads
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from bigmodel.evaluation import boosting, importance, metrics
from bigmodel.evaluation.baselines import MAX_ROWS
from bigmodel.evaluation.evidence import Evidence
from bigmodel.evaluation.layout import heading, near, table
from bigmodel.evaluation.metrics import Floats
from bigmodel.evaluation.overlap import Overlap
from bigmodel.tasks.base import Row
from bigmodel.tasks.sampling import sample

WORST = 10


# ---- analyse


def analyse(evidence: Evidence) -> dict[str, Any]:
    rows, answers = evidence.rows, evidence.answers
    found = np.fromiter((answer["prediction"] for answer in answers), np.float64)
    wanted = np.fromiter((row["label"] for row in rows), np.float64)
    evidence.refuse_broken(found, "the model answers this row with no number")
    apart = metrics.distances(found, wanted)
    return {
        "intervals": {
            "rmse": list(metrics.rmse_interval(found, wanted)),
            "mae": list(metrics.mean_interval(np.abs(apart))),
            "r2": list(metrics.r2_interval(found, wanted)),
        },
        "bias": float(apart.mean()),
        "mistakes": _worst_of(evidence, found, wanted, apart),
        **_beside_training(evidence, found, wanted),
        **importance.of_table(evidence),
    }


def _worst_of(evidence: Evidence, found: Floats, wanted: Floats, apart: Floats) -> list[dict[str, Any]]:
    worst = np.argsort(-np.abs(apart), kind="stable")[:WORST].tolist()
    return [
        {
            **evidence.where(i),
            "wanted": float(wanted[i]),
            "found": float(found[i]),
            "distance": float(apart[i]),
        }
        for i in worst
    ]


def _beside_training(evidence: Evidence, found: Floats, wanted: Floats) -> dict[str, Any]:
    """What the training rows add: the baselines learnt from them, and which of the tested rows stand among them."""
    content = evidence.task.content
    overlap, labels = Overlap(content(row) for row in evidence.rows), array("d")

    def told() -> Iterator[Row]:
        for row in evidence.training() if evidence.training else ():
            overlap.see(content(row))
            labels.append(row["label"])
            yield row

    training = sample(told(), boosting.most_rows(evidence.predictor) or MAX_ROWS)
    mean = float(np.mean(labels or wanted))
    source = "the training rows" if training else "the tested rows"
    constant = {"of": source, "value": mean, **_scores_of(np.full(len(wanted), mean), wanted)}
    trees: dict[str, Any] = {"reason": "the training rows are not at hand"}
    also = None
    if training and evidence.predictor is not None:
        evidence.say(f"baseline: {boosting.NAME} on {len(training):,} training rows")
        trees = boosting.regressor(evidence.predictor, training, evidence.rows, found)
        trees |= boosting.drawn(len(training), overlap.num_seen)
        also = {"rows": int(overlap.found().sum())}
    return {"baselines": {"mean": constant, "boosting": trees}, "also_in_training": also}


def _scores_of(found: Floats, wanted: Floats) -> dict[str, float]:
    return {
        "rmse": metrics.rmse(found, wanted), "mae": metrics.mae(found, wanted), "r2": metrics.r2(found, wanted)
    }  # fmt: skip


# ---- render


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _scores(report)
    trees, mean = report["baselines"]["boosting"], report["baselines"]["mean"]
    if "comparison" in trees:
        yield Text(trees["comparison"]["statement"])
        yield from map(Text, boosting.drawn_from(trees))
        if said := boosting.advice(trees):
            yield Text(said, style="bold")
    else:
        yield Text(f"There is no {boosting.NAME}: {trees['reason']}.")
    yield Text(f"Mean: always {mean['value']:.6g}, as {mean['of']} have on average.")
    yield Text(f"The answers are {report['bias']:+.4g} off on average.")
    if also := report["also_in_training"]:
        yield Text(f"{also['rows']:,} of the tested rows also stand in the training rows.")
    if "importance" in report:
        yield from importance.render(report)
    yield heading("farthest off")
    for one in report["mistakes"]:
        place, apart = f"{near(one['file'])}:{one['line']}", f"{one['distance']:+.4g}"
        yield Text(f"{place}  wanted {one['wanted']:.6g}, found {one['found']:.6g} ({apart})", overflow="fold")


def _scores(report: Mapping[str, Any]) -> RenderableType:
    scores, intervals = report["metrics"], report["intervals"]
    trees, mean = report["baselines"]["boosting"], report["baselines"]["mean"]
    own = ["this model"]
    for name in ("rmse", "mae", "r2"):
        low, high = intervals[name]
        own += [f"{scores[name]:.4g}", f"{low:.4g} to {high:.4g}"]
    lines = [own]
    if "rmse" in trees:
        lines.append(_line(boosting.NAME, trees))
    lines.append(_line("mean", mean))
    return table(["", "RMSE", "95 %", "MAE", "95 %", "R2", "95 %"], lines, left={0, 2, 4, 6})


def _line(name: str, scores: Mapping[str, Any]) -> list[str]:
    interval = scores.get("interval")
    shown = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
    return [name, f"{scores['rmse']:.4g}", shown, f"{scores['mae']:.4g}", "", f"{scores['r2']:.4g}", ""]
