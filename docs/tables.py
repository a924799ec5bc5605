"""The tables of the README, from the code they describe.   .venv/bin/python docs/tables.py   (`make docs`)

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; tests/test_docs.py fails where one is out of date.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

README = Path(__file__).parent.parent / "README.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def experiment() -> str:
    """Every field of an experiment file."""
    from bigmodel.experiment import Experiment

    return table(("field", "default", "meaning"), fields(Experiment, ""))


def serve() -> str:
    """Every option of `bigmodel serve` and of a Serve config file's `args`."""
    from serve_app.options import ServeOptions

    return table(("option", "default", "meaning"), fields(ServeOptions, ""))


def models() -> str:
    """Every field of our architectures, from the dataclass and its docstring; types with the same fields together."""
    from bigmodel import models

    types: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for model in models.OURS:
        types.setdefault(tuple(architecture(model.config_class)), []).append(model.config_class.model_type)
    rows = [(", ".join(names), *field) for fields, names in types.items() for field in fields]
    return table(("type", "field", "default", "meaning"), rows)


def architecture(config: Any) -> Iterator[tuple[str, str, str]]:
    """(name, default, meaning) of the fields a person can set."""
    from bigmodel.models.fields import LEARNT, own_fields

    meanings = {name: meaning for parent in reversed(config.__mro__) for name, meaning in described(parent).items()}
    for field in dataclasses.fields(config):
        if field.name in own_fields(config) - set(LEARNT):
            made = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if made else field.default
            yield f"`{field.name}`", shown(default), meanings.get(field.name, "")


def answers() -> str:
    """Every field of an answer, from the model that the endpoint's document has of it; tasks with the same together."""
    from bigmodel import tasks

    named: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in tasks.TASKS:
        fields = tasks.get(name).answer(None).model_fields.items()
        named.setdefault(tuple((f"`{field}`", told.description or "") for field, told in fields), []).append(name)
    rows = [(", ".join(names), *field) for fields, names in named.items() for field in fields]
    return table(("task", "field", "meaning"), rows)


def refusals() -> str:
    """What the endpoint answers when it does not answer."""
    from serve_app.documents import REFUSALS

    return table(("status", "reason"), [(str(status), reason) for status, reason in REFUSALS.items()])


TABLES: dict[str, Callable[[], str]] = {f.__name__: f for f in (experiment, serve, models, answers, refusals)}


def fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, meaning) of every field, sections unfolded."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else shown(field.default)
        meaning = " ".join((field.description or "").split())
        yield f"`{prefix}{name}`", default, f"{choices(field.annotation)}{meaning}"


def choices(annotation: Any) -> str:
    """`a`, `b` or `c`. -- where a field takes one word of a few."""
    if get_origin(annotation) is not Literal or len(get_args(annotation)) == 1:
        return ""
    words = [f"`{word}`" for word in get_args(annotation)]
    return f"{', '.join(words[:-1])} or {words[-1]}. "


def described(config: Any) -> dict[str, str]:
    """The aligned lines of a config's docstring: name, two spaces or more, meaning, which may go on further in."""
    meanings, name = dict[str, str](), ""
    for line in textwrap.dedent("    " + (config.__doc__ or "")).splitlines():
        if found := re.match(r"(\w+)  +(\S.*)", line):
            name, meanings[found[1]] = found[1], found[2]
        elif name and line.startswith(" "):
            meanings[name] += f" {line.strip()}"
        else:
            name = ""
    return meanings


def shown(value: Any) -> str:
    """As it would stand in the file."""
    if value in (None, ""):
        return "none"
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...').strip()}`".replace("\n...", "")


def table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(escaped(cell) for cell in line)} |\n" for line in lines)


def escaped(cell: str) -> str:
    """What stands between backticks is shown as it is, but for the bar that would end the cell."""
    parts = cell.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


def filled(text: str) -> str:
    """The README with every table written anew."""
    return MARKED.sub(lambda found: found[1] + "\n" + TABLES[found[2]]() + "\n" + found[3], text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text("utf-8")), "utf-8")
