"""Who wins a search: from made journals through the verdict to the trial that is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bigmodel.training.run import Run
from tune_jobs.journal import Trial
from tune_jobs.search import Search, best_of, repeats_of
from tune_jobs.space import space
from tune_jobs.winner import chosen, judged


@pytest.fixture
def search(experiment: Callable[..., Any], tmp_path: Path) -> Callable[..., Search]:
    """search(trials, curves): each candidate's repeats have the curve that is given by its number; failed where it has
    none, or has one that says so."""

    def make(trials: Sequence[Trial], curves: dict[int, list[float]], failed: Sequence[int] = ()) -> Search:
        own = experiment("tune.candidates=2", "tune.repeats=3")
        repeats = [
            Trial(number, params, "failed" if number // 100 in failed else "finished", curve(curves[number // 100]))
            for number, params in repeats_of(own, trials).items()
        ]
        return Search(tmp_path, own, space(own), trials, repeats, 1.0)

    return make


def curve(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(10 * (i + 1), value) for i, value in enumerate(values)]


def trial(number: int, value: float, state: Any = "finished") -> Trial:
    return Trial(number, {"optim.lr": 0.01 * (number + 1)}, state, curve([value]))


def test_a_repeat_that_diverged_has_no_value_whatever_it_had_reached(search):
    found = search([trial(0, 0.8), trial(1, 0.9), trial(2, 0.85)], {0: [0.8], 1: [0.95], 2: [0.7]}, failed=[1])
    verdict = judged(found)
    assert verdict.winner == "the default" and chosen(found, verdict).number == 0
    assert verdict.failed == {"trial 1": [1, 2, 3]}
    assert verdict.words.endswith("Trial 1 failed with every seed.")


def test_where_the_default_failed_in_the_search_the_best_of_the_repeats_wins(search):
    trials = [trial(0, 0.1, "failed"), trial(1, 0.9), trial(2, 0.89)]
    found = search(trials, {1: [0.6], 2: [0.88]})
    verdict = judged(found)
    assert chosen(found, verdict).number == 2
    assert verdict.words == (
        "Trial 2 wins, with nothing to compare it to. The default failed in the search, and was not repeated."
    )
    nothing = search(trials, {1: [], 2: []}, failed=[1, 2])
    assert chosen(nothing, judged(nothing)).number == 1, "one that was trained, where no repeat was"


def test_where_nothing_was_repeated_there_is_no_verdict(search):
    found = search([], {})
    assert judged(found) is None


def test_a_trial_that_failed_after_a_validation_is_never_the_best():
    failed = [trial(0, 0.9, "failed"), trial(1, 0.8, "failed")]
    assert best_of(failed, "max") == []
    assert [one.number for one in best_of([*failed, trial(2, 0.7, "stopped")], "max")] == [2]


def test_it_is_said_whose_repeats_began_anew_under_pbt(search):
    found = search([trial(0, 0.8), trial(1, 0.9), trial(2, 0.85)], {0: [0.8], 1: [0.9], 2: [0.7]})
    alone = judged(found).words
    for number in (1, 3):
        Run(found.folder / "trials" / f"{number:03}").path.mkdir(parents=True)
        Run(found.folder / "trials" / f"{number:03}").write(taken_over="000")
    assert judged(found).words == (
        f"{alone} Trial 1 had taken over weights and values of others: its repeats began anew, with the last values."
    )
