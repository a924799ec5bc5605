"""Rows of JSON Lines and of JSON arrays."""

import time
from pathlib import Path
from typing import Any

import pytest

from bigmodel.data.record import ReadOptions, Record
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError

DEEP = "[" * 100_000


def read(path: Path, content: str | bytes) -> list[Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    _, rows = open_rows(str(path), ReadOptions())
    return [(row.line, row.values) if isinstance(row, Record) else (row.line, row.reason) for row in rows]


READS: dict[str, tuple[str | bytes, list[Any]]] = {
    "lines": ('{"a": "x"}\n{"a": 1}\n', [(1, {"a": "x"}), (2, {"a": 1})]),
    "blank lines and a mark": ('\ufeff\n{"a": "x"}\n  \n{"a": null}', [(2, {"a": "x"}), (4, {"a": None})]),
    "what is no JSON": (
        '{"a": 1}\n{"a": 1\nx\n',
        [
            (1, {"a": 1}),
            (2, "this is not JSON: Expecting ',' delimiter at column 8"),
            (3, "this is not JSON: Expecting value at column 1"),
        ],
    ),
    "what is no object": (
        '{"a": 1}\n[1]\n"x"\n',
        [
            (1, {"a": 1}),
            (2, "a row is an object of names and values, not list"),
            (3, "a row is an object of names and values, not str"),
        ],
    ),
    "not a number": ('{"a": 1}\n{"a": NaN}\n', [(1, {"a": 1}), (2, "NaN is no JSON number")]),
    "names twice": ('{"a": 1}\n{"a": 1, "a": 2}\n', [(1, {"a": 1}), (2, "'a' is named twice")]),
    "half of a pair": (
        '{"a": 1}\n{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}\n',
        [
            (1, {"a": 1}),
            (2, "half of a surrogate pair is no character"),
            (3, {"a": "😀"}),
        ],
    ),
    "a tower of brackets": ('{"a": 1}\n' + DEEP + "\n", [(1, {"a": 1}), (2, "this is not JSON: nested too deeply")]),
    "bytes that are no text": (
        '{"a": "好"}\n'.encode() * 9 + b'{"a": "\xff"}\n',
        [
            *((line, {"a": "好"}) for line in range(1, 10)),
            (10, "bytes that are no text in this encoding"),
        ],
    ),
    "an array in one line": ('[{"a": 1}, {"a": 2}]\n', [(1, {"a": 1}), (1, {"a": 2})]),
    "an array over lines": (
        '[\n  {"a": 1},\n  {\n    "a": 2\n  },\n\n  7, {"a": 3, "a": 4},\r\n  {"a": 5}\n]\n\n',
        [
            (2, {"a": 1}),
            (3, {"a": 2}),
            (7, "a row is an object of names and values, not int"),
            (7, "'a' is named twice"),
            (8, {"a": 5}),
        ],
    ),
}


@pytest.mark.parametrize("name", READS)
def test_every_line_is_a_row_or_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    content, expected = READS[name]
    assert read(tmp_path / "rows.json", content) == expected


def test_a_line_of_a_hundred_thousand_names_holds_nobody_up(tmp_path: Path) -> None:
    names = ",".join(f'"a{n:05}":1' for n in range(100_000))
    began = time.thread_time()
    assert read(tmp_path / "rows.jsonl", f'{{"a": 1}}\n{{{names},"a99999":1}}\n')[1] == (2, "'a99999' is named twice")
    assert time.thread_time() - began < 5


REFUSED: dict[str, tuple[str, str]] = {
    "empty": ("", "rows.json: is empty"),
    "blank": ("\n \n", "rows.json: is empty"),
    "no array elements": ("[]", "no row has a name and a value"),
    "a document": ('{\n "a": 1\n}\n', "no row can be read: line 1: this is not JSON"),
    "words": ('[\n "a",\n "b"\n]', "no row can be read: line 2: a row is an object"),
    "an array that breaks off": ('[\n{"a": 1},\n{"a": ', "rows.json:3: this is neither JSON Lines nor a JSON array"),
    "an array without its end": ('[\n{"a": 1}\n', "rows.json:2: this JSON array breaks off"),
    "a comma at the end": ('[\n{"a": 1},\n]', "rows.json:3: this is neither"),
    "something behind": ('[{"a": 1}] x', "something follows the JSON array: x"),
    "a tower of brackets": (DEEP, "nested too deeply"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_one_message(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        read(tmp_path / "rows.json", content)


def test_the_first_row_may_leave_names_out(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b", "label": 1}\n')
    names, _ = open_rows(str(tmp_path / "rows.jsonl"), ReadOptions())
    assert names == ["text", "label"]
