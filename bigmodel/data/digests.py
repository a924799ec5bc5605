"""SHA-256 of the sources; that of a large one that has not changed since is remembered, not computed again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from bigmodel.data.files import digest, is_remote, local, stored
from bigmodel.errors import DataError

LARGE = 64 << 20
"""Bytes from which a digest is remembered; smaller sources are read again, which costs milliseconds."""
SETTLED_S = 2.0
"""A file that was written less than this before it was read may have been written again unnoticed: forgotten."""


def digests(sources: list[str], cache: Path) -> list[str]:
    """One for each source. `cache`/digests.json knows files by path, size, time of change and inode, those of a folder
    together."""
    file = cache / "digests.json"
    known = _read(file)
    found: list[str] = []
    for source in sources:
        mark = _mark(source)
        if mark is None:
            found.append(digest(source))
            continue
        one = known.get(source)
        if one is None or one["mark"] != mark:
            one = {"mark": mark, "sha256": digest(source)}
            if _mark(source) == mark and time.time() - mark[1] / 1e9 > SETTLED_S:
                known[source] = one
                _write(file, known)
        found.append(str(one["sha256"]))
    return found


def _mark(source: str) -> list[Any] | None:
    """What tells that large local files, or folders of images, are still the same; nothing for others."""
    if is_remote(source):
        return None
    try:
        files = stored(source)
        stats = [os.stat(local(file)) for file in files]
    except (OSError, DataError):
        return None  # whoever reads it says why
    size, newest = sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)
    if size < LARGE:
        return None
    lines = (f"{name}\0{of.st_size}\0{of.st_mtime_ns}\0{of.st_ino}\n" for name, of in zip(files, stats, strict=True))
    every = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape"))
    return [size, newest, every.hexdigest()]


def _read(file: Path) -> dict[str, dict[str, object]]:
    try:
        known = json.loads(file.read_text("utf-8"))
        return {source: one for source, one in known.items() if {"mark", "sha256"} <= one.keys()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(file: Path, known: dict[str, dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text(json.dumps(known, ensure_ascii=False, indent=1), "utf-8")
    os.replace(part, file)
