"""Records of a file -> cleaned rows with their place. What is refused keeps its place and says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel.data import images
from bigmodel.data.record import Bad, ReadOptions, excerpt
from bigmodel.data.sources import is_of_images, open_rows
from bigmodel.errors import DataError, did_you_mean
from bigmodel.experiment import DataConfig
from bigmodel.tasks import labels
from bigmodel.tasks.base import BLOCK, WHOLE, Refused, Row, Task

SHOWN = 20  # names of columns in a message


@dataclass(frozen=True, slots=True)
class Placed:
    """A row and the file and line it came from."""

    row: Row
    source: str
    line: int


def read_options(data: DataConfig) -> ReadOptions:
    names = tuple(data.columns) if data.columns is not None else None
    return ReadOptions(
        format=data.format,
        encoding=data.encoding,
        delimiter=data.delimiter,
        columns=names,
        separator=data.separator,
        ignored={column for column, kind in data.table.types.items() if kind == "ignore"},
        relabel=data.relabel,
    )


def clean(
    source: str,
    task: Task,
    wanted: Mapping[str, str],
    options: ReadOptions,
    groups: range | None = None,
    *,
    needed: Collection[str] = (),
    renamed: set[str] | None = None,
) -> Iterator[Placed | Bad]:
    """Every record of a file (or of some row groups), cleaned or refused, in order. `wanted` is role -> column; of a
    whole record there must be the columns `needed`. The labels that were given another name are added to `renamed`."""
    whole, of_images = WHOLE in wanted.values(), is_of_images(source, options)
    if of_images:  # has no columns to be named
        if "image" not in wanted:
            raise DataError(
                f"{source}: holds images, which are read with task: image-classification. Name files of rows"
            )
        wanted = {role: role for role in wanted}
    names, rows = open_rows(source, options, None if whole else wanted.values(), groups)
    _check_columns(source, {role: column for role, column in wanted.items() if column not in (WHOLE, BLOCK)}, names)
    _check_twice(source, names, set(names) - set(options.ignored) if whole else set(wanted.values()))
    if whole:
        _check_ignored(source, options, names)
        _check_needed(source, needed, names)
    if of_images and "label" in wanted:
        rows = images.labelled(source, rows)
    for record in rows:
        if isinstance(record, Bad):
            yield record
            continue
        if isinstance(record.values.get(wanted.get("image", "")), str):
            record = images.fetched(record, wanted["image"])
            if isinstance(record, Bad):
                yield record
                continue
        try:
            values = _as_meant(record.values, wanted, options, renamed)
            yield Placed(task.clean(values, wanted), record.source, record.line)
        except Refused as refused:
            value = record.values.get(refused.column or "", "")
            yield Bad(record.source, record.line, refused.column, refused.reason, excerpt(str(value)))
        except KeyError as missing:
            yield Bad(
                record.source, record.line, missing.args[0], "the row has no such field", excerpt(str(record.values))
            )


def _check_twice(source: str, names: Sequence[str], read: set[str]) -> None:
    counts = Counter(names)
    if twice := sorted(name for name in read if counts[name] > 1):
        raise DataError(f"{source}: {counts[twice[0]]} columns are called '{twice[0]}'. Give each a name of its own")


def _check_ignored(source: str, options: ReadOptions, names: Sequence[str]) -> None:
    """A column to be ignored need not be there; one that is misspelt would be read."""
    for column in sorted(set(options.ignored) - set(names)):
        if meant := did_you_mean(column, set(names) - set(options.ignored)):
            raise DataError(f"{source}: data.table.types ignores '{column}', but there is no such column.{meant}")


def _check_needed(source: str, needed: Collection[str], names: Sequence[str]) -> None:
    """What no row of the file has is said once."""
    if missing := [column for column in needed if column not in names]:
        raise DataError(
            f"{source}: no column '{missing[0]}', which the model reads{_others(missing[1:])}."
            f"{did_you_mean(missing[0], names)} Columns: {_some(names)}"
        )


def _others(columns: Sequence[str]) -> str:
    return f", nor {_some(columns)}" if columns else ""


def _as_meant(
    values: dict[str, Any], wanted: Mapping[str, str], options: ReadOptions, renamed: set[str] | None
) -> dict[str, Any]:
    """Labels by the name they are to have; what is ignored is not there."""
    if options.ignored and WHOLE in wanted.values():
        values = {column: value for column, value in values.items() if column not in options.ignored}
    column = wanted.get("label")
    if options.relabel and column in values:
        word = labels.as_word(values[column])
        if isinstance(word, str) and word.strip() in options.relabel:
            values = {**values, column: options.relabel[word.strip()]}
            if renamed is not None:
                renamed.add(word.strip())
    return values


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(" ".join(name.split()) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _check_columns(source: str, wanted: Mapping[str, str], names: Sequence[str]) -> None:
    for role, column in wanted.items():
        if column not in names:
            raise DataError(
                f"{source}: no column '{column}'.{did_you_mean(column, names)} Columns: {_some(names)}. "
                f"Name the one that holds the {role} with data.{role}=NAME"
            )
