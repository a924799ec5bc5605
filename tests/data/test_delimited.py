"""Rows of CSV and TSV: what is a row, what is refused, and that nothing is swallowed."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.data.encoding import NO_TEXT
from bigmodel.data.record import Bad, ReadOptions, Record
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError


def read(path: Path, content: str | bytes, **options: Any) -> tuple[list[str], list[Record | Bad]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    names, rows = open_rows(str(path), ReadOptions(**options))
    return names, list(rows)


def shown(rows: list[Record | Bad]) -> list[Any]:
    """(line, values) of a row, (line, reason) of a refused one."""
    return [(row.line, *row.values.values()) if isinstance(row, Record) else (row.line, row.reason) for row in rows]


READS = {
    "commas": ("text,label\na,1\nb,0\n", [(2, "a", "1"), (3, "b", "0")]),
    "no line end at the end": ("text,label\na,1", [(2, "a", "1")]),
    "DOS line ends": ("text,label\r\na,1\r\n", [(2, "a", "1")]),
    "line ends of the old Macintosh": ("text,label\ra,1\rb,0\r", [(2, "a", "1"), (3, "b", "0")]),
    "semicolons": ("text;label\na,b;1\n", [(2, "a,b", "1")]),
    "bars": ("text|label\na;b|1\n", [(2, "a;b", "1")]),
    "tabs": ("text\tlabel\na,b;c\t1\n", [(2, "a,b;c", "1")]),
    "quotes and commas": ('text,label\n"a, ""b""",1\n', [(2, 'a, "b"', "1")]),
    "a blank before the quote": ('text, label\n"a", "b, c"\n', [(2, "a", "b, c")]),
    "newlines in quotes": ('text,label\n"a\nb\n\nc",1\nd,0\n', [(2, "a\nb\n\nc", "1"), (6, "d", "0")]),
    "a comma in each line of a text": (
        'label,text\n1,"Well, yes\nNo, never"\n0,x\n',
        [(2, "1", "Well, yes\nNo, never"), (4, "0", "x")],
    ),
    "blank lines": ("\n\r\ntext,label\n\na,1\n\n\n", [(5, "a", "1")]),
    "many blank lines first": ("\n" * 700 + "text,label\na,1\n", [(702, "a", "1")]),
    "NUL": ("text,label\na\0b,1\n", [(2, "a\0b", "1")]),
    "ragged": (
        "text,label\na\nb,1,2\nc,1\n",
        [(2, "row has 1 field, header has 2"), (3, "row has 3 fields, header has 2"), (4, "c", "1")],
    ),
    "ragged over lines": (
        'text,label\n"a\nb"\nc,1\n',
        [(2, "row has 1 field, header has 2 (lines 2 to 3)"), (4, "c", "1")],
    ),
    "a quote in a word": ('text,label\n5" nails,1\n', [(2, '5" nails', "1")]),
    "a word in quotes": ('text,label\n"Jaws" again,1\n', [(2, '"Jaws" again', "1")]),
    "a word in quotes, and a comma": (
        'text,label\n"Jaws" again, and,1\na,0\n',
        [(2, "',' expected after '\"'"), (3, "a", "0")],
    ),
    "a quote never closed": (
        'text,label\n"a,1\nb,0\n',
        [(2, "a quote opens here and is never closed (2 lines)"), (3, "b", "0")],
    ),
    "a quote closed four rows later": (
        'text,label\n"a,1\nb,0\nc,1\nd",0\ne,1\n',
        [
            (2, "a quote runs over lines that are rows by themselves"),
            (3, "b", "0"),
            (4, "c", "1"),
            (5, 'd"', "0"),
            (6, "e", "1"),
        ],
    ),
    "lines of tabs take quotes literally": (
        'text\tlabel\n"Jaws" again\t1\n"a\t0\nb\t1\nc"\t0\n"d"\t1\n"e\nf"\t0\n"g\t1\n',
        [
            (2, '"Jaws" again', "1"),
            (3, '"a', "0"),
            (4, "b", "1"),
            (5, 'c"', "0"),
            (6, "d", "1"),
            (7, "e\nf", "0"),
            (9, '"g', "1"),
        ],
    ),
    "one column needs no quotes": (
        'text\nI came, I saw\n"x, y"\n"a" b, c\n"d\ne"\n',
        [(2, "I came, I saw"), (3, "x, y"), (4, '"a" b, c'), (5, "d\ne")],
    ),
    "bytes that are no text": (
        "text,label\n好,1\n".encode() + b'\xff\xfe,1\n"\xff\nx",0\n' + "很好,1\n".encode() * 9,
        [(2, "好", "1"), (3, NO_TEXT), (4, NO_TEXT), *((line, "很好", "1") for line in range(6, 15))],
    ),
    "a field of seventeen million characters": (
        "text,label\n" + "x" * (17 << 20) + ",1\nok,0\n",
        [(2, "field larger than field limit (16777216)"), (3, "ok", "0")],
    ),
}


@pytest.mark.parametrize("name", READS)
def test_every_line_is_a_row_or_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    content, expected = READS[name]
    _, rows = read(tmp_path / "rows.csv", content)
    assert shown(rows) == expected


HEADERS = {
    "names are stripped": (" text , label\na,1\n", ["text", "label"]),
    "blank names are numbered": ("text,,label\na,b,1\n", ["text", "column_2", "label"]),
    "names twice are kept, whoever asks for them is told": ("text,note,note\na,b,1\n", ["text", "note", "note"]),
    "names in quotes over lines": ('"text","a\nlabel"\na,1\n', ["text", "a\nlabel"]),
    "a mark": ("\ufefftext,label\na,1\n", ["text", "label"]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_the_header_names_the_columns(name: str, tmp_path: Path) -> None:
    content, expected = HEADERS[name]
    assert read(tmp_path / "rows.csv", content)[0] == expected


REFUSED = {
    "empty": (b"", {}, r"rows.csv: is empty"),
    "blank": (b"\n\r\n\n", {}, r"rows.csv: is empty"),
    "a broken header": (b'"text" x,label\n', {}, r"rows.csv:1: the header cannot be read"),
    "a header that is no text": (
        "text,label\na,1\n".encode("utf-16"),
        {"encoding": "utf-8"},
        "rows.csv:1: the header has bytes",
    ),
    "a header where none should be": (
        b'"text",label\na,1\n',
        {"columns": ["text", "label"]},
        r"rows.csv:1: this line is a header",
    ),
    "two characters between fields": (b"a||b\n", {"delimiter": "||"}, "for CSV it is one character"),
    "a zip archive": (b"PK\x03\x04....", {}, "is a zip archive. Unpack it"),
    "half a gzip file": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03KL", {}, "damaged gzip file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_one_message(name: str, tmp_path: Path) -> None:
    content, options, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        read(tmp_path / "rows.csv", content, **options)


def test_columns_name_what_has_no_header(tmp_path: Path) -> None:
    _, rows = read(tmp_path / "rows.csv", "a\t1\nb\t0\n", columns=["text", "label"])
    assert shown(rows) == [(1, "a", "1"), (2, "b", "0")]


def test_an_open_quote_costs_one_row_and_little_time(tmp_path: Path) -> None:
    content = 'text,label\n"never closed,1\n' + "a good text,1\n" * 80_000
    began = time.monotonic()
    _, rows = read(tmp_path / "rows.csv", content)
    assert time.monotonic() - began < 10
    assert len(rows) == 80_001
    assert [row.line for row in rows if isinstance(row, Bad)] == [2]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\0"), max_size=12)


@settings(max_examples=80)
@given(
    st.lists(st.tuples(words, words, st.sampled_from("01")), min_size=1, max_size=10),
    st.sampled_from([",", ";", "|", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str, end: str
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["first", "second", "label"])
    writer.writerows(rows)
    _, found = read(tmp_path_factory.mktemp("csv") / "rows.csv", out.getvalue(), delimiter=delimiter, encoding="utf-8")
    assert [tuple(row.values.values()) for row in found if isinstance(row, Record)] == rows
    assert len(found) == len(rows)
