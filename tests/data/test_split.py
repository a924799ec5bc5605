"""Which split a row belongs to."""

import csv
import hashlib
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.data.duplicates import Duplicates
from bigmodel.data.split import SPLITS, Split
from bigmodel.experiment import SplitConfig
from bigmodel.tasks.tokenizer import normalize

ratios = st.integers(0, 450).map(lambda n: n / 1000)


def md5(text: str) -> bytes:
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


@settings(max_examples=25)
@given(ratios, ratios)
def test_the_fractions_are_those_asked_for(valid: float, test: float) -> None:
    split = Split(SplitConfig(valid=valid, test=test))
    num = 4000
    places = [split.place(md5(f"text {i}")) for i in range(num)]
    for place, fraction in enumerate((1 - valid - test, valid, test)):
        assert abs(places.count(place) / num - fraction) < 5 * (fraction * (1 - fraction) / num) ** 0.5 + 1e-9


@pytest.mark.parametrize("fraction", [0.0005, 0.001, 0.0123456, 1 / 3])
def test_small_and_odd_fractions_are_not_rounded(fraction: float) -> None:
    split = Split(SplitConfig(valid=0.1, test=fraction))
    assert Fraction(split._tests, split._test) == Fraction(str(fraction))


def test_a_fifth_is_the_md5_that_five_divides_and_validation_is_cut_from_the_rest() -> None:
    split = Split(SplitConfig(valid=0.1, test=0.2))
    for i in range(500):
        number = int(hashlib.md5(f"text {i}".encode()).hexdigest(), 16)
        expected = "test" if number % 5 == 0 else "valid" if number // 5 % 8 == 0 else "train"
        assert SPLITS[split.place(md5(f"text {i}"))] == expected


def test_splits_with_files_of_their_own_take_no_training_rows() -> None:
    config = SplitConfig(valid=0.3, test=0.3)
    texts = [md5(f"text {i}") for i in range(300)]
    assert {Split(config, ["train", "valid", "test"]).place(text) for text in texts} == {0}
    assert {Split(config, ["train", "test"]).place(text) for text in texts} == {0, 1}
    assert {Split(config, ["train", "valid"]).place(text) for text in texts} == {0, 2}


def test_a_row_stays_in_its_split_when_only_the_other_fraction_changes() -> None:
    texts = [md5(f"text {i}") for i in range(1000)]
    tests = [{t for t in texts if Split(SplitConfig(valid=v, test=0.2)).place(t) == 2} for v in (0.0, 0.1, 0.5)]
    assert tests[0] == tests[1] == tests[2]


def test_the_md5_split_of_waimai_is_the_published_one(data_folder: Path) -> None:
    """md5(stripped text) % 5 == 0: cleaning must not move a row."""
    with open(data_folder / "zh_waimai_10k/waimai_10k.csv", encoding="utf-8", newline="") as file:
        texts = [row["review"] for row in csv.DictReader(file)]
    split = Split(SplitConfig(valid=0.1, test=0.2))
    published = {i for i, t in enumerate(texts) if int(hashlib.md5(t.strip().encode()).hexdigest(), 16) % 5 == 0}
    ours = {i for i, text in enumerate(texts) if split.place(md5(normalize(text))) == 2}
    assert len(published) == 2471
    assert (len(ours - published), len(published - ours)) == (0, 0)


@pytest.mark.parametrize("fractions", [(0.1, 0.2), (0.0, 0.0), (0.3, 0.5), (1 / 3, 0.0123456)])
def test_many_rows_at_once_fall_where_each_alone_falls(fractions: tuple[float, float]) -> None:
    split = Split(SplitConfig(valid=fractions[0], test=fractions[1]))
    texts = [md5(f"text {i}") for i in range(2000)]
    halves = np.frombuffer(b"".join(texts), ">u8").astype(np.uint64).reshape(-1, 2)
    assert split.places(halves).tolist() == [split.place(text) for text in texts]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2)), max_size=40))
def test_duplicates_are_those_a_dictionary_finds(rows: list[tuple[int, int, int]]) -> None:
    """(content, target, place) in any order; training rows come first, as they do in preparation."""
    rows = sorted(rows, key=lambda row: row[2] != 0)
    first: dict[int, int] = {}
    trained = {content for content, _, place in rows if place == 0}
    expected = {"duplicates": 0, "conflicting_labels": 0, "also_in_training": 0}
    for content, target, place in rows:
        if content in first:
            expected["duplicates"] += 1
            expected["conflicting_labels"] += first[content] != target
            expected["also_in_training"] += place != 0 and content in trained
        first.setdefault(content, target)
    md5s = np.array([[content // 2, content] for content, _, _ in rows], np.uint64).reshape(-1, 2)
    with tempfile.TemporaryDirectory() as folder, Duplicates(Path(folder) / "duplicates") as found:
        for part in np.array_split(np.arange(len(rows)), 3):
            targets, places = (np.array([rows[i][at] for i in part], dtype) for at, dtype in ((1, "u8"), (2, "i1")))
            found.add(md5s[part], targets, places)
        assert found.count() == expected
