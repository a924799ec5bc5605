"""Which tasks read a field that not all of them read. Given to another, it would have no effect: that is a mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigmodel.experiment import Experiment, Problem, Section

TABLES = ("tabular-classification", "tabular-regression")
LABELLED = ("text-classification", "image-classification", *TABLES)
TEXTS = ("text-classification", "translation", "text-generation")
IMAGES = ("image-classification",)
READERS = {
    "data.text": ("text-classification", "text-generation"),
    "data.image": IMAGES,
    "data.source": ("translation",),
    "data.target": ("translation",),
    "data.label": LABELLED,
    "data.relabel": LABELLED,
    "data.separator": ("text-generation",),
    "data.max_length": TEXTS,
    "data.tokenizer": TEXTS,
    "data.tokenizer.joint": ("translation",),
    "data.images": IMAGES,
    **{f"data.augment.{name}": ("text-classification", "translation") for name in ("token_dropout", "swap", "mask")},
    **{f"data.augment.{name}": IMAGES for name in ("crop", "flip", "rotation", "colour", "erasing", "mixup", "cutmix")},
    "data.table": TABLES,
    "train.label_smoothing": tuple(task for task in (*LABELLED, *TEXTS) if task != "tabular-regression"),
    "decode": ("translation",),
}


def problems(tree: Mapping[str, Any], task: str) -> list[Problem]:
    """What of an experiment's tree this task does not read, other than defaults."""
    found: list[Problem] = []
    for at in given(Experiment, tree):
        name = ".".join(at)
        readers = next((READERS[prefix] for prefix in prefixes(name) if prefix in READERS), (task,))
        if task not in readers:
            found.append(
                (at, f"{name} has no effect: {task} does not read it, but {' and '.join(dict.fromkeys(readers))}")
            )
    return found


def prefixes(name: str) -> Iterator[str]:
    """The longest first: `data.table.bins`, `data.table`, `data`."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def given(section: type[Section], tree: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The fields that a tree gives other values than the default ones."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(tree.get(name), Mapping):
            yield from given(kind, tree[name], (*at, name))
        elif name in tree and tree[name] != field.default:
            yield (*at, name)
