"""What is searched: fields of the experiment, and the values to try. `log:1e-4..1e-1`, `choice:64,128`, ...

A beta lies so near to 1 that its distance from 1 is what matters: `log` of a beta is of 1 - beta.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from bigmodel import experiment as experiments
from bigmodel.errors import ConfigError
from bigmodel.experiment import Check, Experiment, Problem
from bigmodel.yaml_lines import value_of

KINDS = ("log", "uniform", "int", "choice")
FORM = re.compile(rf"^({'|'.join(KINDS)}):(.*)$", re.DOTALL)
BETAS = {"optim.beta1": 0, "optim.beta2": 1}
ADAM = {"optim.lr": "log:1e-4..1e-1", "optim.beta1": "log:0.5..0.99", "optim.beta2": "log:0.9..0.9999"}
DESCENT = {"optim.lr": "log:1e-3..10", "optim.momentum": "uniform:0..0.99"}
PRETRAINED_RATES = "log:1e-6..1e-3"
GRID = 3
"""Values that a grid takes of a range: its ends and its middle."""
WHOLE = 2**53
"""Up to here every whole number is a float, as the ends of a range are."""
NULL = "null"
"""The choice of nothing, as Optuna knows it."""


@dataclass(frozen=True)
class Range:
    """The values of one field."""

    kind: Literal["log", "uniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()
    from_one: bool = False
    """log of 1 - value."""

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna knows it; of 1 - value where `from_one`."""
        if self.kind == "choice":
            return CategoricalDistribution([_key(value) for value in self.values])
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high))
        low, high = (1 - self.high, 1 - self.low) if self.from_one else (self.low, self.high)
        return FloatDistribution(low, high, log=self.kind == "log")

    def value(self, drawn: Any) -> Any:
        """What Optuna drew -> the field's value."""
        if self.kind == "choice":
            return next(value for value in self.values if _key(value) == drawn)
        value = 1 - drawn if self.from_one else drawn
        return float(f"{value:.6g}") if isinstance(value, float) else value

    def drawn(self, value: Any) -> Any:
        """The field's value -> what Optuna would have drawn: the nearest of the range. None where there is no such."""
        if self.kind == "choice":
            return _key(value) if value in self.values else None
        if not isinstance(value, (int, float)):
            return None
        ends = self.grid()
        nearest = min(max(1 - value if self.from_one else value, ends[0]), ends[-1])
        return round(nearest) if self.kind == "int" else nearest

    def grid(self) -> list[Any]:
        """The values of a grid, as Optuna draws them."""
        if self.kind == "choice":
            return [_key(value) for value in self.values]
        if self.kind == "int":
            numbers = range(int(self.low), int(self.high) + 1)
            return list(numbers) if len(numbers) <= GRID else [numbers[0], numbers[len(numbers) // 2], numbers[-1]]
        distribution = self.distribution
        assert isinstance(distribution, FloatDistribution)
        low, high = distribution.low, distribution.high
        return [low, (low * high) ** 0.5 if self.kind == "log" else (low + high) / 2, high]


Space = dict[str, Range]


def _key(value: Any) -> Any:
    """Optuna's choices are words and numbers: a list and a null stand as their YAML."""
    if value is None:
        return NULL
    return yaml.safe_dump(value, default_flow_style=True).strip() if isinstance(value, (list, dict)) else value


def is_range(override: str) -> bool:
    """`model.hidden_size=choice:64,128` is one, `optim.lr=2e-3` is not."""
    name, equals, value = override.partition("=")
    return bool(equals) and (FORM.match(value) is not None or value == "none" and name in (*ADAM, *DESCENT))


def space(experiment: Experiment, check: Check | None = None) -> Space:
    """The ranges that the experiment asks for, with learning rate and betas (or momentum) unless taken out.

    ConfigError, all at once, for a range that cannot be read, a field that is not there, or a value it cannot have.
    """
    found, wrong = _examined(experiment, check)
    if wrong:
        raise ConfigError("\n".join(message for _, message in wrong))
    return found


def and_ranges(check: Check) -> Check:
    """A check that names, where nothing else is wrong, what `space` would refuse, with the keys in the file."""

    def checked(tree: dict[str, Any]) -> list[Problem]:
        try:
            return check(tree) or _examined(Experiment.model_validate(tree), check)[1]
        except ValidationError:
            return []  # the sections say so themselves

    return checked


def _examined(experiment: Experiment, check: Check | None) -> tuple[Space, list[Problem]]:
    ranges: dict[str, Any] = dict(DESCENT if experiment.optim.type == "gd" else ADAM)
    if "pretrained" in experiment.model:
        ranges["optim.lr"] = PRETRAINED_RATES
    ranges |= experiment.tune.space
    found, wrong = Space(), list[Problem]()
    for name, text in ranges.items():
        if text == "none":
            continue
        try:
            found[name] = parse(name, text)
            for value in (found[name].value(drawn) for drawn in found[name].grid()):
                with_values(experiment, {name: value}, check)
        except ConfigError as e:
            wrong.append((("tune", "space", name), f"tune.space: {name}: {_last(str(e))}"))
    if not found and not wrong:
        nothing = "tune.space: nothing is left to search. Name a field, such as optim.lr: log:1e-4..1e-1"
        wrong.append((("tune", "space"), nothing))
    return found, wrong


def _last(message: str) -> str:
    return message.splitlines()[0].removeprefix("tune: ").removeprefix("command line: ")


def parse(name: str, text: str | Sequence[Any]) -> Range:
    """`log:1e-4..1e-1` -> Range. ConfigError says what the forms are."""
    if not isinstance(text, str):
        return Range("choice", values=_several(tuple(text)))
    form = FORM.match(text.strip())
    if form is None:
        raise ConfigError(
            f"'{text}' is no range. Ranges: log:1e-4..1e-1, uniform:0..0.5, int:1..4, choice:64,128, or a list"
        )
    kind, rest = form[1], form[2]
    if kind == "choice":
        return Range("choice", values=_several(_listed(rest)))
    try:
        low, high = (float(end) for end in rest.split(".."))
    except ValueError:
        low = high = 0.0
    if not (low < high and math.isfinite(high - low)):
        raise ConfigError(f"'{text}' is no range: write {kind}:LOW..HIGH with LOW below HIGH, such as {_such_as(kind)}")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"'{text}': int wants whole numbers; uniform:{rest} takes others")
    if kind == "int" and max(-low, high) > WHOLE:
        raise ConfigError(f"'{text}': int wants whole numbers up to {WHOLE:,}")
    from_one = kind == "log" and name in BETAS
    if kind == "log" and not from_one and low <= 0:
        raise ConfigError(f"'{text}': log wants numbers above 0")
    if from_one and not 0 <= low < high < 1:
        raise ConfigError(f"'{text}': log of a beta is of 1 - beta, and wants numbers from 0 to below 1")
    return Range(kind, low, high, from_one=from_one)  # type: ignore[arg-type]


def _listed(text: str) -> tuple[Any, ...]:
    try:
        return tuple(value_of(f"[{text}]"))
    except (yaml.YAMLError, ValueError):  # such as a date that no calendar has
        raise ConfigError(f"'choice:{text}' is no list. Such as choice:64,128, or a list: [[1, 2], [3]]") from None


def _several(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ConfigError("no value to choose from")
    return values


def _such_as(kind: str) -> str:
    return {"log": "log:1e-4..1e-1", "uniform": "uniform:0..0.5", "int": "int:1..4"}[kind]


def with_values(experiment: Experiment, values: Mapping[str, Any], check: Check | None = None) -> Experiment:
    """The experiment with fields changed. ConfigError where a field is not there or cannot have the value."""
    tree = experiment.model_dump(mode="json")
    for name, value in values.items():
        *sections, last = name.split(".")
        if name in BETAS:
            tree["optim"]["betas"][BETAS[name]] = value
            continue
        section = tree
        for part in sections:
            if not isinstance(section.get(part), dict):
                raise ConfigError(f"the experiment has no section '{part}'")
            section = section[part]
        section[last] = value
    return experiments.validate(tree, {}, "tune", check)


def current(experiment: Experiment, name: str, left_out: Any = None) -> Any:
    """What the experiment says itself of a field that is searched; `left_out` if nothing."""
    if name in BETAS:
        return experiment.optim.betas[BETAS[name]]
    found: Any = experiment.model_dump(mode="json")
    for part in name.split("."):
        found = found.get(part, left_out) if isinstance(found, dict) else left_out
    return found
