"""Ray Train with what is changed of its private parts."""

import time

import pytest

from bigmodel.training.ray_train import ASK_S, lighter, patience


@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"])
def test_actors_without_use_are_left_out(monkeypatch, address):
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    monkeypatch.setenv("RAY_ADDRESS", address)
    usual, ours = (
        {type(callback).__name__ for callback in trainer._create_default_callbacks()}
        for trainer in (DataParallelTrainer(print), lighter(DataParallelTrainer(print)))
    )
    assert usual - ours == {"DatasetsCallback"} | (set() if address else {"PlacementGroupCleanerCallback"})


def test_a_controller_that_waits_for_room_leaves_the_core_to_others():
    """It asks anew in a loop without a pause, and gives each answer to its callbacks: the same state, as nothing has
    changed."""
    from ray.train.v2._internal.execution.controller.state import InitializingState

    waiting, it = InitializingState(), patience(60)
    it.after_controller_start(None)
    began = time.monotonic()
    it.after_controller_state_update(waiting, waiting)
    assert time.monotonic() - began >= ASK_S
    with pytest.raises(TimeoutError, match="there was no room for them for 0 s"):
        impatient = patience(0)
        impatient.after_controller_start(None)
        impatient.after_controller_state_update(InitializingState(), waiting)
