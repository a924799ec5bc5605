"""Ray Train with what is changed of its private parts."""

import pytest

from bigmodel.training.ray_train import lighter


@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"])
def test_actors_without_use_are_left_out(monkeypatch, address):
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    monkeypatch.setenv("RAY_ADDRESS", address)
    usual, ours = (
        {type(callback).__name__ for callback in trainer._create_default_callbacks()}
        for trainer in (DataParallelTrainer(print), lighter(DataParallelTrainer(print)))
    )
    assert usual - ours == {"DatasetsCallback"} | (set() if address else {"PlacementGroupCleanerCallback"})
