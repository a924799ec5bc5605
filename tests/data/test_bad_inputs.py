"""Real files that break readers: nothing crashes, hangs or loses a line in silence."""

import time
from collections import Counter
from pathlib import Path

import pytest

from bigmodel.data.encoding import decode, detect
from bigmodel.data.record import EXCERPT, Bad, ReadOptions, Record, excerpt
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError

# file: rows, refused rows; or what the one message says
DELIMITED: dict[str, tuple[int, int] | str] = {
    "csv-spectrum/csvs/comma_in_quotes.csv": (1, 0),
    "csv-spectrum/csvs/empty.csv": (2, 0),
    "csv-spectrum/csvs/empty_crlf.csv": (2, 0),
    "csv-spectrum/csvs/escaped_quotes.csv": (2, 0),
    "csv-spectrum/csvs/json.csv": (1, 0),
    "csv-spectrum/csvs/location_coordinates.csv": (1, 0),
    "csv-spectrum/csvs/newlines.csv": (3, 0),
    "csv-spectrum/csvs/newlines_crlf.csv": (3, 0),
    "csv-spectrum/csvs/quotes_and_newlines.csv": (2, 0),
    "csv-spectrum/csvs/simple.csv": (1, 0),
    "csv-spectrum/csvs/simple_crlf.csv": (1, 0),
    "csv-spectrum/csvs/utf8.csv": (2, 0),
    "derived_encodings/waimai_2000_gb18030.csv": (2000, 0),
    "derived_encodings/waimai_2000_utf16le_bom.csv": (2000, 0),
    "derived_encodings/waimai_2000_utf8_bom.csv": (2000, 0),
    "univocity/src/test/resources/csv/essential.csv": (18, 1),  # one column: a paragraph stands where the header should
    "univocity/src/test/resources/csv/essential-dos.csv": (18, 1),
    "univocity/src/test/resources/csv/essential-mac.csv": (18, 1),
    "univocity/src/test/resources/csv/iterating_test.csv": (2, 3),  # ragged
    "univocity/src/test/resources/csv/test.csv": ":1: the header cannot be read",
    "univocity/src/test/resources/tsv/essential.tsv": (19, 0),
    "univocity/src/test/resources/tsv/essential-dos.tsv": (19, 0),
    "univocity/src/test/resources/tsv/essential-mac.tsv": (19, 0),
    "univocity/src/test/resources/issues/github_1/input.csv": (0, 2),
    "univocity/src/test/resources/issues/github_177/input.csv": (2, 0),
    "univocity/src/test/resources/issues/github_194/uk-500.csv": (500, 0),
    "univocity/src/test/resources/issues/github_247/input-100.txt": (2, 0),
    "univocity/src/test/resources/issues/github_7/input.csv": (2, 0),
    "univocity/src/test/resources/issues/ticket_3/input.csv": (2, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/empty.txt": "is empty",
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-141/csv-141.csv": ":1: the header cannot be read",
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-196/emoji.csv": (4, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-196/japanese.csv": (3, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-213/999751170.patch.csv": (1, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-248/csvRecord.bin": "is not text",
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-254/csv-254.csv": (2, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-259/sample.txt": (1, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-290/psql.csv": (2, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSV-290/psql.tsv": (2, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSVFileParser/bom.csv": (251, 0),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSVFileParser/test.csv": (5, 7),  # comments
    "commons-csv/src/test/resources/org/apache/commons/csv/CSVFileParser/testCSV246.csv": (2, 4),
    "commons-csv/src/test/resources/org/apache/commons/csv/CSVFileParser/testCSV85.csv": (
        7,
        0,
    ),  # one column: a comment
    "commons-csv/src/test/resources/org/apache/commons/csv/csv-167/sample1.csv": (7, 0),
    "blns/blns.txt": (666, 0),
    "blns/blns.json": "no row can be read: line 2: a row is an object of names and values, not str",
    "failed_download/wikitext-2-v1.zip": (1, 0),  # an error page, of one column: no such column is asked for
}


@pytest.fixture(scope="module")
def folder(data_folder: Path) -> Path:
    return data_folder / "bad_inputs"


def outcome(path: Path) -> tuple[list[Record | Bad], str]:
    try:
        return list(open_rows(str(path), ReadOptions())[1]), ""
    except DataError as error:
        return [], str(error)


@pytest.mark.parametrize("name", DELIMITED)
def test_delimited_files(name: str, folder: Path) -> None:
    rows, message = outcome(folder / name)
    expected = DELIMITED[name]
    if isinstance(expected, str):
        assert message.startswith(str(folder / name)) and expected in message
        assert "\n" not in message
        return
    kinds = Counter(type(row) for row in rows)
    assert (kinds[Record], kinds[Bad]) == expected, message
    if not name.endswith(".json"):
        no_line_is_lost(folder / name, rows)


def no_line_is_lost(path: Path, rows: list[Record | Bad]) -> None:
    """Whatever is written on a physical line behind the header stands in the row that covers the line."""
    data = path.read_bytes()
    lines = [line for part in decode([data], detect([data], "file"), "file") for line in part.lines]
    ends = [row.line for row in rows[1:]] + [len(lines) + 1]
    assert [row.line for row in rows] == sorted({row.line for row in rows}), "one row a line, in order"
    assert sum(bool(line.strip()) for line in lines[: rows[0].line - 1]) <= 2, "nothing but the header comes before"
    for row, end in zip(rows, ends, strict=True):
        raw = "".join(lines[row.line - 1 : end - 1]).rstrip("\r\n")
        if isinstance(row, Bad):
            assert row.raw and excerpt(raw).startswith(row.raw[:EXCERPT])
        else:
            assert letters(raw) == letters("".join(map(str, row.values.values())))


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def test_the_table_names_every_delimited_file(folder: Path) -> None:
    here = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not {"Pillow", "JSONTestSuite", "CSVFileParser"} & set(path.parts)
    }
    others = {
        name for name in here if name.startswith("csv-spectrum/json/") or "LICENSE" in name or name.endswith(".md")
    }
    assert here - others <= set(DELIMITED)


@pytest.mark.parametrize("name", ["comma_in_quotes", "escaped_quotes", "newlines", "quotes_and_newlines", "utf8"])
def test_csv_spectrum_gives_the_values_it_promises(name: str, folder: Path) -> None:
    rows, _ = outcome(folder / f"csv-spectrum/csvs/{name}.csv")
    truth, _ = outcome(folder / f"csv-spectrum/json/{name}.json")
    assert [row.values for row in rows if isinstance(row, Record)] == [
        row.values for row in truth if isinstance(row, Record)
    ]


def test_the_same_reviews_come_out_of_every_encoding(folder: Path) -> None:
    names = ("utf8_bom", "gb18030", "utf16le_bom")
    first, *others = [outcome(folder / f"derived_encodings/waimai_2000_{name}.csv")[0] for name in names]
    for other in others:
        assert [row.values for row in first] == [row.values for row in other]  # type: ignore[union-attr]


def test_json_test_suite(folder: Path) -> None:
    """y_ files are JSON and n_ files are not; a row of ours is an object, so of the y_ ones only objects are rows."""
    files = sorted((folder / "JSONTestSuite").rglob("*.json"))
    assert len(files) == 318 + 22
    for path in files:
        began = time.monotonic()
        rows, message = outcome(path)
        assert time.monotonic() - began < 5, f"{path} takes too long"
        assert "\n" not in message
        good = [row for row in rows if isinstance(row, Record)]
        if path.name.startswith("n_"):
            assert not good, f"{path.name} is no JSON, and gave {good}"
        elif path.name.startswith("y_object"):
            assert good or any(word in message for word in NO_ROWS), f"{path.name}: {message}"


# Ours are stricter: a name twice, no name at all; and an object that runs over lines is a document, not rows.
NO_ROWS = ("is named twice", "no row has a name", "y_object_with_newlines.json: no row can be read: line 1")


def test_json_of_the_suite_that_is_lenient_is_refused_row_by_row(folder: Path) -> None:
    rows, message = outcome(folder / "JSONTestSuite/test_parsing/i_object_key_lone_2nd_surrogate.json")
    assert not rows and "half of a surrogate pair is no character" in message
