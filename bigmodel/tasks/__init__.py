"""The tasks, by Hugging Face's words. A new task is one module and one line here."""

from __future__ import annotations

import importlib
from typing import cast

from bigmodel.tasks.base import Task

TASKS = {
    "text-classification": "bigmodel.tasks.text_classification",
    "translation": "bigmodel.tasks.translation",
    "text-generation": "bigmodel.tasks.text_generation",
    "image-classification": "bigmodel.tasks.image_classification",
    "tabular-classification": "bigmodel.tasks.tabular_classification",
    "tabular-regression": "bigmodel.tasks.tabular_regression",
}


def get(name: str) -> Task:
    return cast(Task, importlib.import_module(TASKS[name]))
