"""Class labels: names in the data, numbers in the model, both directions in the config where transformers looks."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bigmodel.errors import DataError
from bigmodel.tasks.base import Alike, Answer, Refused
from bigmodel.tasks.tokenizer import normalize

if TYPE_CHECKING:
    from pydantic import BaseModel

SHOWN = 20  # labels in a message
MANY = 10  # rows of which no two have the same label: these are no labels


def clean_label(value: Any, column: str) -> str:
    """The label as text: 1, 1.0 and "1" are one label, true is "true"."""
    if value is None:
        raise Refused("there is no label", column)
    word = as_word(value)
    if not isinstance(word, str):
        raise Refused(f"a label is a word or a number, not {type(value).__name__} {value!r:.40}", column)
    label = normalize(word)
    if not label:
        raise Refused("the label is empty", column)
    return label


def as_word(value: Any) -> Any:
    """A number or truth as a file of words has it: 1 and 1.0 are "1", true is "true". Anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, float)) and value == value else value


def named(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """The label of each answer or row; equal ones are one string in memory."""
    return [sys.intern(item["label"]) for item in items]


def fit_labels(labels: Iterable[str], column: str) -> dict[str, Any]:
    """Labels of the training rows -> id2label, label2id: numbers in their order, words in the alphabet's."""
    counts = Counter(labels)
    names = sorted(counts, key=_by_number)
    if len(names) == counts.total() >= MANY:
        raise DataError(
            f"column '{column}': each of the {len(names):,} training rows has a label of its own, such as "
            f"'{names[0]:.40}'. Name the column of labels that rows share with data.label"
        )
    if len(names) < 2:
        found = f"only '{names[0]}'" if names else "nothing"
        raise Alike(f"column '{column}': a classifier needs at least two labels, the training rows hold {found}")
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def label_id(label: str, label2id: Mapping[str, int]) -> int:
    """The number of a label; Refused if training rows have no such label."""
    number = label2id.get(label)
    if number is None:
        more = f" and {len(label2id) - SHOWN:,} more" if len(label2id) > SHOWN else ""
        some = ", ".join(list(label2id)[:SHOWN]) + more
        raise Refused(
            f"label '{label}' does not occur in the training rows. Known: {some}{_meant(label, label2id)}", "label"
        )
    return int(number)


def answers(logits: Any, id2label: Mapping[int, str]) -> list[Answer]:
    """Logits (B, K) -> label, score and the scores of all labels, a row each."""
    names = [id2label[i] for i in range(logits.shape[-1])]
    found: list[Answer] = []
    for row in logits.float().softmax(-1).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        found.append({"label": names[best], "score": row[best], "scores": dict(zip(names, row, strict=True))})
    return found


def answer_model(**more: Any) -> type[BaseModel]:
    """The pydantic model of what `answers` gives, and of `more` fields that a task adds."""
    from pydantic import Field, create_model

    return create_model(
        "Label",
        label=(str, Field(description="The likeliest label.")),
        score=(float, Field(description="Probability of `label`.")),
        scores=(dict[str, float], Field(description="Probability of every label.")),
        **more,
    )


def _meant(label: str, known: Iterable[str]) -> str:
    """What to do where it is nearly one of those that are known; nothing if it is not."""
    close = next((name for name in known if _bare(name) == _bare(label)), None)
    return f". If it is the same as '{close}', say so: data.relabel={{'{label}': '{close}'}}" if close else ""


def _bare(label: str) -> str:
    return label.strip(" .;,'\"").casefold()


def _by_number(label: str) -> tuple[int, float, str]:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)
