"""What reading a file of rows yields: a row, or why there is none."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_byte = re.compile("[\udc00-\udcff]")
EXCERPT = 200
"""Characters of a row that cannot be read which are kept to show it."""


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in its file, before any cleaning."""

    source: str
    line: int
    """The first physical line of the row, from 1; in Parquet the number of the row."""
    values: dict[str, Any]
    """By column name: strings from CSV, TSV and text; JSON values; Parquet values."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that cannot be read, or that a task refuses: counted and kept, never fatal by itself."""

    source: str
    line: int
    column: str | None
    reason: str
    raw: str
    """The start of the row, at most `EXCERPT` characters; bytes that are no text are shown as \\xff."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are to be read; "auto" looks at the file."""

    format: str = "auto"
    """auto, csv, tsv, jsonl, parquet, text or images."""
    encoding: str = "auto"
    """A name Python knows (latin-1, cp1252 ...). UTF-8, UTF-16 and GB18030 are recognised, others must be declared."""
    delimiter: str = "auto"
    """Between the fields of CSV (one character) and text (any)."""
    columns: Sequence[str] | None = None
    """Names of the columns of CSV, TSV and text files without a header."""
    separator: str | None = None
    """The line that ends a document of a text that is read in blocks."""
    ignored: Collection[str] = ()
    """Columns that a whole record is handed over without."""
    relabel: Mapping[str, str] = field(default_factory=dict)
    """Label as the file has it -> label."""


def excerpt(text: str) -> str:
    """The start of a row, printable and storable: no lone surrogates, no line ends at its end."""
    start = text[:EXCERPT].rstrip("\r\n")
    shown = _byte.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", start)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")
