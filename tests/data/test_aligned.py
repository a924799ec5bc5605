"""Aligned files: one source whose columns are the words in its braces."""

import gzip

import pytest

from bigmodel.data.files import aligned, digest, resolve
from bigmodel.data.record import Bad, ReadOptions
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError


def write(folder, **texts):
    for language, text in texts.items():
        (folder / f"train.{language}").write_bytes(text.encode())
    return str(folder / f"train.{{{','.join(texts)}}}")


def test_row_i_is_line_i_of_each_file_blank_lines_too(tmp_path):
    names, rows = open_rows(write(tmp_path, de="eins\n\ndrei\r\n", en="one\ntwo\nthree"), ReadOptions())
    assert names == ["de", "en"]
    read = [(row.line, row.values) for row in rows]
    assert read == [(1, {"de": "eins", "en": "one"}), (2, {"de": "", "en": "two"}), (3, {"de": "drei", "en": "three"})]


def test_gzipped_files_are_read_as_they_are(tmp_path):
    for language in ("de", "en"):
        (tmp_path / f"a.{language}.gz").write_bytes(gzip.compress(b"1\n2\n"))
    _, rows = open_rows(str(tmp_path / "a.{de,en}.gz"), ReadOptions())
    assert [row.values for row in rows] == [{"de": "1", "en": "1"}, {"de": "2", "en": "2"}]


def test_different_numbers_of_lines_are_both_named(tmp_path):
    _, rows = open_rows(write(tmp_path, de="1\n2\n3\n", en="1\n2\n"), ReadOptions())
    with pytest.raises(DataError, match=r"not aligned: .*train.de has 3 lines, .*train.en has 2 lines"):
        list(rows)


def test_bytes_that_are_no_text_cost_their_row_alone(tmp_path):
    source = write(tmp_path, de="ä\n" * 9, en="a\n" * 9)
    (tmp_path / "train.de").write_bytes("ä\n".encode() * 8 + b"\xff\n")
    read = list(open_rows(source, ReadOptions())[1])
    assert isinstance(read[8], Bad) and read[8].column == "de" and read[8].line == 9 and len(read) == 9


def test_a_file_of_its_own_may_have_braces_in_its_name(tmp_path):
    (tmp_path / "train.{de,en}").write_text("a\n1\n")
    assert aligned(str(tmp_path / "train.{de,en}")) == []


def test_a_missing_one_of_the_files_is_named(tmp_path):
    source = write(tmp_path, de="1\n", en="1\n").replace(",en}", ",fr}")
    with pytest.raises(DataError, match=r"train\.fr: no such file"):
        resolve(source)


def test_the_digest_follows_each_file(tmp_path):
    source = write(tmp_path, de="1\n", en="1\n")
    before = digest(source)
    (tmp_path / "train.en").write_text("2\n")
    assert resolve(source) == [source] and digest(source) != before
