"""What travels over HTTP: requests in, answers and refusals out. Knows JSON, not sockets and not models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

from bigmodel.complaints import wish
from bigmodel.data.jsonlines import repeated
from bigmodel.tasks.base import Refused, Row
from serve_app import multipart
from serve_app.refusal import Refusal, dump

Answer = Mapping[str, Any]

JSON = b"application/json"
UNDECLARED = (b"", b"application/x-www-form-urlencoded")  # the last is the default of curl -d
MULTIPART = b"multipart/form-data"
EVENTS = b"text/event-stream"
STREAM = "stream"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Beyond it the answer is a 4xx, before any work is done."""

    max_inputs: int = 64
    """Inputs in one request."""
    max_body_bytes: int = 1 << 20
    """Bytes of one request's body."""
    max_body_s: float = 30
    """Seconds in which the body must have come."""


@dataclass(frozen=True)
class Form:
    """What requests and answers of one model look like: made of the task's models of one input and one answer.

    A body is one input, answered by one answer, or many under one key, answered by a list in the same order. Inputs of
    one field are listed bare, under its plural: {"text": "..."} or {"texts": ["...", "..."]}; others are whole objects:
    {"age": 3, "city": "Lyon"} or {"inputs": [{"age": 3, "city": "Lyon"}, ...]}.
    """

    one: type[BaseModel]
    answer: type[BaseModel]
    limits: Limits
    asked: Callable[[Row], Row] = dict
    """The fields of an input -> the row to predict; raises Refused."""
    streams: bool = False
    """Whether a body may have `"stream": true`: its answer then comes a token at a time."""

    @cached_property
    def bare(self) -> str:
        """The only field of an input; nothing if it has more."""
        return next(iter(self.one.model_fields)) if len(self.one.model_fields) == 1 else ""

    @cached_property
    def names(self) -> list[str]:
        """The keys of one input, as they stand in a body."""
        return [field.alias or name for name, field in self.one.model_fields.items()]

    @cached_property
    def plural(self) -> str:
        word = f"{self.names[0]}s" if self.bare else "inputs"
        while word in self.names:  # a column of a table may be called anything
            word = f"many_{word}"
        return word

    @cached_property
    def file(self) -> tuple[str, str]:
        """The field that takes a file, and the media type of its bytes, such as image/*; nothing if none does."""
        properties = self.one.model_json_schema()["properties"]
        found = [(name, what["contentMediaType"]) for name, what in properties.items() if "contentMediaType" in what]
        return found[0] if found else ("", "")

    def takes(self, kind: bytes) -> bool:
        """Whether a body of this content type can be a request: JSON, and where a field takes a file, such a file or a
        form with files."""
        media = self.file[1].removesuffix("*").encode()
        return kind in (JSON, *UNDECLARED) or bool(media) and (kind == MULTIPART or kind.startswith(media))

    @cached_property
    def keys(self) -> list[str]:
        return [*self.names, self.plural, *([STREAM] if self.streams else [])]

    @cached_property
    def many(self) -> type[BaseModel]:
        """The body that asks about many inputs."""
        inner: Any = self.one.model_fields[self.bare].rebuild_annotation() if self.bare else self.one
        says = f"At most {self.limits.max_inputs}. The answer is a list in the same order."
        fields: dict[str, Any] = {"listed": (list[inner], Field(alias=self.plural, description=says))}
        config = ConfigDict(extra="forbid", strict=self.one.model_config.get("strict", False))
        made: type[BaseModel] = create_model(f"Many{self.one.__name__}s", __config__=config, **fields)
        return made

    def parse(self, body: bytes, kind: bytes = JSON) -> tuple[list[Row], bool]:
        """The inputs a body of this content type asks about, and whether it asked for many. Raises Refusal (400, 413 or
        422)."""
        if self.file[0] and kind.partition(b";")[0].strip().lower() not in (JSON, *UNDECLARED):
            return self._parse_files(body, kind)
        return self._parse(self._tree(body))

    def parse_streamed(self, body: bytes, kind: bytes = JSON) -> tuple[list[Row], bool, bool]:
        """The same, and whether the answer is to come a token at a time."""
        if not self.streams:
            return *self.parse(body, kind), False
        tree = self._tree(body)
        stream = tree.pop(STREAM, False)
        if not isinstance(stream, bool):
            raise Refusal(422, "invalid_type", f"{STREAM} must be true or false.")
        if stream and self.plural in tree:
            raise Refusal(
                422, "invalid_request", f"Only one input can be streamed: give {self.example}, or no {STREAM}."
            )
        return *self._parse(tree), stream

    def _parse(self, tree: dict[str, Any]) -> tuple[list[Row], bool]:
        if many := self.plural in tree:
            self._check_number(tree)
        try:
            if not many:
                return [self.asked(dict(self.one.model_validate(tree)))], False
            listed = self.many.model_validate(tree).listed  # type: ignore[attr-defined]
            return [self.asked({self.bare: item} if self.bare else dict(item)) for item in listed], True
        except ValidationError as error:
            raise self._refused(error) from None
        except Refused as refused:
            raise Refusal(422, "invalid_value", f"{refused.reason}.") from None

    def _parse_files(self, body: bytes, kind: bytes) -> tuple[list[Row], bool]:
        """A file alone, or those of a form."""
        name, many = self.file[0], False
        found = [body]
        if kind.lower().startswith(MULTIPART):
            parts = multipart.parse(body, kind)
            for key, _ in parts:
                if key not in (name, self.plural):
                    said = f"A form has {name}, or {self.plural}; not {key[:80]!r}."
                    raise Refusal(422, "unknown_key", said)
            found = [data for _, data in parts]
            many = len(parts) > 1 or any(key == self.plural for key, _ in parts)
        if not found:
            raise Refusal(422, "empty", f"The form has no file. Give at least one as {name}.")
        self._check_count(len(found))
        try:
            return [self.asked({name: data}) for data in found], many
        except Refused as refused:
            raise Refusal(422, "invalid_value", f"{refused.reason}.") from None

    def _tree(self, body: bytes) -> dict[str, Any]:
        try:
            tree = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise Refusal(400, "invalid_json", f"The body is not JSON: {error}.") from None
        if not isinstance(tree, dict):
            raise Refusal(422, "invalid_request", f"The body must be a JSON object such as {self.example}.")
        json.loads(body, object_pairs_hook=_no_key_twice)  # from_json keeps the last of two
        return tree

    def _check_number(self, tree: dict[str, Any]) -> None:
        if not tree.keys().isdisjoint(self.names):
            raise Refusal(422, "invalid_request", f"Give either one input, {self.example}, or {self.plural}, not both.")
        listed = tree[self.plural]
        if not isinstance(listed, list):
            return  # pydantic says so
        if not listed:
            raise Refusal(422, "empty", f"{self.plural} is an empty list. Give at least one.")
        self._check_count(len(listed))

    def _check_count(self, count: int) -> None:
        if count > (most := self.limits.max_inputs):
            message = f"{count} {self.plural} in one request; at most {most} are accepted. Split it."
            raise Refusal(413, f"too_many_{self.plural}", message)

    @cached_property
    def example(self) -> str:
        """One input, as JSON; without the options of a task that streams."""
        fields = self.one.model_fields
        names = [name for name in self.names if not self.streams or fields[name].is_required()]
        return json.dumps({name: "..." for name in names}, ensure_ascii=False)

    def _refused(self, error: ValidationError) -> Refusal:
        """pydantic's first complaint as one sentence that never repeats the person's text."""
        first = _told(error.errors(include_url=False, include_input=False))
        loc = [part for part in first["loc"] if not _is_alternative(part) or part in self.names]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")[:80]
        kind = first["type"]
        if kind == "extra_forbidden":
            return Refusal(422, "unknown_key", f"{where} is not a key of a request. Keys: {', '.join(self.keys)}.")
        if kind == "missing":
            return Refusal(422, "missing_key", f"{where} is missing. Send {self.example}, or a list: {self.plural}.")
        if kind == "value_error":
            return Refusal(422, "invalid_value", f"{where} {first['ctx']['error']}.")
        wanted = {"string_type": "a string", "list_type": "a list", "model_type": "an object"}.get(kind) or wish(first)
        return Refusal(422, "invalid_type", f"{where} must be {wanted}.")


def _is_alternative(part: int | str) -> bool:
    """Whether this part of a place is pydantic's name for one of several types that a value may have."""
    return part == "str" or str(part).startswith("list[")


def _told(errors: list[Any]) -> Any:
    """The first complaint; of a value that may be of several types, the one that got furthest."""
    first = errors[0]
    if not _is_alternative(first["loc"][-1]):
        return first
    same = [error for error in errors if error["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]]
    return max(same, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refusal(422, "repeated_key", f"The key {dump(repeated(pairs)).decode():.60} stands twice in one object.")
    return found


def too_large(limits: Limits) -> Refusal:
    """The connection is closed, for the rest of the body has not been read."""
    message = f"The body is larger than {limits.max_body_bytes} bytes. Send less in one request."
    return Refusal(413, "body_too_large", message, [(b"connection", b"close")])


def too_slow(limits: Limits) -> Refusal:
    message = f"The body had not come after {limits.max_body_s:g} s."
    return Refusal(408, "body_too_slow", message, [(b"connection", b"close")])


def overloaded(retry_after_s: int) -> Refusal:
    return Refusal(
        503,
        "overloaded",
        f"The server has more requests than it can answer now. Try again in {retry_after_s} s.",
        [(b"retry-after", str(retry_after_s).encode())],
    )
