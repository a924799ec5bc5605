"""Ranges as they are written, and what is proposed from them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigmodel import tasks
from bigmodel.errors import ConfigError
from bigmodel.experiment import Experiment
from tune_jobs.halving import Halving
from tune_jobs.journal import TIME, Journal, Trial, read
from tune_jobs.propose import Proposals
from tune_jobs.space import Range, is_range, parse, space, with_values


def experiment(space: dict[str, Any] | None = None, **tune: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "task": "text-classification",
            "data": {"train": "reviews.csv"},
            "model": {"type": "lstm", "hidden_size": 64},
            "tune": {"space": space or {}, **tune},
        }
    )


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("optim.lr", "log:1e-4..1e-1", Range("log", 1e-4, 1e-1)),
        ("optim.weight_decay", "uniform:0..0.5", Range("uniform", 0.0, 0.5)),
        ("model.num_layers", "int:1..4", Range("int", 1, 4)),
        ("model.hidden_size", "choice:64,128", Range("choice", values=(64, 128))),
        ("model.kernel_sizes", [[2, 3], [2, 3, 4]], Range("choice", values=([2, 3], [2, 3, 4]))),
        ("optim.schedule", "choice:cosine,linear", Range("choice", values=("cosine", "linear"))),
        ("optim.beta2", "log:0.9..0.9999", Range("log", 0.9, 0.9999, from_one=True)),
    ],
)
def test_ranges(name: str, text: Any, wanted: Range) -> None:
    assert parse(name, text) == wanted


def test_learning_rate_and_betas_are_searched_by_default() -> None:
    assert set(space(experiment())) == {"optim.lr", "optim.beta1", "optim.beta2"}
    assert set(space(experiment({"optim.beta1": "none", "optim.eps": "log:1e-9..1e-6"}))) == {
        "optim.lr", "optim.beta2", "optim.eps"
    }  # fmt: skip
    descent = with_values(experiment(), {"optim.type": "gd"})
    assert set(space(descent)) == {"optim.lr", "optim.momentum"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"optim.lrr": "log:1e-3..1"}, "optim has no field 'lrr'. Did you mean 'lr'?"),
        ({"optim.lr": "lg:2"}, "'lg:2' is no range. Ranges: log:"),
        ({"optim.lr": "log:1..0.1"}, "write log:LOW..HIGH with LOW below HIGH"),
        ({"optim.lr": "log:a..b"}, "write log:LOW..HIGH with LOW below HIGH"),
        ({"optim.lr": "log:1e-4..inf"}, "write log:LOW..HIGH with LOW below HIGH"),
        ({"optim.lr": "log:0..1"}, "log wants numbers above 0"),
        ({"optim.weight_decay": "uniform:-1..1"}, "optim.weight_decay is -1.0, but must be at least 0"),
        ({"optim.beta1": "log:0.5..1.2"}, "log of a beta is of 1 - beta"),
        ({"train.epochs": "int:1..2.5"}, "int wants whole numbers"),
        ({"train.epochs": "int:1..1e30"}, "int wants whole numbers up to 9,007,199,254,740,992"),
        ({"optim.lr": "choice:[1,"}, "'choice:[1,' is no list. Such as choice:64,128"),
        ({"optim.lr": "choice:2001-13-45"}, "'choice:2001-13-45' is no list"),
        ({"optim.lr": []}, "no value to choose from"),
        ({"optim.lr": "none", "optim.beta1": "none", "optim.beta2": "none"}, "nothing is left to search"),
    ],
)
def test_a_range_that_cannot_be_is_named(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        space(experiment(asked))
    assert message in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        space(experiment({"optim.lr": "lg:2", "optim.eps": "uniform:2..1"}))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("model.hidden_size=choice:64,128", True),
        ("optim.lr=2e-3", False),
        ("output=log", False),
        ("optim.lr=none", True),
    ],
)
def test_ranges_are_told_from_changes(change: str, wanted: bool) -> None:
    assert is_range(change) is wanted


# ---- proposals

SPACE = {
    "model.hidden_size": "choice:32,64,128",
    "optim.weight_decay": "log:1e-6..1e-1",
    "optim.eps": "uniform:1e-9..1e-6",
}


def ask(folder: Path, wanted: Experiment, at_most: int = 99) -> list[dict[str, Any]]:
    """As Ray Tune asks, one trial after the other; a trial is the better, the nearer its rate is to 0.01."""
    goal = tasks.get(wanted.task).goal
    proposals = Proposals(space(wanted), wanted, Journal(folder / "trials.jsonl"), goal)
    found: list[dict[str, Any]] = []
    while len(found) < at_most and isinstance(proposal := proposals.suggest(str(len(found))), dict):
        own = proposal["own"]
        distance = abs(math.log10(own["params"]["optim.lr"]) + 2)
        proposals.on_trial_complete(str(len(found)), {"best": 1 - distance})
        found.append(own)
    return found


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_a_search_that_goes_on_proposes_what_it_would_have(search: str, tmp_path: Path) -> None:
    wanted = experiment({} if search == "grid" else SPACE, search=search, trials=14)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    asked = ask(whole, wanted)
    ask(parts, wanted, at_most=9)
    assert ask(parts, wanted) == asked
    assert [trial.params for trial in read(parts / "trials.jsonl")] == [one["params"] for one in asked]
    assert len(asked) == (28 if search == "grid" else 14)
    assert asked[0]["params"]["optim.lr"] == wanted.optim.lr, (
        "a grid has the default too: the winner is compared with it"
    )


def test_a_field_that_the_experiment_leaves_out_stays_out_of_the_default(tmp_path: Path) -> None:
    first, second = ask(tmp_path, experiment({"model.dropout": "uniform:0..0.5"}), at_most=2)
    assert "model.dropout" not in first["params"] and 0 <= second["params"]["model.dropout"] <= 0.5


def test_a_default_between_two_whole_numbers_is_known_as_the_nearest(tmp_path: Path) -> None:
    wanted = with_values(experiment({"optim.weight_decay": "int:0..2"}, trials=9), {"optim.weight_decay": 0.6})
    first, *others = ask(tmp_path, wanted)
    assert first["params"]["optim.weight_decay"] == 0.6 and len(others) == 8
    assert {one["params"]["optim.weight_decay"] for one in others} <= {0, 1, 2}
    assert space(wanted)["optim.weight_decay"].drawn(0.6) == 1


def test_a_null_is_a_choice_that_the_estimators_know(tmp_path: Path) -> None:
    field = "data.tokenizer.lowercase"
    wanted = experiment({field: [None, True], "model.dropout": [None, 0.5]}, trials=9)
    first, *others = (one["params"] for one in ask(tmp_path, wanted))
    assert first[field] is None, "as the experiment has it"
    assert "model.dropout" not in first, "of which the experiment says nothing"
    assert {params[field] for params in others} == {None, True}
    proposals = Proposals(space(wanted), wanted, Journal(tmp_path / "trials.jsonl"), tasks.get(wanted.task).goal)
    proposals._params[1] = {field: None, "model.dropout": None}
    assert proposals._trial(1).params == {field: "null", "model.dropout": "null"}


def test_what_has_ended_is_not_proposed_again_but_known(tmp_path: Path) -> None:
    ended = Trial(0, {"optim.lr": 0.01}, "finished", [(10, 0.9)])
    late = Trial(2, {"optim.lr": 0.02}, "stopped", [(10, 0.2)], reason=TIME)
    journal = Journal(tmp_path / "trials.jsonl")
    for trial in (ended, Trial(1, {"optim.lr": 0.3}, "failed", reason="no memory"), late):
        journal.begin(trial.number, trial.params)
        journal.end(trial)
    asked = ask(tmp_path, experiment(search="random", trials=4))
    assert [one["number"] for one in asked] == [1, 2, 3], "failed, out of time, new"
    assert [one["params"]["optim.lr"] for one in asked[:2]] == [0.3, 0.02]


def test_halving_compares_with_what_an_earlier_search_has_judged() -> None:
    settings: Any = {"time_attr": "validations", "metric": "accuracy", "mode": "max", "max_t": 100}
    ended = [Trial(number, {}, "finished", [(10, 0.8), (20, 0.9)]) for number in range(3)]
    trial: Any = SimpleNamespace(trial_id="new", config={"own": {"number": 3}})
    controller: Any = None
    for known, decision in ((ended, "STOP"), ([], "CONTINUE")):
        halving = Halving(known, grace_period=1, reduction_factor=2, **settings)
        halving.on_trial_add(controller, trial)
        assert halving.on_trial_result(controller, trial, {"validations": 1, "accuracy": 0.5}) == decision


def test_the_first_trial_is_the_experiment_itself(tmp_path: Path) -> None:
    assert ask(tmp_path, experiment(SPACE), at_most=1)[0]["params"] == {
        "optim.lr": 1e-3, "optim.beta1": 0.9, "optim.beta2": 0.999,
        "model.hidden_size": 64, "optim.weight_decay": 0.0, "optim.eps": 1e-8,
    }  # fmt: skip


def test_proposals_stay_within_their_ranges_and_are_experiments(tmp_path: Path) -> None:
    wanted = experiment(SPACE, trials=20)
    for proposal in ask(tmp_path, wanted)[1:]:
        params = proposal["params"]
        assert 1e-4 <= params["optim.lr"] <= 1e-1 and 1e-6 <= params["optim.weight_decay"] <= 1e-1
        assert 0.5 <= params["optim.beta1"] <= 0.99 and 0.9 <= params["optim.beta2"] <= 0.9999
        assert with_values(wanted, params).optim.betas == (params["optim.beta1"], params["optim.beta2"])


def test_estimators_find_the_rate_that_random_trials_miss(tmp_path: Path) -> None:
    rates = [one["params"]["optim.lr"] for one in ask(tmp_path, experiment(trials=40))]
    late = [abs(math.log10(rate) + 2) for rate in rates[20:]]
    early = [abs(math.log10(rate) + 2) for rate in rates[:7]]
    assert sum(late) / len(late) < sum(early) / len(early) / 2


def test_the_journal_survives_a_line_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    journal = Journal(file)
    journal.begin(0, {"optim.lr": 0.1})
    journal.end(Trial(0, {"optim.lr": 0.1}, "finished", [(10, 0.5), (20, 0.7)], 3.0))
    journal.begin(1, {"optim.lr": 0.2})
    file.write_text(file.read_text() + '{"trial": 2, "par')
    first, second = read(file)
    assert first == Trial(0, {"optim.lr": 0.1}, "finished", [(10, 0.5), (20, 0.7)], 3.0)
    assert (second.number, second.state, first.best("max"), first.best("min")) == (1, "running", 0.7, 0.5)
