"""The tasks, by Hugging Face's words. A new task is one module here, which is named in

    TASKS                            below
    Experiment.task, DEFAULT_TYPES   experiment.py: what can be asked for, and the model if none is named
    AUTO_CLASSES                     models/__init__.py: what opens its checkpoints
    GOALS                            history/record.py: its metric, for lists of runs

and where it takes part in

    READERS                          tasks/readers.py: fields of an experiment that not all tasks read
    EXPLAINED_BY                     evaluation/explain.py: what decided an answer
    STREAMED                         serve_app/streaming.py: answers a token at a time
    DEMOS                            demonstration.py

Its report is made by the module of `evaluation` that has the last word of its name: classification, regression ...
"""

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
