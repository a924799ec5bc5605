"""Rows of JSON Lines, and of a JSON file that is one array of objects."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bigmodel.data.encoding import NO_TEXT, UNDECODABLE, Lines
from bigmodel.data.record import Bad, Record, excerpt
from bigmodel.errors import DataError

LARGEST_ARRAY = 256 << 20
"""Characters of a JSON array, which is read whole; larger data comes as JSON Lines."""

_blank = re.compile(r"[ \t\r\n]*")
_between = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
_line_end = re.compile(r"\r\n|\r|\n")


def read_json(blocks: Iterator[Lines], source: str) -> Iterator[Record | Bad]:
    """A row a line; or, where the first character is a bracket, a row an element."""
    block = next((block for block in blocks if any(line.strip() for line in block.lines)), None)
    if block is None:
        raise DataError(f"{source}: is empty")
    if _is_array(block.lines):
        yield from _array(_text(block, blocks, source), source)
        return
    number = 0
    while block is not None:
        for line in block.lines:
            number += 1
            if line.strip():
                yield _row(line, source, number)
        block = next(blocks, None)


def _is_array(lines: list[str]) -> bool:
    """An array runs over several lines, or is the only one; else a line that is an array is a row, if a wrong one."""
    first, *more = (line.strip() for line in lines if line.strip())
    return first.startswith("[") and not (first.endswith("]") and more)


def _row(line: str, source: str, number: int) -> Record | Bad:
    try:
        if UNDECODABLE.search(line):
            raise ValueError(NO_TEXT)
        return Record(source, number, _object(parse(line.rstrip("\r\n"))))
    except ValueError as error:
        return Bad(source, number, None, str(error), excerpt(line))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a row is an object of names and values, not {type(value).__name__}")
    return value


def _text(block: Lines, blocks: Iterator[Lines], source: str) -> str:
    parts, size = list(block.lines), 0
    for block in blocks:
        parts += block.lines
        size += sum(map(len, block.lines))
        if size > LARGEST_ARRAY:
            limit = f"{LARGEST_ARRAY >> 20} Mi characters"
            raise DataError(f"{source}: a JSON array of more than {limit}. Write it as JSON Lines, an object a line")
    return "".join(parts)


def _array(text: str, source: str) -> Iterator[Record | Bad]:
    """The elements, each with the line it starts on. An element that is no row is refused; after one that is no JSON
    there is nothing to hold on to."""
    at = _blank.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]  # matches nothing as well
    number, counted, sign = 1, 0, "]" if text.startswith("]", at) else ","
    at += sign == "]"
    while sign == ",":
        number, counted = number + len(_line_end.findall(text, counted, at)), at
        try:
            end = _end(text, at)
        except ValueError as error:
            raise DataError(f"{source}:{number}: this is neither JSON Lines nor a JSON array: {error}") from None
        yield _row(text[at:end], source, number)
        if (between := _between.match(text, end)) is None:
            raise DataError(f"{source}:{number}: this JSON array breaks off after the element on this line")
        sign, at = between[1], between.end()
    if rest := text[at:].strip():
        raise DataError(f"{source}: something follows the JSON array: {excerpt(rest.splitlines()[0]):.40}")


def _end(text: str, at: int) -> int:
    """Where the value that starts here ends. Raises ValueError."""
    try:
        _, end = _decoder.raw_decode(text, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    return end


_decoder = json.JSONDecoder()


def parse(text: str) -> Any:
    """JSON as RFC 8259 has it: no NaN, no repeated names, no lone surrogates, no absurd nesting. Raises ValueError."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated)
    except RecursionError:
        raise ValueError("this is not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error.msg} at column {error.colno}") from None
    if "\\u" in text and UNDECODABLE.search(_flat(value)):
        raise ValueError("half of a surrogate pair is no character")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"'{repeated(pairs)}' is named twice")
    return found


def repeated(pairs: Sequence[tuple[str, Any]]) -> str:
    """The first name of an object that stands in it more than once."""
    counts = Counter(name for name, _ in pairs)
    return next(name for name in counts if counts[name] > 1)


def _flat(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
