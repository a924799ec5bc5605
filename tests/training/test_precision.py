"""To measure which precision is quicker changes nothing that training starts from; and what is better than what."""

import math

import pytest
from contract.members import IMAGE, small
from training.test_interruption import sha256, steps

from bigmodel.tasks.base import Goal
from bigmodel.training.fit import fit, fit_in_parts
from bigmodel.training.loop import finish


def test_a_run_that_measures_ends_at_the_bits_of_one_that_is_told(tmp_path, monkeypatch):
    """With batch norm, whose averages a forward pass changes."""
    monkeypatch.setattr("bigmodel.training.precision.products", dict)  # on any CPU the whole model is timed
    resnet = small(IMAGE, {"type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]})
    changes = ("train.epochs=2", "train.precision=auto")
    measured = fit(resnet(tmp_path, *changes, f"output={tmp_path / 'measured'}"))
    made = measured.info["decisions"]
    told = finish(fit_in_parts(resnet(tmp_path, *changes, f"output={tmp_path / 'told'}"), decisions=made))
    assert made["precision"] and steps(measured.path) == steps(told.path)
    assert sha256(measured.path) == sha256(told.path)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("none", [math.nan, math.inf, -math.inf])
def test_a_number_is_better_than_none(mode, none):
    goal = Goal("loss", mode)
    assert goal.better(none, None) and goal.better(0.5, none)
    assert not goal.better(none, 0.5) and not goal.better(none, none)
