"""A body of multipart/form-data (RFC 7578) to its parts. All of it is in memory, within the limits of a request."""

from __future__ import annotations

import re
from email.utils import unquote

from serve_app.refusal import Refusal

MAX_PARTS = 1024

_parameters = re.compile(r';\s*([^\s;=]+)\s*=\s*("(?:[^"\\]|\\.)*+"|[^;]*)')


def parse(body: bytes, content_type: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of each part. Raises Refusal (400) where this is no form."""
    boundary = _parameter(content_type.decode("latin-1"), "boundary")
    if not boundary:
        raise Refusal(400, "invalid_form", "The content type multipart/form-data names no boundary.")
    mark = b"--" + boundary.encode("latin-1")
    first, *parts = (b"\r\n" + body).split(b"\r\n" + mark, MAX_PARTS)
    if not parts or not parts[-1].startswith(b"--"):
        raise Refusal(400, "invalid_form", "The form has no end, or its parts are not those of its boundary.")
    return [_part(part) for part in parts[:-1]]


def _part(part: bytes) -> tuple[str, bytes]:
    """Header lines, an empty line, content."""
    head, empty, data = part.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if empty and key.strip().lower() == b"content-disposition":
            return _parameter(value.decode("utf-8", "replace").strip(), "name"), data
    raise Refusal(400, "invalid_form", "A part of the form has no name (content-disposition).")


def _parameter(header: str, name: str) -> str:
    """A parameter of a header such as `form-data; name="image"`; empty if it has none."""
    found = (match for match in _parameters.finditer(header) if match[1].lower() == name)
    return next((unquote(match[2].strip()) for match in found), "")
