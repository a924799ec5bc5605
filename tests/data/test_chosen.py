"""What a table's columns are learnt from where the rows are many: a choice that misses nothing that matters."""

import json
import re

import numpy as np
import pytest

from bigmodel.errors import DataError
from bigmodel.experiment import Experiment
from bigmodel.tasks import chosen, tabular_classification, tabular_regression
from bigmodel.tasks.columns import learn

TABLE = {"task": "tabular-regression", "data": {"train": "-", "label": "y"}, "output": "-"}
EXPERIMENT = Experiment.model_validate(TABLE)
CHOSEN = 2_000


def cells() -> list[dict]:
    """Of 20,000 rows one has no `b`, one is of the kind z, one has a truth more."""
    rng = np.random.default_rng(0)
    rows = [
        {"a": repr(float(a)), "b": str(i % 7), "kind": "xy"[i % 2], "when": f"20{10 + i % 10}-01-{1 + i % 28:02d}"}
        for i, a in enumerate(rng.standard_normal(20_000))
    ]
    del rows[11_111]["b"]
    rows[12_345]["kind"] = "z"
    rows[15_555]["late"] = True
    return rows


def rows(cells: list[dict]) -> list[dict]:
    return [{"features": json.dumps(one), "label": float(i % 100)} for i, one in enumerate(cells)]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(chosen, "ROWS", CHOSEN)


def fitted(cells: list[dict], task=tabular_regression):
    of = rows(cells)
    return task.fit(lambda: iter(of), EXPERIMENT)


def test_of_rows_that_are_not_too_many_all_are_learnt_from():
    of = rows(cells())
    assert chosen.choose(lambda: iter(of), ()) == (of, {}, "")


def test_a_choice_of_many_is_the_same_each_time_and_says_so(few):
    (first, learnt), (again, _) = fitted(cells()), fitted(cells())
    assert first.to_dict() == again.to_dict()
    assert re.match(r"columns are learnt from 2,0\d\d of 20,000 training rows", learnt["notes"][0])


def test_a_choice_has_the_quantiles_of_all_and_knows_what_a_single_row_has_or_lacks(few):
    processor, learnt = fitted(cells())
    a, b, kind, when = processor.columns[:4]
    all_a = learn(cells(), EXPERIMENT.data.table).columns[0]["parts"][0]
    at = np.linspace(-1.5, 1.5, 31)
    ours, theirs = (np.interp(at, part["x"], part["z"]) for part in (a["parts"][0], all_a))
    assert abs(ours - theirs).max() < 0.15
    assert [column["missing"] for column in (a, b, kind, when)] == [False, True, False, False]
    assert kind["categories"][2] == "z" and when["kind"] == "date"
    assert processor.columns[4]["name"] == "late" and processor.columns[4]["missing"]
    assert len(learnt["bins"]) == len(processor.number_names)
    assert abs(learnt["target_mean"] - 49.5) < 3


@pytest.mark.parametrize("task", [tabular_regression, tabular_classification])
@pytest.mark.parametrize(("column", "word"), [("a", "unknown"), ("when", "later")])
def test_a_word_among_many_numbers_or_dates_is_asked_about_though_its_row_is_not_drawn(few, task, column, word):
    for place in (7_000, 19_999):
        with_word = cells()
        with_word[place][column] = word
        for number, one in enumerate(with_word):
            one["when"] = f"{1950 + number % 70}{one['when'][4:]}" if one["when"] != word else word
        of = [row | {"label": "ab"[i % 2]} if task is tabular_classification else row
              for i, row in enumerate(rows(with_word))]  # fmt: skip
        with pytest.raises(DataError, match=f"column '{column}' holds .* but for 1 of 2,.*such as '{word}'"):
            task.fit(lambda of=of: iter(of), EXPERIMENT)


def test_a_number_that_no_drawn_row_has_is_a_column_all_the_same(few):
    with_rare = cells()
    for number in (3, 9_000, 9_001):
        with_rare[number]["rare"] = number
    processor, learnt = fitted(with_rare)
    assert "rare" in processor.number_names and min(map(len, learnt["bins"])) > 1
