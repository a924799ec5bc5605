"""quarantine.jsonl: every refused row with file, line, column and reason. Too many of them stop the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import IO

from bigmodel.data.record import Bad
from bigmodel.errors import DataError

SHOWN = 10


class Quarantine:
    """Writes refused rows as they come. `num_rows` counts the good ones, for the fraction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = self.num_bad = 0
        self._first: list[Bad] = []
        self._file: IO[str]

    def __enter__(self) -> Quarantine:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, bad: Bad) -> None:
        self.num_bad += 1
        if len(self._first) < SHOWN:
            self._first.append(bad)
        named = asdict(bad)
        self._file.write(json.dumps({"file": named.pop("source"), **named}, ensure_ascii=False) + "\n")

    def check(self, max_bad: float) -> None:
        """DataError, with the first ten, if more than this fraction of all rows was refused."""
        total = self.num_rows + self.num_bad
        if self.num_bad <= max_bad * total:
            return
        self._file.flush()
        shown = "\n".join(f"  {bad.source}:{bad.line}: {_column(bad)}{bad.reason}" for bad in self._first)
        more = f"\n  ... and {self.num_bad - SHOWN:,} more" if self.num_bad > SHOWN else ""
        raise DataError(
            f"{self.num_bad:,} of {total:,} rows were refused; data.max_bad allows {max_bad:.2%}:\n{shown}{more}\n"
            f"All of them are in {self.path}. Mend the rows, or raise data.max_bad"
        )


def _column(bad: Bad) -> str:
    return f"column '{bad.column}': " if bad.column else ""
