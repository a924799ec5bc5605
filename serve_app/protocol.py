"""What travels over HTTP: requests in, answers and refusals out. Knows JSON, not sockets and not models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Answer = Mapping[str, Any]

JSON = b"application/json"

_visible = re.compile(r"[^\s\x00\x1c-\x1f\x85\ufeff]")  # what the tokenizers' normaliser does not take for white space


class PredictRequest(BaseModel):
    """`{"text": "..."}` is answered by one answer, `{"texts": ["...", ...]}` by a list in the same order."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str | None = Field(default=None, description="One text. The answer is one object.")
    texts: list[str] | None = Field(default=None, description="Many texts. The answer is a list in the same order.")


class TextAnswer(BaseModel):
    """What the model says about one text; the last three keys are there only if it was longer than the model reads."""

    label: str
    score: float = Field(description="Probability of `label`.")
    scores: dict[str, float] = Field(description="Probability of every label.")
    truncated: bool | None = Field(default=None, description="true: the model read only the beginning.")
    tokens: int | None = Field(default=None, description="Tokens the text has.")
    tokens_read: int | None = Field(default=None, description="Tokens the model read.")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Beyond it the answer is a 4xx, before any work is done."""

    max_texts: int = 64
    """Texts in one request."""
    max_body_bytes: int = 1 << 20
    """Bytes of one request's body."""


class Refusal(Exception):
    """An HTTP answer that is not an answer: the status, a stable code for programs, one sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, list(headers)

    def body(self) -> bytes:
        return dump({"error": {"code": self.code, "message": self.message}})


def parse(body: bytes, limits: Limits) -> tuple[list[str], bool]:
    """The texts a body asks about, and whether it asked for many. Raises Refusal (400, 413 or 422)."""
    try:
        request = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    if (request.text is None) == (request.texts is None):
        raise Refusal(422, "invalid_request", 'Give either "text" (a string) or "texts" (a list of strings).')
    if request.text is not None:
        if not _visible.search(request.text):
            raise Refusal(422, "empty_text", "text is empty. Give at least one character that is not white space.")
        return [request.text], False
    texts = request.texts or []
    _check_many(texts, limits)
    return texts, True


def _check_many(texts: list[str], limits: Limits) -> None:
    if not texts:
        raise Refusal(422, "empty_text", "texts is an empty list. Give at least one text.")
    if len(texts) > limits.max_texts:
        raise Refusal(
            413,
            "too_many_texts",
            f"{len(texts)} texts in one request; at most {limits.max_texts} are accepted. Split it.",
        )
    for index, text in enumerate(texts):
        if not _visible.search(text):
            raise Refusal(
                422, "empty_text", f"texts[{index}] is empty. Give at least one character that is not white space."
            )


def _refused(error: ValidationError) -> Refusal:
    """pydantic's first complaint as one sentence that never repeats the person's text."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first["loc"])
    kind = first["type"]
    if kind == "json_invalid":
        detail = first["msg"].removeprefix("Invalid JSON: ")
        return Refusal(400, "invalid_json", f"The body is not JSON: {detail}.")
    if kind == "extra_forbidden":
        return Refusal(422, "unknown_key", f"{where} is not a key of a request. Keys: text, texts.")
    if not where:
        return Refusal(422, "invalid_request", 'The body must be a JSON object such as {"text": "..."}.')
    wanted = {"string_type": "a string", "list_type": "a list of strings"}.get(kind)
    return Refusal(422, "invalid_type", f"{where} must be {wanted}." if wanted else f"{where}: {first['msg']}.")


def too_large(limits: Limits) -> Refusal:
    """The connection is closed, for the rest of the body has not been read."""
    message = f"The body is larger than {limits.max_body_bytes} bytes. Send fewer or shorter texts in one request."
    return Refusal(413, "body_too_large", message, [(b"connection", b"close")])


def overloaded(retry_after_s: int) -> Refusal:
    return Refusal(
        503,
        "overloaded",
        f"The server has more requests than it can answer now. Try again in {retry_after_s} s.",
        [(b"retry-after", str(retry_after_s).encode())],
    )


def dump(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
