"""Oracles: the SVG's own text, read by an XML parser, and values by hand."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bigmodel.tasks.base import Goal
from tune_jobs import pictures
from tune_jobs.journal import Trial

ACCURACY, LOSS = Goal("accuracy", "max"), Goal("loss", "min")
SCALES = {
    "optim.lr": "log",
    "optim.beta1": "log of 1 - x",
    "optim.beta2": "log of 1 - x",
    "train.epochs": "linear",
    "model.type": "choice",
}
ALL = ["history", "curves", "parallel", "importance", "rate_and_beta"]


def search(num_trials=12, seed=0, goal=ACCURACY):
    """The learning rate decides, 10^-2.5 is best; every fourth trial is stopped, every seventh fails."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(num_trials):
        params = {
            "optim.lr": float(10 ** rng.uniform(-4, -1)),
            "optim.beta1": 1 - float(10 ** rng.uniform(-2, 0)),
            "optim.beta2": 1 - float(10 ** rng.uniform(-4, -1)),
            "train.epochs": int(rng.integers(1, 9)),
            "model.type": str(rng.choice(["lstm", "textcnn"])),
        }
        top = 0.9 - 0.05 * (math.log10(params["optim.lr"]) + 2.5) ** 2
        state = "failed" if number % 7 == 6 else "stopped" if number % 4 == 3 else "finished"
        curve = [(100 * i, top - 0.2 / i) for i in range(1, 4 if state == "stopped" else 9)]
        curve = [(step, value if goal.mode == "max" else 1 - value) for step, value in curve]
        trials.append(Trial(number, params, state, curve, 1.0, "no memory" if state == "failed" else ""))
    return trials


def draw(name, trials, goal=ACCURACY, scales=SCALES):
    with_scales = () if name in ("history", "curves") else (scales,)
    return getattr(pictures, name)(trials, goal, *with_scales)


def words(svg):
    """All that is written in a picture."""
    return [text for element in ET.fromstring(svg).iter() if (text := (element.text or "").strip())]


def odd_searches():
    one, *others = search(16)
    constant = Trial(0, {}, "finished", [(1, 0.5)])
    failed = [Trial(t.number, t.params, "failed", [(1, math.nan)] if t.number == 2 else [], 0.0, "x") for t in others]
    missing = [Trial(t.number, {**t.params, "optim.lr": None, "optim.beta1": "?"}, t.state, t.curve) for t in others]
    return {
        "none": [],
        "one": [one],
        "all failed": failed,
        "one and failed ones": [one, *failed],
        "NaN in the middle": [one, Trial(1, one.params, "failed", [(1, 0.5), (2, math.nan), (3, math.inf)])],
        "two that are the same": [one, Trial(1, one.params, one.state, one.curve)],
        "nothing searched": [constant, Trial(1, {}, "finished", [(1, 0.6)])],
        "values that are not there": [one, *missing],
        "lists and words": [
            Trial(
                i, {"model.type": value, "optim.lr": 0.0, "optim.beta1": 1.0, "optim.beta2": 0.9}, "running", [(1, i)]
            )
            for i, value in enumerate(
                [[1, 2], None, "好", "<script>", "--><img src=x>", "$x_1$\x00\x1b", "x" * 99, True, 3]
            )
        ],
        "64": search(64),
    }


@pytest.mark.parametrize("search_name", odd_searches())
@pytest.mark.parametrize("name", ALL)
def test_every_search_has_a_picture_or_words_that_say_why_not(name, search_name):
    picture = draw(name, odd_searches()[search_name], LOSS if search_name == "64" else ACCURACY)
    assert picture.title and picture.caption.endswith(".")
    if picture.svg:
        assert ET.fromstring(picture.svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "<script" not in picture.svg and "<img" not in picture.svg


@pytest.mark.parametrize("name", ALL)
def test_the_same_trials_give_the_same_text(name):
    first, again = draw(name, search()), draw(name, search())
    assert first.svg and first == again


def test_pictures_do_not_heed_this_machines_settings():
    import matplotlib

    before = draw("history", search())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert draw("history", search()) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_all_pictures_of_a_search_are_of_its_five_kinds():
    found = pictures.pictures(search(), ACCURACY, SCALES)
    assert len({picture.title for picture in found}) == 5
    assert all(picture.svg for picture in found)


def test_names_within_a_page_are_not_given_twice():
    svgs = [picture.svg for picture in pictures.pictures(search(), ACCURACY, SCALES)]
    for svg in svgs:
        ids = [element.get("id") for element in ET.fromstring(svg).iter() if element.get("id")]
        assert len(ids) == len(set(ids))
        assert all(f"#{name}" in svg for name in ids)


@pytest.mark.parametrize("goal, expected", [(ACCURACY, [0.5, 0.7, 0.7]), (LOSS, [0.5, 0.5, 0.4])])
def test_the_best_so_far_by_hand(goal, expected):
    values = [0.5, 0.7, 0.4]
    trials = [Trial(i, {}, "finished", [(1, value)]) for i, value in enumerate(values)]
    trials.append(Trial(3, {}, "failed", [(1, 0.99 if goal.mode == "max" else 0.01)]))
    numbers, best = pictures._running_best(trials, pictures._valued(trials, goal), goal)
    assert (numbers, best) == ([0, 1, 2, 3], [*expected, expected[-1]])


def test_history_marks_what_was_stopped_and_what_failed():
    assert {"finished", "stopped", "failed", "best so far", "accuracy", "trial"} <= set(
        words(draw("history", search()).svg)
    )


def test_one_that_is_far_worse_does_not_flatten_the_others():
    trials = [Trial(i, {}, "finished", [(1, value)]) for i, value in enumerate([0.90, 0.89, 0.88, 0.1])]
    picture = draw("history", trials)
    assert picture.caption.endswith("Much worse than the others, and put at the edge: 1.")
    assert draw("curves", trials).caption.endswith("Much worse at times, and cut at the edge: 1.")
    assert min(float(w) for w in words(picture.svg) if w.startswith("0.")) > 0.8


def test_the_learning_rate_is_what_mattered():
    shares, reason = pictures._importances(pictures._valued(search(40), ACCURACY), SCALES)
    assert not reason
    assert next(iter(shares)) == "optim.lr" and shares["optim.lr"] > 0.6
    assert sum(shares.values()) < 0.99, "the rest is what they do together"
    assert f"{shares['optim.lr']:.0%}" in words(draw("importance", search(40)).svg)


def test_what_parameters_do_together_is_no_share_of_one_of_them():
    """The values are good where just one of two is high: alone, neither explains anything."""
    rng = np.random.default_rng(0)
    places = rng.uniform(size=(60, 2))
    trials = [
        Trial(i, {"a": float(a), "b": float(b)}, "finished", [(1, float((a > 0.5) != (b > 0.5)))])
        for i, (a, b) in enumerate(places)
    ]
    shares, _ = pictures._importances(pictures._valued(trials, ACCURACY), {"a": "linear", "b": "linear"})
    assert all(share < 0.2 for share in shares.values())


def test_a_null_that_was_a_choice_is_a_value():
    trials = [Trial(i, {"a": None if i % 2 else 3}, "finished", [(1, 0.9 if i % 2 else 0.1)]) for i in range(12)]
    shares, reason = pictures._importances(pictures._valued(trials, ACCURACY), {"a": "choice"})
    assert (shares, reason) == ({"a": pytest.approx(1)}, "")
    column = pictures._column("a", trials, {"a": "choice"})
    assert column.ticks == [(0, "3"), (1, "null")] and len(column.places) == 12


def test_choices_of_one_beginning_have_places_and_ticks_of_their_own():
    names = [f"google-bert/bert-base-{which}" for which in ("chinese", "multilingual-cased", "multilingual-uncased")]
    trials = [Trial(i, {"a": name}) for i, name in enumerate([*names, "short"])]
    column = pictures._column("a", trials, {"a": "choice"})
    assert list(column.places.values()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [label for _, label in column.ticks] == [
        "…bert-base-chinese", "…ultilingual-cased", "…tilingual-uncased", "short"
    ]  # fmt: skip


def test_optuna_says_nothing_and_keeps_its_settings(capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    draw("importance", search())
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "trials, said",
    [
        ([], "This takes two trials with a value."),
        ([Trial(i, {"optim.lr": 0.1}, "finished", [(1, i)]) for i in range(3)], "No parameter was varied."),
        ([Trial(i, {"optim.lr": 0.1 + i}, "finished", [(1, 1)]) for i in range(3)],
         "All trials reached the same value: nothing mattered, or nothing can be told."),
    ],
)  # fmt: skip
def test_why_there_is_no_importance(trials, said):
    assert draw("importance", trials, scales={"optim.lr": "log"}).caption == said


@pytest.mark.parametrize(
    "scale, low, high, expected",
    [
        ("log", 1e-4, 1e-1, [1e-4, 1e-3, 1e-2, 1e-1]),
        ("log", 3e-4, 3e-2, [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
        ("log of 1 - x", 0.9, 0.9999, [0.9999, 0.999, 0.99, 0.9]),
        ("linear", 0, 4, [0, 1, 2, 3, 4]),
        ("linear", 2, 2, [2]),
    ],
)
def test_ticks_are_round(scale, low, high, expected):
    assert pictures._ticks(scale, low, high) == pytest.approx(expected, rel=1e-9)


def test_heights_of_parallel_coordinates_by_hand():
    values = {"optim.lr": [1e-4, 1e-3, 1e-2], "optim.beta1": [0.9, 0.99, 0.999], "train.epochs": [1, 2, 5]}
    trials = [Trial(i, {name: own[i] for name, own in values.items()}) for i in range(3)]
    heights = {name: list(pictures._column(name, trials, SCALES).places.values()) for name in values}
    assert heights["optim.lr"] == pytest.approx([0, 0.5, 1])
    assert heights["optim.beta1"] == pytest.approx([0, 0.5, 1])
    assert heights["train.epochs"] == pytest.approx([0, 0.25, 1])


def test_choices_stand_in_the_order_of_their_numbers():
    trials = [Trial(i, {"model.hidden_size": value}) for i, value in enumerate([64, 256, 128])]
    column = pictures._column("model.hidden_size", trials, {"model.hidden_size": "choice"})
    assert column.ticks == [(0, "64"), (0.5, "128"), (1, "256")]


@pytest.mark.parametrize("left_out", ["optim.lr", "optim.beta1 optim.beta2"])
def test_the_map_needs_a_rate_and_a_beta(left_out):
    scales = {name: scale for name, scale in SCALES.items() if name not in left_out.split()}
    assert draw("rate_and_beta", search(), scales=scales).svg == ""


def test_the_map_shows_betas_as_they_are_written():
    assert {"learning rate", "beta1", "beta2", "0.999", "0.9"} <= set(words(draw("rate_and_beta", search(40)).svg))
