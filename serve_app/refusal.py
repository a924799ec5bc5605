"""An HTTP answer that is not an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class Refusal(Exception):
    """An HTTP answer that is not an answer: the status, a stable code for programs, one sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, list(headers)

    def body(self) -> bytes:
        return dump({"error": {"code": self.code, "message": self.message}})


def dump(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
