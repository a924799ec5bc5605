"""Which format a file has; Parquet and text."""

import gzip
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from bigmodel.data.record import ReadOptions, Record
from bigmodel.data.sources import format_of, holds_bytes, open_rows
from bigmodel.errors import DataError


def read(path: Path, wanted: list[str] | None = None, **options: Any) -> tuple[list[str], list[Any]]:
    names, rows = open_rows(str(path), ReadOptions(**options), wanted)
    return names, [(r.line, r.values) if isinstance(r, Record) else (r.line, r.reason) for r in rows]


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.csv", b"x", {}, "csv"),
        ("a.CSV.gz", b"x", {}, "csv"),
        ("a.tab", b"x", {}, "tsv"),
        ("a.ndjson", b"x", {}, "jsonl"),
        ("a.pq", b"x", {}, "parquet"),
        ("a.txt", b"x", {}, "text"),
        ("a.txt", b"x\t1", {"columns": ["text", "label"]}, "csv"),
        ("a.txt", b"x 1", {"columns": ["text", "label"], "delimiter": " "}, "text"),
        ("a.train", b"1 x", {"columns": ["label", "text"], "delimiter": " "}, "text"),
        ("a", b"PAR1....", {}, "parquet"),
        ("a", b'\xef\xbb\xbf {"a": 1}', {}, "jsonl"),
        ("a", b"[\n", {}, "jsonl"),
        ("a", b"text,label\n", {}, "csv"),
        ("a", b"", {}, "csv"),
        ("a.csv", b"x", {"format": "jsonl"}, "jsonl"),
    ],
)
def test_the_format_is_the_one_named_or_that_of_the_name_or_of_the_content(
    name: str, content: bytes, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert format_of(str(tmp_path / name), ReadOptions(**options)) == expected


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "text,label\na b,1\nc,0\n"),
        ("rows.tsv", "text\tlabel\na b\t1\nc\t0\n"),
        ("rows.jsonl", '{"text": "a b", "label": "1"}\n{"text": "c", "label": "0"}\n'),
        ("rows.json", '[{"text": "a b", "label": "1"},\n{"text": "c", "label": "0"}]\n'),
    ],
)
def test_the_same_rows_in_every_format_packed_or_not(name: str, content: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    names, rows = read(path)
    assert names == ["text", "label"]
    assert [values for _, values in rows] == [{"text": "a b", "label": "1"}, {"text": "c", "label": "0"}]


def test_text_is_a_row_a_line_cut_at_its_first_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.train").write_text("1 a good film\n\n0 bad\n7\n")
    names, rows = read(tmp_path / "a.train", columns=["label", "text"], delimiter=" ")
    assert names == ["label", "text"]
    assert rows == [
        (1, {"label": "1", "text": "a good film"}),
        (3, {"label": "0", "text": "bad"}),
        (4, "line has 1 of the 2 fields between ' '"),
    ]
    (tmp_path / "a.txt").write_text("one\r\ntwo, three\r\n")
    assert read(tmp_path / "a.txt") == (["text"], [(1, {"text": "one"}), (2, {"text": "two, three"})])
    with pytest.raises(DataError, match="text lines of 2 columns need data.delimiter"):
        read(tmp_path / "a.txt", columns=["text", "label"], format="text")


# ---- Parquet


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


COLUMNS = {
    "string": pa.array(["a", None, "c"]),
    "large_string": pa.array(["a", None, "c"], pa.large_string()),
    "dictionary": pa.array(["a", None, "c"]).dictionary_encode(),
    "string_view": pa.array(["a", None, "c"], pa.string_view()),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_parquet_gives_strings_of_any_storage_and_nulls(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=COLUMNS[kind], label=[1, 0, 1])
    assert read(path) == (
        ["text", "label"],
        [(1, {"text": "a", "label": 1}), (2, {"text": None, "label": 0}), (3, {"text": "c", "label": 1})],
    )


def test_of_parquet_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["a"], label=[1], picture=[b"\xff" * 1000])
    names, rows = read(path, wanted=["label", "text"])
    assert names == ["text", "label", "picture"]
    assert rows == [(1, {"text": "a", "label": 1})]


@pytest.mark.parametrize("stored", [pa.binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})])
def test_of_a_large_row_group_of_images_some_megabytes_are_held(stored: pa.DataType, tmp_path: Path) -> None:
    images = [random.randbytes(500_000) for _ in range(200)]
    values = images if stored == pa.binary() else [{"bytes": image, "path": None} for image in images]
    path, label = tmp_path / "a.parquet", [0] * len(images)
    table = pa.table({"image": pa.array(values, stored), "label": label})
    parquet.write_table(table, path, use_dictionary=False, write_batch_size=1)
    del table, values
    before = pa.total_allocated_bytes()
    _, rows = open_rows(str(path), ReadOptions(), ["image", "label"])
    assert isinstance(next(rows), Record) and pa.total_allocated_bytes() - before < 40 << 20
    rest = [row.values["image"] for row in rows if isinstance(row, Record)]
    assert rest == [image if stored == pa.binary() else {"bytes": image, "path": None} for image in images[1:]]


KINDS: dict[str, tuple[pa.DataType, bool]] = {
    "text": (pa.string(), False),
    "large text": (pa.large_string(), False),
    "text, each once": (pa.dictionary(pa.int32(), pa.string()), False),
    "bytes": (pa.binary(), True),
    "large bytes": (pa.large_binary(), True),
    "bytes and a path": (pa.struct({"bytes": pa.binary(), "path": pa.string()}), True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_of_a_parquet_file_says_whether_a_column_holds_bytes(kind: str, tmp_path: Path) -> None:
    stored, expected = KINDS[kind]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": pa.array([], stored)}), path)
    assert holds_bytes(str(path), ReadOptions(), "image") is expected
    assert not holds_bytes(str(path), ReadOptions(), "picture")


def test_a_parquet_row_that_is_no_text_is_refused_by_itself(tmp_path: Path) -> None:
    damaged = pa.array([b"fine", b"\xff\xfe", b"too"]).view(pa.string())
    _, rows = read(write(tmp_path / "a.parquet", text=damaged))
    assert rows == [
        (1, {"text": "fine"}),
        (2, "bytes that are no text in UTF-8, in a column of text"),
        (3, {"text": "too"}),
    ]


@pytest.mark.parametrize("damage", ["head", "tail", "middle", "other"])
def test_a_damaged_parquet_file_is_one_message(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=[f"text {i * 7919 % 1000}" for i in range(2000)])
    data = path.read_bytes()
    path.write_bytes(
        {
            "head": data[:100],
            "tail": data[100:],
            "middle": data[:40] + b"\xff" * 200 + data[240:],
            "other": b"text,label\n",
        }[damage]
    )
    with pytest.raises(DataError, match="a.parquet: not a whole Parquet file: "):
        read(path)


def test_a_parquet_file_without_rows_still_has_names(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.parquet", text=pa.array([], pa.string()))) == (["text"], [])
