"""How a diabetes went on within a year, from ten measurements: a table that comes with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel.demos.tabular_classification import write_rows

STEM = "diabetes"

EXPERIMENT = """\
# The experiment of `bigmodel demo tabular-regression`. Change it, and run it again:
#   bigmodel train {yaml} --fresh
# or give another value for this once, and keep what is there:
#   bigmodel train {yaml} "model={{type: ft_transformer}}" output={folder}-ft
task: tabular-regression
data:
  train: {data}/diabetes.csv
  label: progression
  split: {{valid: 0.15, test: 0.2}}
  table: {{types: {{sex: category}}, bins: 8}}
model: {{type: tabular_mlp, hidden_size: 64, embedding_size: 8, dropout: 0.3}}
optim: {{type: adamw, lr: 2.0e-3, weight_decay: 1.0e-2}}
train: {{epochs: 30, batch_size: 32, threads: 1, precision: fp32}}
output: {output}
"""

HONESTLY = "Real patients (Efron et al., 2004), but 442 of them: nobody predicts this well from ten measurements."
TESTED = """\
R2 near 0.4 is what this table gives, whoever reads it; the intervals above are wide, for fewer than a hundred rows were
tested."""

NEXT = """\
bigmodel predict {model} {folder}/new.csv --explain
bigmodel evaluate {model} {folder}/diabetes.csv
bigmodel serve {model} --port 8000
bigmodel train {yaml} "model={{type: ft_transformer}}" output={folder}-ft"""

ASKED = 5  # rows that training does not see: questions, and new.csv
NAMES = ["age", "sex", "bmi", "blood pressure", "tc", "ldl", "hdl", "tch", "ltg", "glucose", "progression"]


def table() -> list[dict[str, Any]]:
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    rows = [[*row, target] for row, target in zip(found.data.tolist(), found.target.tolist(), strict=True)]
    return [{**dict(zip(NAMES, row, strict=True)), "sex": "ab"[int(row[1]) - 1]} for row in rows]


def __getattr__(name: str) -> Any:
    """QUESTIONS are read when they are asked for: scikit-learn takes a second to import."""
    if name != "QUESTIONS":
        raise AttributeError(name)
    return [{column: value for column, value in row.items() if column != NAMES[-1]} for row in table()[-ASKED:]]


def write(folder: Path) -> str:
    """The demonstration's data. -> what it is"""
    rows = table()
    write_rows(folder / "diabetes.csv", NAMES, rows[:-ASKED])
    write_rows(folder / "new.csv", NAMES[:-1], rows[-ASKED:])
    return f"{len(rows) - ASKED} patients, 10 measurements each, from scikit-learn: {folder / 'diabetes.csv'}"


def shown(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Question and answer in a line."""
    measured = ", ".join(f"{name} {question[name]}" for name in ("age", "bmi", "blood pressure", "glucose"))
    return f"{answer['prediction']:8.1f}  {measured}"
