"""SHA-256 of the sources; that of a large file that has not changed since is remembered, not computed again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from bigmodel.data.files import digest, is_remote, local

LARGE = 64 << 20
"""Bytes from which a digest is remembered; smaller files are read again, which costs milliseconds."""
SETTLED_S = 2.0
"""A file that was written less than this before it was read may have been written again unnoticed: forgotten."""


def digests(sources: list[str], cache: Path) -> list[str]:
    """One for each source. `cache`/digests.json knows files by path, size, time of change and inode."""
    file = cache / "digests.json"
    known = _read(file)
    found: list[str] = []
    for source in sources:
        mark = _mark(source)
        if mark is None:
            found.append(digest(source))
            continue
        stored = known.get(source)
        if stored is None or stored["mark"] != mark:
            stored = {"mark": mark, "sha256": digest(source)}
            if _mark(source) == mark and time.time() - mark[1] / 1e9 > SETTLED_S:
                known[source] = stored
                _write(file, known)
        found.append(str(stored["sha256"]))
    return found


def _mark(source: str) -> list[int] | None:
    """What tells that a large local file is still the same; nothing for others."""
    if is_remote(source):
        return None
    try:
        stat = os.stat(local(source))
    except OSError:
        return None  # whoever reads it says why
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino] if stat.st_size >= LARGE else None


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
