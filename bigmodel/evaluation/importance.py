"""Permutation importance: how much worse the answers get where one column is shuffled among the rows
(Breiman, 2001, doi:10.1023/A:1010933404324; Fisher, Rudin & Dominici, 2019, https://arxiv.org/abs/1801.01489).

Columns that say the same can stand in for each other: each then looks less important than both are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from bigmodel.evaluation.evidence import Evidence
from bigmodel.evaluation.layout import heading, table, wide
from bigmodel.tasks.base import Row

if TYPE_CHECKING:
    from bigmodel.predictor import Predictor

MAX_ROWS = 2000  # a random choice of them where there are more
REPEATS = 3
SHOWN = 20


def of_table(evidence: Evidence) -> dict[str, Any]:
    """What a report says of the columns; nothing where the rows are no table's, or the model is not at hand."""
    if evidence.predictor is None or "features" not in evidence.rows[0]:
        return {}
    evidence.say("shuffling columns: what each is worth")
    return {
        "columns": describe(evidence.predictor.processor),
        "importance": importance(evidence.predictor, evidence.rows),
    }


def importance(predictor: Predictor, rows: Sequence[Row]) -> dict[str, Any]:
    """For each column by how much the task's goal gets worse, the mean of REPEATS shuffles and their range."""
    rng = np.random.default_rng(0)
    chosen = sorted(rng.permutation(len(rows))[:MAX_ROWS].tolist())
    rows = [rows[i] for i in chosen]
    goal = predictor.task.goal
    sign = 1 if goal.mode == "max" else -1
    cells = [json.loads(row["features"]) for row in rows]
    base = _score(predictor, rows, cells)
    found = []
    for column in predictor.processor.columns:
        losses = [sign * (base - _score(predictor, rows, shuffled(cells, column["name"], rng))) for _ in range(REPEATS)]
        found.append({"column": column["name"], "drop": float(np.mean(losses)), "range": [min(losses), max(losses)]})
    found.sort(key=lambda entry: -entry["drop"])
    return {"metric": goal.metric, "rows": len(rows), "repeats": REPEATS, "columns": found}


def shuffled(cells: Sequence[Mapping[str, Any]], column: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The rows with the cells of one column in another order."""
    order = rng.permutation(len(cells))
    return [{**row, column: cells[i].get(column)} for row, i in zip(cells, order, strict=True)]


def _score(predictor: Predictor, rows: Sequence[Row], cells: Sequence[Mapping[str, Any]]) -> float:
    asked = [{"features": json.dumps(row)} for row in cells]
    return predictor.task.score(predictor.predict(asked), rows)[predictor.task.goal.metric]


def describe(processor: Any) -> dict[str, Any]:
    """What the model reads, for the report: kinds of the columns, and why others are ignored."""
    return {
        "read": [{"column": column["name"], "kind": column["kind"]} for column in processor.columns],
        "ignored": [{"column": name, "why": why} for name, why in processor.ignored.items()],
    }


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    found, kinds = report["importance"], {one["column"]: one["kind"] for one in report["columns"]["read"]}
    yield heading(f"what a column is worth: {found['metric']} lost where it is shuffled ({found['rows']:,} rows)")
    lines = [
        [wide(one["column"], 40), kinds[one["column"]], f"{one['drop']:.4f}",
         f"{one['range'][0]:.4f} to {one['range'][1]:.4f}"]
        for one in found["columns"][:SHOWN]
    ]  # fmt: skip
    yield table(["column", "kind", "lost", f"of {found['repeats']} times"], lines, left={0, 1})
    for one in report["columns"]["ignored"]:
        yield Text(f"Not read: column '{wide(one['column'], 40)}' {one['why']}.")
