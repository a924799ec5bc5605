"""What makes lines fit a terminal."""

import os

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from bigmodel.evaluation.layout import EXCERPT, excerpt, near, printable, wide


@given(st.text(max_size=60), st.integers(2, 40))
def test_a_name_takes_no_more_cells_than_it_may(name, cells):
    assert cell_len(wide(name, cells)) <= cells


@given(st.text(max_size=30))
def test_a_short_name_is_only_made_printable(name):
    assert wide(name, 60) == printable(name) and len(printable(name)) == len(name)
    assert printable(name).isprintable()


@given(st.text(max_size=500))
def test_an_excerpt_is_the_start_of_the_text(text):
    found = excerpt(text)
    assert len(found) <= EXCERPT and printable(text).startswith(
        found.removesuffix("…") if len(text) > EXCERPT else found
    )


def test_a_path_is_shown_as_short_as_it_can_be():
    assert near(os.path.abspath("data/a.csv")) == "data/a.csv"
    assert near("/a.csv") == "/a.csv"
    assert near("s3://bucket/a.csv") == "s3://bucket/a.csv"
