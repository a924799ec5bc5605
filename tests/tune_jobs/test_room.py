"""How many trials there is room for, on what Ray says that it has."""

import pytest
import ray

from bigmodel.errors import ResourceError
from bigmodel.experiment import Experiment
from tune_jobs.search import concurrency, on_gpus


def experiment(train: dict, tune: dict) -> Experiment:
    data = {"train": "rows.csv", "text": "text", "label": "label"}
    return Experiment.model_validate({"task": "text-classification", "data": data, "train": train, "tune": tune})


@pytest.mark.parametrize(
    ("train", "tune", "cpus", "gpus", "room"),
    [
        ({}, {}, 16, 0, 16),
        ({}, {}, 16, 2, 2),  # each has a GPU to itself
        ({}, {"num_gpus": 0.5}, 16, 2, 4),
        ({"device": "cpu"}, {}, 16, 2, 16),
        ({}, {"num_cpus": 4}, 6, 2, 1),
        ({"workers": 2, "threads": 1}, {}, 16, 0, 8),
        ({"workers": 2, "threads": 1}, {}, 16, 2, 1),  # a GPU each worker
        ({"workers": 2, "threads": 1}, {}, 16, 1, 8),  # too few: they compute on CPUs
    ],
)
def test_the_room_for_trials(monkeypatch, train, tune, cpus, gpus, room):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    assert concurrency(on_gpus(experiment(train, tune))) == room


def test_no_room_for_one(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ResourceError, match="a trial wants 1 CPUs and 1 GPUs; Ray has 2 CPUs and 0 GPUs"):
        concurrency(on_gpus(experiment({}, {"num_gpus": 1})))
