"""Whatever is in a file: rows, refused rows, or one message; and of what is written in it nothing is lost."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.data.record import Bad, ReadOptions, Record
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError

QUOTES = [
    b'"',
    b'""',
    b",",
    b"\t",
    b";",
    b"|",
    b"\n",
    b"\r",
    b"\r\n",
    b" ",
    b"a",
    b"bc",
    b"1",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
]
BYTES = [
    b"\0",
    b"\xff",
    b"\xc3\xa9",
    "好吃".encode(),
    "好吃".encode("gb18030"),
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'{"a":1}',
]
pieces = st.sampled_from(QUOTES + BYTES)
anything = st.lists(pieces, max_size=60).map(b"".join)
tables = st.lists(
    st.sampled_from(['"', '""', ",", "\n", '"\n', ',"', '",', "a", "bc", "d e", "f,1\n", "g,0\n"]), max_size=60
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@settings(max_examples=200)
@given(anything, st.sampled_from(["csv", "tsv", "jsonl", "json", "txt", "parquet", "csv.gz", "unknown"]))
def test_any_bytes_are_rows_or_one_message(folder: Path, data: bytes, extension: str) -> None:
    path = folder / f"any.{extension}"
    path.write_bytes(data)
    try:
        names, rows = open_rows(str(path), ReadOptions())
        found = list(rows)
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    lines = [row.line for row in found]
    assert lines == sorted(lines) and (
        extension == "json" or len(set(lines)) == len(lines) or data.lstrip()[:1] == b"["
    )
    for row in found:
        assert isinstance(row, Bad) or set(row.values) <= set(names)


@settings(max_examples=300)
@given(tables, st.sampled_from([",", "\t"]))
def test_of_what_a_table_holds_nothing_is_lost(folder: Path, parts: list[str], delimiter: str) -> None:
    text = "".join(parts).replace(",", delimiter)
    path = folder / "table.csv"
    path.write_bytes(f"text{delimiter}label\n{text}".encode())
    _, rows = open_rows(str(path), ReadOptions(delimiter=delimiter))
    kept: Counter[str] = Counter()
    for row in rows:
        kept.update(c for c in ("".join(row.values.values()) if isinstance(row, Record) else row.raw) if c.isalnum())
    assert kept == Counter(c for c in text if c.isalnum())
