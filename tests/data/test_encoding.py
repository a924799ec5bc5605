"""Bytes to lines: which encoding, which line ends, and what becomes of bytes that are no text."""

import codecs
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.data.encoding import UNDECODABLE, check, decode, detect
from bigmodel.errors import DataError

CHINESE = "label,review\n" + "".join(
    f"{i % 2},{text}\n"
    for i, text in enumerate(
        ["一直都很好吃，送餐也快！", "味道不错，但是送来的时候已经凉了", "太慢了，等了两个小时"] * 20
    )
)
RUSSIAN = "label,text\n" + "1,Очень хороший фильм\n0,Плохой сервис и долгое ожидание!\n" * 20
GERMAN = "label,text\n" + "1,Sehr schöner Film, würde ich wieder sehen\n0,Größe passt nicht\n" * 20


def blocks(data: bytes, size: int = 1 << 20) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("text", [CHINESE, RUSSIAN, GERMAN], ids=["chinese", "russian", "german"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32-le", b"\xff\xfe\0\0"),
        ("utf-32-be", b"\0\0\xfe\xff"),
    ],
)
def test_unicode_is_recognised_with_and_without_its_mark(encoding: str, mark: bytes, text: str) -> None:
    data = mark + text.encode(encoding)
    assert detect([data], "file") == encoding
    assert "".join(line for part in decode([data], encoding, "file") for line in part.lines) == text


def test_gb18030_is_recognised_also_in_its_four_byte_characters() -> None:
    text = CHINESE + "1,𠮷野家真好吃😀\n"
    data = text.encode("gb18030")
    assert detect([data], "file") == "gb18030"
    assert "".join(line for part in decode([data], "gb18030", "file") for line in part.lines) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", GERMAN),
        ("cp1251", RUSSIAN),
        ("koi8-r", RUSSIAN),
        ("shift_jis", "とても美味しかったです。また注文します。\n配達が遅くて残念でした。\n" * 20),
        ("euc_jp", "とても美味しかったです。また注文します。\n配達が遅くて残念でした。\n" * 20),
        ("euc_kr", "정말 맛있어요 또 주문할게요\n배달이 너무 늦었습니다\n" * 20),
        ("big5", "非常好吃，下次還會再點\n送餐太慢了，不推薦\n" * 20),
    ],
)
def test_other_encodings_are_not_guessed_but_asked_for(encoding: str, text: str) -> None:
    data = text.encode(encoding)
    with pytest.raises(DataError) as refused:
        detect([data], "reviews.csv")
    assert "reviews.csv: neither UTF-8, UTF-16 nor GB18030" in str(refused.value)
    assert "data.encoding=latin-1" in str(refused.value)
    assert "".join(line for part in decode([data], check(encoding), "f") for line in part.lines) == text


def test_the_place_of_the_first_byte_that_is_no_text_is_named() -> None:
    data = b"text,label\nplain,1\nna\xefve,0\n" + b"d\xe9j\xe0 vu,1\n" * 9
    with pytest.raises(DataError, match=r"byte 0xef at offset 21, line 3"):
        detect([data], "f")


def test_a_file_that_is_no_text_is_said_to_be_none() -> None:
    with pytest.raises(DataError, match="is not text"):
        detect([random.Random(0).randbytes(500) + b"\0" * 500], "image.csv")


def test_few_damaged_lines_do_not_change_the_encoding_of_a_file() -> None:
    data = "".join(f"{i},很好吃\n" for i in range(100)).encode() + b"101,\xff\xfe broken\n"
    assert detect([data], "f") == "utf-8"
    parts = list(decode([data], "utf-8", "f"))
    assert [part.damaged for part in parts] == [True]
    assert [line for part in parts for line in part.lines if UNDECODABLE.search(line)] == ["101,\udcff\udcfe broken\n"]


def test_evidence_is_looked_for_behind_a_megabyte_of_ascii() -> None:
    data = b"0,plain\n" * 200_000 + CHINESE.encode("gb18030")
    assert detect(blocks(data), "f") == "gb18030"


@pytest.mark.parametrize("name", ["utf8", "UTF-16", "gbk", "latin1", "cp1252"])
def test_names_of_encodings_are_those_of_python(name: str) -> None:
    assert check(name) == codecs.lookup(name).name


@pytest.mark.parametrize(
    ("name", "words"), [("latin-2x", "no encoding is called 'latin-2x'"), ("hex", "no text encoding")]
)
def test_an_unknown_encoding_is_one_message(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check(name)


@settings(max_examples=60)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), max_size=8),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "gb18030"]),
    st.integers(1, 9),
)
def test_lines_are_the_same_however_the_bytes_are_cut_into_blocks(
    lines: list[str], end: str, encoding: str, size: int
) -> None:
    data = end.join([*lines, ""]).encode(encoding)
    read = [line for part in decode(blocks(data, size), encoding, "f") for line in part.lines]
    assert read == [line + end for line in lines]


@settings(max_examples=40)
@given(st.binary(max_size=60), st.sampled_from(["utf-8", "gb18030", "utf-16-le"]), st.integers(1, 7))
def test_no_byte_is_lost_where_some_are_no_text(data: bytes, encoding: str, size: int) -> None:
    whole = [line for part in decode([data], encoding, "f") for line in part.lines]
    cut = [line for part in decode(blocks(data, size), encoding, "f") for line in part.lines]
    assert whole == cut
    if encoding == "utf-8":
        assert "".join(whole).encode("utf-8", "surrogateescape") == data.removeprefix(b"\xef\xbb\xbf")


def test_a_line_without_end_is_one_message_and_not_all_the_memory() -> None:
    with pytest.raises(DataError, match="a line of more than 64 Mi characters"):
        for _ in decode((b"x" * (1 << 20) for _ in range(70)), "utf-8", "f"):
            pass
