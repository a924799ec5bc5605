"""tabular-regression: a row of a table in, a number out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel.errors import DataError
from bigmodel.evaluation.metrics import mae, r2, rmse
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import table
from bigmodel.tasks.base import Alike, Answer, Goal, Refused, Row, Sample
from bigmodel.tasks.table import (  # noqa: F401  the task's own, as they are
    asked,
    augment,
    collate,
    content,
    cost,
    examples,
    length,
    load_processor,
    num_targets,
    padded,
    request,
    shaped_by,
)

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

goal = Goal("rmse", "min")
targets = ("label",)
judged_with = ("label",)
unit = "columns"


def columns(data: DataConfig) -> dict[str, str]:
    return table.columns(data, "tabular-regression")


def clean(record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return table.clean(record, columns, clean_number)


def clean_number(value: Any, column: str) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Refused("there is no number to predict", column)
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Refused(f"what is predicted is a number such as 1234.5, not {value!r:.40}", column)
    return number


def target(row: Row) -> str:
    return repr(row["label"])


def fit(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Any, dict[str, Any]]:
    """The target is learnt in deviations from its mean: both travel in the model's config."""
    import numpy as np

    from bigmodel.tasks.chosen import choose

    chosen = choose(rows, experiment.data.table.missing)
    numbers, column = np.array([row["label"] for row in chosen.rows]), experiment.data.label or "label"
    with np.errstate(over="ignore"):
        deviation = float(numbers.std())
    if not math.isfinite(deviation):
        raise DataError(
            f"column '{column}': its numbers, such as {np.abs(numbers).max():g}, are too large to be squared"
        )
    if numbers.min() == numbers.max():  # the deviation of many 0.1 is not quite 0
        raise Alike(f"column '{column}': it is {numbers[0]:g} in all training rows, there is nothing to learn")
    processor, learnt = table.fit(chosen, experiment, regression=True)
    return processor, {
        "problem_type": "regression",
        "id2label": {0: column},
        "label2id": {column: 0},
        "target_mean": float(numbers.mean()),
        "target_std": deviation,
        **learnt,
    }


def encode(rows: Sequence[Row], processor: Any, learnt: Mapping[str, Any]) -> list[Sample]:
    samples = table.encode(rows, processor)
    for row, sample in zip(rows, samples, strict=True):
        if "label" in row:
            sample["labels"] = row["label"]
    return samples


def loss(model: Any, batch: Mapping[str, Tensor], experiment: Experiment) -> Tensor:
    """Squared distances in the target's deviations: 1 a row is what the mean of the training rows would have."""
    mean: Tensor = model(**batch).loss
    return mean * len(batch["labels"])


def unfit(config: Any) -> str:
    if config.problem_type != "regression":
        return "it answers with one of several labels, not with a number"
    return table.not_of_a_table(config)


def predict(model: Any, batch: Mapping[str, Tensor], processor: Any) -> list[Answer]:
    return [{"prediction": number} for number in table.logits(model, batch)[:, 0].tolist()]


def judge(model: Any, batch: Mapping[str, Tensor], processor: Any) -> list[Answer]:
    """With the loss of each row."""
    found = table.logits(model, batch)[:, 0]
    losses = ((found - batch["labels"]) / model.config.target_std).square()
    return [{"prediction": number, "loss": of} for number, of in zip(found.tolist(), losses.tolist(), strict=True)]


def score(answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
    """The loss only where the answers are judged ones."""
    import numpy as np

    found = np.fromiter((answer["prediction"] for answer in answers), np.float64)
    wanted = np.fromiter((row["label"] for row in rows), np.float64)
    losses = (answer["loss"] for answer in answers if "loss" in answer)
    return {
        **({"loss": sum(losses) / len(answers)} if "loss" in answers[0] else {}),
        "rmse": rmse(found, wanted),
        "mae": mae(found, wanted),
        "r2": r2(found, wanted),
    }


def answer(processor: Any) -> type[BaseModel]:
    from pydantic import Field, create_model

    return create_model("Number", prediction=(float, Field(description="In the unit of the training rows.")))
