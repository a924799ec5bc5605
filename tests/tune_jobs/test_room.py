"""How many trials and workers there is room for, on what Ray says that it has."""

import pytest

from bigmodel import cluster
from bigmodel.errors import ResourceError
from bigmodel.experiment import Experiment
from bigmodel.training.on_ray import _scaling
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
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": float(cpus), "GPU": float(gpus)}])
    assert concurrency(on_gpus(experiment(train, tune))) == room


def test_no_trial_lies_on_two_nodes(monkeypatch):
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 3.0}, {"CPU": 3.0}, {"GPU": 1.0}])
    assert concurrency(experiment({"device": "cpu"}, {"num_cpus": 2})) == 2
    with pytest.raises(ResourceError, match="wants 4 CPUs and 0 GPUs; Ray has 6 CPUs and 1 GPUs on 3 nodes"):
        concurrency(experiment({"device": "cpu"}, {"num_cpus": 4}))


@pytest.mark.parametrize(
    ("workers", "nodes", "threads"),
    [
        (1, [4, 4], 4),  # not 8, which no node has
        (4, [8, 8, 8], 4),  # not 6: of those only three find a place
        (2, [8], 4),
        ("1..4", [8], 2),
        (4, [1, 1, 1, 1], 1),
    ],
)
def test_the_threads_of_a_worker_lie_on_one_node(workers, nodes, threads):
    there = [{"CPU": 0.0}, *({"CPU": float(cpus)} for cpus in nodes)]
    assert _scaling(experiment({"workers": workers}, {}), there)["threads"] == threads


def test_no_room_for_one(monkeypatch):
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 2.0}])
    with pytest.raises(ResourceError, match="a trial wants 1 CPUs and 1 GPUs; Ray has 2 CPUs and 0 GPUs"):
        concurrency(on_gpus(experiment({}, {"num_gpus": 1})))
