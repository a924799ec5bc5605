"""YAML 1.2 as people mean it, with the line of every key, and what is wrong where it is none."""

from __future__ import annotations

import re
from typing import Any

import yaml

from bigmodel.errors import ConfigError, first_line

Lines = dict[tuple[str, ...], int | str]
"""Path of a key -> its line, or who else said it."""


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 2e-3 is a number, no and on are words. A key is always a word: 0 may be a label's name."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp) for tag, regexp in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse(text: str, path: str) -> tuple[dict[str, Any], Lines]:
    """YAML -> (tree, line of every key). Syntax errors and repeated keys are ConfigErrors with their line."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        lines: Lines = {}
        _note_lines(node, (), lines, path)
        tree = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}:{_syntax_error(e, text)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: this YAML is nested too deeply") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: an experiment is a mapping of task, data, model ...; found {type(tree).__name__}")
    return tree, lines


def value_of(text: str) -> Any:
    """What stands behind a key, or `key=` on a command line. yaml.YAMLError if it is no YAML."""
    return yaml.load(text, Loader)


def _syntax_error(error: yaml.YAMLError, text: str) -> str:
    """Line, column, and what stands there that is not YAML."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{line}: this is not YAML: {error.reason} (U+{ord(text[error.position]):04X})"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
    if not mark:
        return f" {problem}"
    if problem in ("could not find expected ':'", "found unexpected end of stream"):  # and is noticed lines later
        mark = getattr(error, "context_mark", None) or mark
    above, here = ["", *text.splitlines(), ""][mark.line : mark.line + 2]
    hint = _hint(problem, here[: mark.column], above)
    return f"{mark.line + 1}:{mark.column + 1}: this is not YAML: {problem}{hint}"


def _hint(problem: str, before: str, above: str) -> str:
    """What is mostly meant where such a problem is found behind this part of a line, below that one."""
    if "'\\t'" in problem:
        return ". Indent with spaces"
    if "alphabetic or numeric" in problem or "alias" in problem:
        return ". What begins with * or & wants quotation marks: '*.csv'"
    if any(words in problem for words in ("cannot start any token", "constructor for the tag", "the node content")):
        return ". What begins so wants quotation marks"
    if "expected ':'" in problem or (problem.startswith("mapping values") and re.match(r"\s*\w+:\S", above)):
        return ". A key ends with a colon and a blank"
    if "block end" in problem or (problem.startswith("mapping values") and ": " not in before):
        return ". Indent the keys of a section alike"
    if problem.startswith("mapping values"):
        return ". Keys of a section stand on lines of their own, and a value with ': ' in it wants quotation marks"
    return ". The quotation mark here has no end" if "end of stream" in problem else ""


def _note_lines(node: Any, at: tuple[str, ...], lines: Lines, path: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*at, str(key.value))
        if here in lines:
            raise ConfigError(
                f"{path}:{key.start_mark.line + 1}: '{'.'.join(here)}' stands here again (first on line {lines[here]})"
            )
        lines[here] = key.start_mark.line + 1
        _note_lines(value, here, lines, path)
