"""What a task is: one module with these functions. It learns nothing itself; that lives in processor and config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from bigmodel.errors import DataError
from bigmodel.experiment import DataConfig, Experiment

Row = dict[str, Any]  # cleaned values by role, such as {"text": ..., "label": ...}; the label is absent at prediction
Sample = dict[str, Any]  # what the model reads of one row: ragged numpy arrays and numbers; the same fields in all
Answer = dict[str, Any]  # JSON-able


@dataclass(frozen=True)
class Goal:
    """The number that picks the best checkpoint and the best trial."""

    metric: str
    mode: Literal["max", "min"]

    def better(self, new: float, old: float | None) -> bool:
        """A finite number is better than NaN or infinity, never the reverse."""
        if old is None or math.isfinite(new) != math.isfinite(old):
            return old is None or math.isfinite(new)
        return new > old if self.mode == "max" else new < old


class Refused(DataError):
    """A row that cannot be used, with the column (or role) that says why. From `clean` it goes to quarantine.jsonl."""

    def __init__(self, reason: str, column: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.column = reason, column


class Alike(DataError):
    """All training rows have the same of what is to be learnt: more of them might not."""


class Examples(Protocol):
    """Samples that training goes through: those on disk, or a task's own view of them."""

    @property
    def lengths(self) -> Any:
        """Tokens of each: (N,), or (N, S) where a sample has S sides that are padded by themselves."""

    def __len__(self) -> int: ...

    def take(self, ids: Any) -> list[Sample]:
        """The samples of many indices, in their order."""

    def rows(self, ids: Any) -> Any:
        """The numbers of the training rows that they are made of."""


WHOLE = "*"
"""In place of a column's name: the role's value is the whole record, whatever columns it has."""
BLOCK = "#"
"""In place of a column's name: where the row stands in its text. A task that asks for it reads a text file in blocks of
lines, with their ends, instead of a row a line. The value is number << 2 | edges: the number of a block is one more
than that of the block it continues; edges are 1 if it begins a document, 2 if it ends one. -1 is a document alone."""


class Task(Protocol):
    goal: Goal
    targets: tuple[str, ...]
    """Roles that are asked for, and whose columns need not be there at prediction."""
    judged_with: tuple[str, ...]
    """Those of them that `judge` reads; a row is judged without the others."""
    unit: str
    """What `length` counts, in the words of a report."""

    def columns(self, data: DataConfig) -> dict[str, str]:
        """Role -> column name, or WHOLE. ConfigError if the experiment does not name one."""

    def clean(self, record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """Values of the columns -> row. Raises Refused. A role whose column is absent from `columns` is not read."""

    def content(self, row: Row) -> str:
        """What makes two rows duplicates; its md5 decides the split."""

    def target(self, row: Row) -> str:
        """What two duplicates must agree on."""

    def fit(self, rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Any, dict[str, Any]]:
        """Training rows (iterable as often as wanted) -> processor, learnt fields of the model's config; `notes` among
        them are lines to be said."""

    def shaped_by(self, experiment: Experiment) -> dict[str, Any]:
        """What of the experiment, beside its data section, shapes processor and samples: part of the fingerprint."""

    def load_processor(self, path: Path, config: Any = None) -> Any:
        """The processor of a folder of prepared data, or of a model directory whose config is given: it then reads no
        more than that model can. OSError, ValueError or KeyError where it does not open, CheckpointError where there is
        none."""

    def encode(self, rows: Sequence[Row], processor: Any, learnt: Mapping[str, Any]) -> list[Sample]:
        """Once, at preparation. Ragged. Carries the target where the rows have one. Raises Refused with a role."""

    def length(self, sample: Sample) -> int:
        """Tokens, for bucketing and for the padded size of a batch."""

    def examples(self, samples: Examples, experiment: Experiment) -> Examples:
        """What training goes through of the encoded samples: as they are, or packed."""

    def augment(self, sample: Sample, rng: Any, experiment: Experiment, processor: Any, samples: Examples) -> Sample:
        """Training only; a new sample, by the numbers of `rng` alone. `samples` are those it may be mixed with."""

    def collate(self, samples: Sequence[Sample], processor: Any) -> dict[str, Any]:
        """Pad and stack: named tensors, the model's own arguments."""

    def num_targets(self, batch: Mapping[str, Any]) -> int:
        """What the loss is averaged over: rows, or real tokens."""

    def padded(self, batch: Mapping[str, Any]) -> int:
        """Tokens of the batch with its padding, in the unit of `length`."""

    def loss(self, model: Any, batch: Mapping[str, Any], experiment: Experiment) -> Any:
        """Sum of the losses of the batch's targets, a scalar tensor of float32."""

    def unfit(self, config: Any) -> str:
        """Why a model with this config does another task, whatever its class is called; nothing if it does this one."""

    def predict(self, model: Any, batch: Mapping[str, Any], processor: Any) -> list[Answer]:
        """One answer a sample."""

    def judge(self, model: Any, batch: Mapping[str, Any], processor: Any) -> list[Answer]:
        """One answer a sample that carries its target, with whatever `score` wants beyond an answer, such as a loss."""

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
        """Held-out loss and the task's metrics, the goal's among them."""

    def request(self, processor: Any) -> type[Any]:
        """The pydantic model of one input of the endpoint."""

    def asked(self, fields: Mapping[str, Any], processor: Any) -> Row:
        """The fields of such an input -> the row to predict. Raises Refused."""

    def cost(self, row: Row, processor: Any) -> int:
        """At most so many tokens a row has, as far as is known before it is encoded: what batches are made by."""

    def answer(self, processor: Any) -> type[Any]:
        """The pydantic model of one answer: what the endpoint's document says of it."""


def unread(sample: Mapping[str, Any], read: int) -> Answer:
    """What an answer says where the model read no more than so many tokens of a text that has more; else nothing."""
    tokens = int(sample.get("num_tokens", read))
    return {"truncated": True, "tokens": tokens, "tokens_read": read} if tokens > read else {}


UNREAD: dict[str, Any] = {
    "truncated": (bool, Field(default=False, description="There and true if the model read only the beginning.")),
    "tokens": (int | None, Field(default=None, description="Tokens of the text, if truncated.")),
    "tokens_read": (int | None, Field(default=None, description="Tokens the model read, if truncated.")),
}
"""The same as fields of an answer's pydantic model."""


def as_judged(task: Task, row: Row) -> Row:
    """The row without the targets that `judge` does not read."""
    hidden = set(task.targets) - set(task.judged_with)
    return {role: value for role, value in row.items() if role not in hidden}
