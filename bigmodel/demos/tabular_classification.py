"""Measurements of tumours, benign or malignant: a table that comes with scikit-learn."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEM = "tumours"

EXPERIMENT = """\
# The experiment of `bigmodel demo tabular-classification`. Change it, and run it again:
#   bigmodel train {yaml} --fresh
# or give another value for this once, and keep what is there:
#   bigmodel train {yaml} "model={{type: ft_transformer}}" output={folder}-ft
task: tabular-classification
data:
  train: {data}/tumours.csv
  label: diagnosis
  split: {{valid: 0.15, test: 0.2}}
model: {{type: tabular_mlp, hidden_size: 64, embedding_size: 8}}
optim: {{type: adamw, lr: 2.0e-3, weight_decay: 1.0e-2}}
train: {{epochs: 30, batch_size: 32, threads: 1, precision: fp32}}
output: {output}
"""

HONESTLY = "Real measurements (Wisconsin, 1995), but few and easy. They show that the path works."
TESTED = """\
About a hundred rows were tested: a difference of two or three rows says nothing. Gradient boosting stands beside the
model above, and is named as the better choice where it is."""

NEXT = """\
bigmodel predict {model} {folder}/new.csv --explain
bigmodel evaluate {model} {folder}/tumours.csv
bigmodel serve {model} --port 8000
bigmodel train {yaml} "model={{type: ft_transformer}}" output={folder}-ft"""

ASKED = 5  # rows that training does not see: questions, and new.csv


def table() -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns, and the rows."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [str(name) for name in found.feature_names]
    labels = [str(found.target_names[i]) for i in found.target]
    rows = [dict(zip(names, row, strict=True)) for row in found.data.tolist()]
    return [*names, "diagnosis"], [{**row, "diagnosis": label} for row, label in zip(rows, labels, strict=True)]


def __getattr__(name: str) -> Any:
    """QUESTIONS are read when they are asked for: scikit-learn takes a second to import."""
    if name != "QUESTIONS":
        raise AttributeError(name)
    _, rows = table()
    return [{column: value for column, value in row.items() if column != "diagnosis"} for row in rows[-ASKED:]]


def write(folder: Path) -> str:
    """The demonstration's data. -> what it is"""
    names, rows = table()
    write_rows(folder / "tumours.csv", names, rows[:-ASKED])
    write_rows(folder / "new.csv", names[:-1], rows[-ASKED:])
    return f"{len(rows) - ASKED} tumours, 30 measurements each, from scikit-learn: {folder / 'tumours.csv'}"


def write_rows(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, names, extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)


def shown(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Question and answer in a line."""
    measured = ", ".join(f"{name} {question[name]:g}" for name in ("mean radius", "worst texture", "worst area"))
    return f"{answer['label']:>10}  {answer['score']:.3f}  {measured}"
