"""Oracle: the standard library's HTML parser."""

import json
import math
from html.parser import HTMLParser

import pytest

from bigmodel.tasks.base import Goal
from tune_jobs.journal import Trial
from tune_jobs.page import page
from tune_jobs.report import commands, report, show, statements, trials_of
from tune_jobs.space import parse
from tune_jobs.verdict import compare_rows, judge

GOAL = Goal("accuracy", "max")
EVIL = "<script>alert('x')</script>"
SPACE = {"optim.lr": parse("optim.lr", "log:1e-4..1e-1"), "optim.beta1": parse("optim.beta1", "log:0.5..0.99"),
         "model.type": parse("model.type", ["lstm", EVIL])}  # fmt: skip
TRIALS = [
    Trial(0, {"optim.lr": 1e-3, "optim.beta1": 0.9, "model.type": "lstm"}, "finished", [(10, 0.7), (20, 0.8)], 2.0),
    Trial(
        1,
        {"optim.lr": 0.1, "optim.beta1": 0.6, "model.type": EVIL},
        "failed",
        [(10, math.nan)],
        0.5,
        f"bad {EVIL} & so",
    ),
    Trial(2, {"optim.lr": 4e-3, "optim.beta1": 0.8, "model.type": "lstm"}, "finished", [(10, 0.8), (20, 0.9)], 2.0),
    Trial(3, {"optim.lr": 2e-4, "optim.beta1": 0.7, "model.type": "lstm"}, "stopped", [(10, 0.6)], 1.0),
]
VERDICT = judge({"the default": {0: 0.8, 1: 0.81}, f"trial {EVIL}": {0: 0.9, 1: 0.92}}, "the default", GOAL)
TEST = compare_rows(["a", "b", "a"], ["a", "a", "b"], ["a", "b", "b"])
WHOLE = {"verdict": VERDICT, "test": TEST, "seconds": 75.0, "best": "runs/my reviews/best.yaml", "model": "runs/m"}


def through_a_file(trials=TRIALS, **parts):
    return json.loads(json.dumps(report(f"reviews {EVIL}", trials, GOAL, SPACE, **parts), allow_nan=False))


class Reader(HTMLParser):
    """Tags, addresses, the words and the rows of tables; complains of tags that are not closed."""

    VOID = {"meta", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name.rpartition(":")[2] in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_the_page_is_one_file_without_scripts_and_escapes_what_is_not_its_own():
    found = Reader(page(through_a_file(**WHOLE)))
    assert {"h1", "table", "svg", "figcaption"} <= set(found.tags)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in found.addresses)
    assert f"Search: reviews {EVIL}" in found.words
    assert any(EVIL in word for word in found.rows[-1])


def test_the_page_begins_with_the_verdict_and_says_how_to_go_on():
    words = [word.strip() for word in Reader(page(through_a_file(**WHOLE))).words if word.strip()]
    start = words.index(VERDICT.words)
    assert words[start + 1] == TEST["words"]
    assert words[start + 2] == "4 trials in 1 min 15 s: 1 failed, 2 finished, 1 stopped."
    assert "bigmodel train 'runs/my reviews/best.yaml'\nbigmodel serve runs/m" in words


def test_the_trials_stand_best_first_and_failed_ones_last():
    rows = Reader(page(through_a_file(**WHOLE))).rows
    trials = rows[[row[0] for row in rows].index("trial") + 1 :]
    assert [row[0] for row in trials] == ["2", "0", "3", "1"]
    assert trials[0] == ["2", "0.9000", "0.004", "0.8", "lstm", "finished", "20", "2.0"]


@pytest.mark.parametrize("trials", [[], TRIALS[1:2], TRIALS[:1]], ids=["none", "all failed", "one"])
def test_a_search_with_little_in_it_has_a_page_too(trials):
    assert "Nothing was repeated with further seeds" in "".join(Reader(page(through_a_file(trials))).words)


def test_the_trials_come_back_from_the_report():
    again = trials_of(through_a_file())
    assert [trial.number for trial in again] == [0, 1, 2, 3]
    assert again[0] == Trial(**{**TRIALS[0].__dict__, "curve": [(10, 0.7), (20, 0.8)]})
    assert math.isnan(again[1].curve[0][1])


def test_the_page_of_a_report_just_made_is_that_of_its_file():
    assert page(report(f"reviews {EVIL}", TRIALS, GOAL, SPACE, **WHOLE)) == page(through_a_file(**WHOLE))


def test_scales_are_those_of_the_space():
    assert through_a_file()["scales"] == {"optim.lr": "log", "optim.beta1": "log of 1 - x", "model.type": "choice"}


def test_there_is_nothing_to_type_where_nothing_came_out():
    assert commands(through_a_file()) == []
    assert statements(through_a_file())[1:] == ["4 trials in 0.0 s: 1 failed, 2 finished, 1 stopped."]


def test_the_summary_on_the_terminal(capsys):
    show(through_a_file(**WHOLE))
    out = capsys.readouterr().out
    assert VERDICT.words.split(" by ")[1] in out.replace("\n", " ")
    first = next(line for line in out.splitlines() if line.lstrip().startswith("2 "))
    assert first.split() == ["2", "0.9000", "0.004", "0.8", "lstm", "finished", "20", "2.0"]
    assert "trial 1 failed: bad <script>" in out
    assert "  bigmodel serve runs/m" in out.splitlines()
