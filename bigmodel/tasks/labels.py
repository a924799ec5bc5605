"""Class labels: names in the data, numbers in the model, both directions in the config where transformers looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bigmodel.errors import DataError
from bigmodel.tasks.base import Refused
from bigmodel.tasks.tokenizer import normalize

SHOWN = 20  # labels in a message


def clean_label(value: Any, column: str) -> str:
    """The label as text: 1, 1.0 and "1" are one label, true is "true"."""
    if value is None:
        raise Refused("there is no label", column)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int, float)) or value != value:
        raise Refused(f"a label is a word or a number, not {type(value).__name__} {value!r:.40}", column)
    label = normalize(str(value))
    if not label:
        raise Refused("the label is empty", column)
    return label


def fit_labels(labels: Iterable[str], column: str) -> dict[str, Any]:
    """Labels of the training rows -> id2label, label2id: numbers in their order, words in the alphabet's."""
    names = sorted(set(labels), key=_by_number)
    if len(names) < 2:
        found = f"only '{names[0]}'" if names else "nothing"
        raise DataError(f"column '{column}': a classifier needs at least two labels, the training rows hold {found}")
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def label_id(label: str, label2id: Mapping[str, int]) -> int:
    """The number of a label; Refused if training rows have no such label."""
    number = label2id.get(label)
    if number is None:
        more = f" and {len(label2id) - SHOWN:,} more" if len(label2id) > SHOWN else ""
        some = ", ".join(list(label2id)[:SHOWN]) + more
        raise Refused(f"label '{label}' does not occur in the training rows. Known: {some}", "label")
    return int(number)


def _by_number(label: str) -> tuple[int, float, str]:
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label
