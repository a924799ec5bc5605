"""What decided an answer: one line here for each task that can say so, and a module beside this one with

explain(predictor, rows) -> list[dict]   the answer to each row, and what decided it, JSON-able; `picture`,
                                         if there is one, is a PNG that is written to a file
show(explanations)                       print them
"""

from __future__ import annotations

import importlib
from typing import Any

from bigmodel.errors import ConfigError

EXPLAINED_BY = {
    "text-classification": "explain_text",
    "image-classification": "explain_image",
    "tabular-classification": "explain_table",
    "tabular-regression": "explain_table",
}


def explainer(task: str) -> Any:
    """The module that explains the answers of a task. ConfigError where none does."""
    if task not in EXPLAINED_BY:
        raise ConfigError(f"--explain is for {', '.join(EXPLAINED_BY)}; this model is of {task}")
    return importlib.import_module(f"bigmodel.evaluation.{EXPLAINED_BY[task]}")
