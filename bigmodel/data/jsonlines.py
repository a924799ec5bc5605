"""Rows of JSON Lines, and of a JSON file that is one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bigmodel.data.encoding import UNDECODABLE, Lines
from bigmodel.data.record import Bad, Record, excerpt
from bigmodel.errors import DataError

LARGEST_ARRAY = 256 << 20
"""Characters of a JSON array, which is read whole; larger data comes as JSON Lines."""


def read_json(blocks: Iterator[Lines], source: str) -> Iterator[Record | Bad]:
    """A row a line; or, where the first character is a bracket, a row an element."""
    first = next((block for block in blocks if any(line.strip() for line in block.lines)), None)
    if first is None:
        raise DataError(f"{source}: is empty")
    start = next(line for line in first.lines if line.strip()).lstrip()
    if start.startswith("[") and (
        not start.rstrip().endswith("]") or sum(bool(line.strip()) for line in first.lines) == 1
    ):
        yield from _array(first, blocks, source)
        return
    number = 0
    while first is not None:
        for line in first.lines:
            number += 1
            if line.strip():
                yield _row(line, source, number)
        first = next(blocks, None)


def _row(line: str, source: str, number: int) -> Record | Bad:
    if UNDECODABLE.search(line):
        return Bad(source, number, None, "bytes that are no text in this encoding", excerpt(line))
    try:
        value = parse(line)
    except ValueError as error:
        return Bad(source, number, None, f"this is not JSON: {error}", excerpt(line))
    return _record(value, line, source, number)


def _record(value: Any, raw: str, source: str, number: int) -> Record | Bad:
    if not isinstance(value, dict):
        return Bad(
            source, number, None, f"a row is an object of names and values, not {type(value).__name__}", excerpt(raw)
        )
    return Record(source, number, value)


def _array(first: Lines, blocks: Iterator[Lines], source: str) -> Iterator[Record | Bad]:
    parts, size = list(first.lines), 0
    for block in blocks:
        parts += block.lines
        size += sum(map(len, block.lines))
        if size > LARGEST_ARRAY:
            raise DataError(
                f"{source}: a JSON array of more than {LARGEST_ARRAY >> 20} Mi characters. Write it as JSON Lines"
            )
    text = "".join(parts)
    try:
        rows = parse(text)
    except ValueError as error:
        raise DataError(f"{source}: this is neither JSON Lines nor a JSON array: {error}") from None
    for number, value in enumerate(rows, 1):
        yield _record(value, json.dumps(value), source, number)


def parse(text: str) -> Any:
    """JSON as RFC 8259 has it: no NaN, no repeated names, no lone surrogates, no absurd nesting. Raises ValueError."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    if "\\u" in text and UNDECODABLE.search(_flat(value)):
        raise ValueError("half of a surrogate pair is no character")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is named twice")
    return found


def _flat(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
