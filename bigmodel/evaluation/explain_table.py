"""explain(predictor, rows): which columns decided an answer, by integrated gradients
(Sundararajan, Taly & Yan, 2017, https://arxiv.org/abs/1703.01365).

What is explained is the log-odds of the label that was found, against all others together; of a regression the number
itself. The vectors of the row's columns are led in a straight line from those of a typical row (the median of each
number, the most frequent of each category) to its own, and a column's weight is the gradient along the way times the
way: positive speaks for the answer, negative against it. A column that is as in the typical row weighs nothing. The
weights sum to the value of the row less that of the typical row; `completeness_error` says how far the sum is off.

Everything is computed in fp32, one row at a time, whatever precision answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bigmodel.evaluation.attribution import log_odds, refined
from bigmodel.evaluation.layout import heading, put, table, wide
from bigmodel.tasks.base import Answer, Row

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel.predictor import Predictor

STEPS, MAX_STEPS = 32, 512  # points on the way: doubled until the sum is right
SHOWN = 12


def explain(predictor: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The answer to each row, and what decided it:

    columns              column, value and weight of each that is read
    value                what is explained: log-odds in nats, or the number; value_of_typical: the same of a typical row
    typical              the typical row
    completeness_error   distance of the weights' sum from the difference of these two
    """
    rows = [{"features": row["features"]} for row in rows]
    typical = {column["name"]: column["example"] for column in predictor.processor.columns}
    answers = predictor.predict(rows)
    return [
        _explain(predictor, json.loads(row["features"]), typical, answer)
        for row, answer in zip(rows, answers, strict=True)
    ]


def _explain(
    predictor: Predictor, cells: Mapping[str, Any], typical: Mapping[str, Any], answer: Answer
) -> dict[str, Any]:
    import torch

    pair = predictor.encode([{"features": json.dumps(row)} for row in (typical, cells)])
    batch = {
        name: tensor.to(predictor.device) for name, tensor in predictor.task.collate(pair, predictor.processor).items()
    }
    model = predictor.model.eval()
    with torch.no_grad():
        start, end = model.column_vectors(batch["numbers"], batch["categories"])
    weights, ends, error = attributions(model, start, end, answer)
    columns = [
        {"column": name, "value": cells.get(name), "weight": weight}
        for name, weight in by_column(predictor.processor, weights).items()
    ]
    return {
        **answer,
        "columns": columns,
        "value": ends[1],
        "value_of_typical": ends[0],
        "typical": dict(typical),
        "completeness_error": error,
    }


def attributions(model: Any, start: Tensor, end: Tensor, answer: Answer) -> tuple[list[float], list[float], float]:
    """A weight for each vector (N + C, D); what is explained at both ends; how far the sum is off."""
    import torch

    def value(vectors: Tensor) -> Tensor:
        logits = model(vectors=vectors).logits
        if "label" not in answer:
            number: Tensor = logits[:, 0]
            return number
        return log_odds(logits, model.config.label2id[answer["label"]])

    def attribute(steps: int) -> tuple[list[float], float]:
        weights = along(value, start, end, steps)
        return weights, abs(sum(weights) - change)

    with torch.no_grad():
        ends = value(torch.stack([start, end])).tolist()
    change, unit = ends[1] - ends[0], 1.0 if "label" in answer else model.config.target_std
    weights, error = refined(attribute, change, STEPS, MAX_STEPS, unit)
    return weights, ends, error


def along(value: Any, start: Tensor, end: Tensor, steps: int) -> list[float]:
    """Mean gradient at the midpoints of `steps` parts of the way, times the way, summed over each vector."""
    import torch

    at = ((torch.arange(steps, device=start.device) + 0.5) / steps)[:, None, None]
    vectors = (start + at * (end - start)).requires_grad_()
    (gradient,) = torch.autograd.grad(value(vectors).sum(), vectors)
    return [float(weight) for weight in (gradient.mean(0) * (end - start)).sum(-1)]


def by_column(processor: Any, weights: Sequence[float]) -> dict[str, float]:
    """Of the vectors, numbers first: a date has three, which are added."""
    remaining = iter(weights)
    found = {column["name"]: sum(next(remaining) for _ in column.get("parts", ())) for column in processor.columns}
    for name in processor.category_names:
        found[name] = next(remaining)
    return {name: float(weight) for name, weight in found.items()}


def show(explanations: Sequence[Mapping[str, Any]]) -> None:
    """Print them, the weightiest columns first."""
    for one in explanations:
        told = f"{one['label']}  {one['score']:.3f}" if "label" in one else f"{one['prediction']:.6g}"
        place = f"{one['file']}:{one['line']}  " if "file" in one else ""
        most = sorted(one["columns"], key=lambda column: -abs(column["weight"]))[:SHOWN]
        lines = [
            [wide(column["column"], 40), wide(str(column["value"]), 30), f"{column['weight']:+.4g}"] for column in most
        ]
        put(
            heading(f"{place}{told}"),
            table(["column", "value", "weight"], lines, left={0, 1}),
            Text(f"{one['value']:.4g}, of a typical row {one['value_of_typical']:.4g}"),
            Text(f"the weights' sum is {one['completeness_error']:.2g} off their difference"),
        )
