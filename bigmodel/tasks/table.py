"""What both tasks on tables do with a row: all of its columns are one role, `features`, JSON until it is encoded."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from bigmodel.errors import ConfigError
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import tokenizer
from bigmodel.tasks.base import WHOLE, Examples, Refused, Row, Sample
from bigmodel.tasks.records import AT_ONCE, Records

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

    from bigmodel.models.table_processor import TableProcessor
    from bigmodel.tasks.chosen import Chosen

FIELDS = ("numbers", "categories", "labels")
as_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder a call
as_sorted_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


def columns(data: DataConfig, task: str) -> dict[str, str]:
    if data.label is None:
        raise ConfigError(f"{task} needs the column to predict: name it with data.label. All others are read")
    return {"features": WHOLE, "label": data.label}


def features(record: Mapping[str, Any], label: str | None) -> str:
    """The record as JSON, without its label. Raises Refused."""
    cells = {column: plain(value, column) for column, value in record.items() if column != label}
    if all(value is None or value == "" for value in cells.values()):
        raise Refused("all columns are empty")
    written = as_json(cells)
    if not tokenizer.is_text(written):
        wrong = next((name for name, value in cells.items() if not tokenizer.is_text(str(value))), None)
        raise Refused("half of a surrogate pair is no character", wrong)
    return written


def plain(value: Any, column: str) -> Any:
    """A cell as JSON has it: None, a truth, a number or a word; dates are ISO words. Raises Refused."""
    if isinstance(value, str):
        return value.strip()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, (float, Decimal)):
        if abs(number := float(value)) == np.inf:
            raise Refused("an infinite number", column)
        return None if number != number else number
    raise Refused(
        f"a cell is a number, a word, true, false or a date, not {type(value).__name__}; a column that is to be left "
        f"out is named with data.table.types={{{column}: ignore}}",
        column,
    )


def fit(chosen: Chosen, experiment: Experiment, regression: bool) -> tuple[TableProcessor, dict[str, Any]]:
    """The columns and, for the model's config, edges of the numbers' pieces and sizes of the categories."""
    from bigmodel.tasks.columns import edges, learn

    table = experiment.data.table
    processor = learn(Records(chosen.rows), table, chosen.beside)
    numbers, _ = encoded(chosen.rows, processor)
    ignored = [f"column '{name}' is ignored: it {why}" for name, why in processor.ignored.items()]
    return processor, {
        "bins": edges(numbers, [row["label"] for row in chosen.rows], table, regression),
        "cardinalities": [2 + len(column["categories"]) for column in processor.columns if "categories" in column],
        "notes": [*([chosen.note] if chosen.note else []), *ignored],
    }


def encoded(rows: Sequence[Row], processor: TableProcessor) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Numbers (rows, N) and categories (rows, C), made of AT_ONCE rows at a time. ValueError."""
    records, starts = Records(rows), range(0, max(len(rows), 1), AT_ONCE)
    numbers, codes = zip(*(processor.encode(records[at : at + AT_ONCE]) for at in starts), strict=True)
    return np.concatenate(numbers), np.concatenate(codes)


def clean(record: Mapping[str, Any], columns: Mapping[str, str], target: Callable[[Any, str], Any]) -> Row:
    """A row of a task of tables: what `target` makes of the label's column, where that is read, is its label."""
    column = columns.get("label")
    row: Row = {"features": features(record, column)}
    if column is not None:
        row["label"] = target(record[column], column)
    return row


def content(row: Row) -> str:
    """The cells by their columns' names, numbers spelt one way: the same record however a file writes it."""
    from bigmodel.models.table_processor import category

    cells = json.loads(row["features"])
    return as_sorted_json({name: None if value is None else category(value) for name, value in cells.items()})


def shaped_by(experiment: Experiment) -> dict[str, Any]:
    return {}


def load_processor(path: Path, config: Any = None) -> TableProcessor:
    from bigmodel.models.table_processor import TableProcessor

    processor: TableProcessor = TableProcessor.from_pretrained(path)
    if not processor.columns:
        raise ValueError("it knows no columns")
    return processor


def encode(rows: Sequence[Row], processor: TableProcessor) -> list[Sample]:
    """`numbers` float32 (N,), NaN where missing, and `categories` int32 (C,). Raises Refused."""
    try:
        numbers, codes = encoded(rows, processor)
    except ValueError as why:
        raise Refused(str(why)) from None
    return [{"numbers": numbers[i], "categories": codes[i]} for i in range(len(rows))]


def length(sample: Sample) -> int:
    return len(sample["numbers"]) + len(sample["categories"])


@dataclass(frozen=True)
class Stacked(Sequence[Sample]):
    """Samples that already stand in one array a field, so that a batch of them costs no loop."""

    fields: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.fields["numbers"])

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return {name: values[i] for name, values in self.fields.items()}

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


class TableExamples:
    """The samples of a table, all of one length: a batch is picked from one mapped array a field and part file."""

    def __init__(self, samples: Any) -> None:
        self._fields = {name: [values for values, _ in samples.column(name)] for name in FIELDS}
        sizes = [len(labels) for labels in self._fields["labels"]]
        for name in ("numbers", "categories"):
            parts = zip(self._fields[name], sizes, strict=True)
            self._fields[name] = [values.reshape(size, -1) for values, size in parts]
        self._starts = np.cumsum([0, *sizes])
        width = sum(self._fields[name][0].shape[1] for name in ("numbers", "categories"))
        self.lengths = np.broadcast_to(np.int32(width), len(samples))  # of any number, it takes no memory

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, ids: Any) -> Any:
        ids = np.asarray(ids)
        parts = np.searchsorted(self._starts, ids, "right") - 1
        places = [(part, np.flatnonzero(parts == part)) for part in np.unique(parts).tolist()]
        fields = {}
        for name, values in self._fields.items():
            fields[name] = np.empty((len(ids), *values[0].shape[1:]), values[0].dtype)
            for part, at in places:
                fields[name][at] = values[part][ids[at] - self._starts[part]]
        return Stacked(fields)

    def rows(self, ids: Any) -> Any:
        return ids


def examples(samples: Any, experiment: Experiment) -> Examples:
    return TableExamples(samples)


def augment(sample: Sample, rng: Any, experiment: Experiment, processor: Any, samples: Examples) -> Sample:
    return sample


def collate(samples: Sequence[Sample], processor: Any) -> dict[str, Tensor]:
    """`numbers` float32 (B, N), `categories` int64 (B, C); `labels` (B,), int64 or float64."""
    import torch

    if isinstance(samples, Stacked):
        fields = samples.fields
    else:
        fields = {name: np.array([sample[name] for sample in samples]) for name in samples[0]}
    types = {"numbers": torch.float32, "categories": torch.int64}
    return {name: torch.as_tensor(values, dtype=types.get(name)) for name, values in fields.items()}


def num_targets(batch: Mapping[str, Tensor]) -> int:
    return len(batch["numbers"])


def padded(batch: Mapping[str, Tensor]) -> int:
    return batch["numbers"].numel() + batch["categories"].numel()


def logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = model(numbers=batch["numbers"], categories=batch["categories"]).logits
    return found


def not_of_a_table(config: Any) -> str:
    """Why a model reads no table; nothing if it does."""
    if "cardinalities" in config.to_dict():
        return ""
    return f"it is a {config.model_type}, which reads no table"


# ---- requests: fields are numbered, for a column may be called anything; their aliases are the columns' names


def request(processor: TableProcessor) -> type[BaseModel]:
    """The pydantic model of a row, made of this model's own columns."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for i, column in enumerate(processor.columns):
        kind, says = field_of(column)
        default = None if column["missing"] else ...
        fields[f"column_{i}"] = (kind, Field(default, alias=column["name"], description=says))
    example = {column["name"]: column["example"] for column in processor.columns}
    config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), json_schema_extra={"example": example})
    made: type[BaseModel] = create_model("TableRow", __config__=config, **fields)
    return made


def field_of(column: Mapping[str, Any]) -> tuple[Any, str]:
    """Type and description of a column in a request. null is a missing value."""
    from bigmodel.models.table_processor import such_as

    kind = column["kind"]
    if kind == "number":
        x = column["parts"][0]["x"]
        return float | None, f"A number; in the training rows {x[0]:g} to {x[-1]:g}."
    if kind == "date":
        form = column.get("format")
        return str | None, f"A date, {such_as(form)}{'' if form else ', or with its time'}."
    if kind == "boolean":
        return bool | None, "True or false."
    known = column["categories"]
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return str | int | float | bool | None, f"A category. Known: {', '.join(known[:10])}{more}."


def asked(given: Mapping[str, Any], processor: TableProcessor) -> Row:
    from bigmodel.models.table_processor import dates, nothing

    cells = {column["name"]: given[f"column_{i}"] for i, column in enumerate(processor.columns)}
    for column in processor.columns:
        if column["kind"] == "date":
            try:
                dates([nothing(cells[column["name"]], processor.missing)], column)
            except ValueError as why:
                raise Refused(str(why), column["name"]) from None
    return {"features": json.dumps(cells, ensure_ascii=False)}


def cost(row: Row, processor: TableProcessor) -> int:
    return len(processor.number_names) + len(processor.category_names)
