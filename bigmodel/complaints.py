"""What pydantic finds wrong of a value, in a sentence: of an experiment file, a request, an option."""

from __future__ import annotations

import re
from typing import Any

from bigmodel.errors import did_you_mean

RANGES = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
KINDS = {
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false",
    "string": "a word", "list": "a list of words", "tuple": "a list of two numbers", "too": "a list of two numbers",
    "dict": "a section, with keys and values under it", "model": "a section, with keys and values under it",
}  # fmt: skip
"""What a value must be, by the first word of pydantic's name for what is wrong."""


def complaint(name: str, found: Any) -> str:
    """One sentence for what pydantic finds wrong of a value that is called so."""
    if found["type"] == "literal_error":
        return no_choice(name, found, f"{found['input']!r:.80}")
    if found["type"] == "value_error":
        return f"{name} {found['msg'].removeprefix('Value error, ')}"
    return f"{name} is {found['input']!r:.80}, but must be {wish(found)}"


def no_choice(name: str, found: Any, shown: str) -> str:
    known = re.findall(r"'([^']*)'", found["ctx"]["expected"])
    hint = did_you_mean(str(found["input"]), known)
    return f"{name} is {shown}.{hint} Known: {', '.join(known)}"


def wish(found: Any) -> str:
    """What must be in place of a value that pydantic refuses."""
    kind, within = found["type"], isinstance(found["loc"][-1], int)
    if kind in RANGES:
        limit = f"{WORDS[RANGES[kind]]} {found['ctx'][RANGES[kind]]:g}"
        return f"numbers {limit}" if within else limit
    if within:
        return KINDS["list" if kind.startswith("string") else "tuple"]
    if kind == "list_type" and "int]" in str(found["loc"][-1]):  # as pydantic names this alternative
        return KINDS["tuple"]
    if kind == "literal_error":
        return str(found["ctx"]["expected"])
    if kind.endswith(("too_short", "too_long")) and found["ctx"].get("field_type") != "Tuple":
        what, limits = "a text" if kind.startswith("string") else "a list", found["ctx"]
        short = kind.endswith("short")
        return f"{what} of " + (f"at least {limits['min_length']}" if short else f"at most {limits['max_length']}")
    return KINDS.get(kind.partition("_")[0]) or str(found["msg"]).removeprefix("Input should be ")
