"""quarantine.jsonl: every refused row with file, line, column and reason. Too many of them stop the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

from bigmodel.data.record import Bad
from bigmodel.errors import DataError, ResourceError

T = TypeVar("T")

SHOWN = 10


class Quarantine:
    """Writes refused rows as they come. `num_rows` counts the good ones, for the fraction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = self.num_bad = 0
        self._file: IO[str]

    def __enter__(self) -> Quarantine:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def good(self, items: Iterable[T | Bad]) -> Iterator[T]:
        """Those that are not refused, counted; the others are written down."""
        for item in items:
            if isinstance(item, Bad):
                self.add(item)
            else:
                self.num_rows += 1
                yield item

    def add(self, bad: Bad) -> None:
        self.num_bad += 1
        named = asdict(bad)
        self._file.write(json.dumps({"file": named.pop("source"), **named}, ensure_ascii=False) + "\n")

    def check(self, max_bad: float) -> None:
        """DataError, with the first ten, if more than this fraction of all rows was refused."""
        self._file.flush()
        check(self.path, self.num_rows, self.num_bad, max_bad)


def check(path: Path, num_rows: int, num_bad: int, max_bad: float) -> None:
    """DataError, with the first ten of a quarantine file, if more than this fraction of all rows was refused."""
    total = num_rows + num_bad
    if num_bad <= max_bad * total:
        return
    shown = "\n".join(f"  {line}" for line in first(path, SHOWN))
    more = f"\n  ... and {num_bad - SHOWN:,} more" if num_bad > SHOWN else ""
    raise DataError(
        f"{num_bad:,} of {total:,} rows were refused; data.max_bad allows {max_bad:.2%}:\n{shown}{more}\n"
        f"All of them are in {path}. Mend the rows, or raise data.max_bad"
    )


def first(path: Path, count: int) -> list[str]:
    """The first rows of a quarantine file, with their reasons."""
    with open(path, encoding="utf-8") as lines:
        return [_shown(json.loads(line)) for line in islice(lines, count)]


def _shown(bad: dict[str, object]) -> str:
    column = f"column '{bad['column']}': " if bad["column"] else ""
    return f"{bad['file']}:{bad['line']}: {column}{bad['reason']}"
