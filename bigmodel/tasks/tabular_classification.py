"""tabular-classification: a row of a table in, one label of a fixed set out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel.evaluation.metrics import accuracy, area_under_curve, log_loss, macro_f1
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import labels, table
from bigmodel.tasks.base import Answer, Goal, Row, Sample
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

goal = Goal("accuracy", "max")
targets = ("label",)
judged_with = ()
unit = "columns"


def columns(data: DataConfig) -> dict[str, str]:
    return table.columns(data, "tabular-classification")


def clean(record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return table.clean(record, columns, labels.clean_label)


def target(row: Row) -> str:
    label: str = row["label"]
    return label


def fit(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Any, dict[str, Any]]:
    from bigmodel.tasks.chosen import choose

    names = labels.fit_labels((row["label"] for row in rows()), experiment.data.label or "label")
    processor, learnt = table.fit(choose(rows, experiment.data.table.missing), experiment, regression=False)
    return processor, {"problem_type": "single_label_classification", **names, **learnt}


def encode(rows: Sequence[Row], processor: Any, learnt: Mapping[str, Any]) -> list[Sample]:
    samples = table.encode(rows, processor)
    for row, sample in zip(rows, samples, strict=True):
        if "label" in row:
            sample["labels"] = labels.label_id(row["label"], learnt["label2id"])
    return samples


def loss(model: Any, batch: Mapping[str, Tensor], experiment: Experiment) -> Tensor:
    from torch.nn.functional import cross_entropy

    smoothing = experiment.train.label_smoothing
    return cross_entropy(table.logits(model, batch), batch["labels"], reduction="sum", label_smoothing=smoothing)


def unfit(config: Any) -> str:
    if config.problem_type == "regression":
        return "it answers with a number, as a regression does, not with one of several labels"
    return table.not_of_a_table(config)


def predict(model: Any, batch: Mapping[str, Tensor], processor: Any) -> list[Answer]:
    return labels.answers(table.logits(model, batch), model.config.id2label)


judge = predict


def score(answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
    """`auc` only where the rows have at least two of the labels."""
    found, wanted = labels.named(answers), labels.named(rows)
    area = area_under_curve((answer["scores"] for answer in answers), wanted)
    return {
        "loss": log_loss((answer["scores"] for answer in answers), wanted),
        "accuracy": accuracy(found, wanted),
        "macro_f1": macro_f1(found, wanted),
        **({} if area is None else {"auc": area}),
    }


def answer(processor: Any) -> type[BaseModel]:
    return labels.answer_model()
