"""What can befall a run on a cluster, done to it: each time it goes on by itself, or by the same command, and ends at
the weights of a run that was left alone."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Process, cluster, end, parents, processes_of, running, that_run
from conftest import write_reviews
from job import Job, named
from training.test_interruption import sha256, steps

from bigmodel.experiment import Experiment, change
from bigmodel.training.fit import fit
from bigmodel.training.on_ray import NOTICE_S, WAIT_S

EVERY = 20  # steps between checkpoints


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """One node at first."""
    with cluster(1) as it:
        yield it


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Experiment]:
    folder = tmp_path_factory.mktemp("faults")
    source = write_reviews(folder / "reviews.csv")

    def made(name: str, *changes: str) -> Experiment:
        return change(
            {
                "task": "text-classification",
                "data": {"train": str(source), "text": "text", "label": "label"},
                "model": {"type": "lstm", "hidden_size": 8, "embedding_size": 8},
                "train": {"epochs": 60, "batch_size": 16, "exact": True, "checkpoint_every": EVERY},
                "output": str(folder / name),
            },
            ("train.validate_every=300", *changes),
        )

    return made


@pytest.fixture(scope="module")
def unbroken(make: Callable[..., Experiment]) -> Path:
    return fit(make("unbroken")).path


@pytest.fixture
def job(
    nodes: Cluster, make: Callable[..., Experiment], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def started(*changes: str) -> Job:
        jobs.append(Job(nodes, make(request.node.name, *changes)))
        return jobs[-1]

    yield started
    for each in jobs:
        each.kill()


def with_nodes(it: Cluster, count: int) -> None:
    while len(it.nodes) < count:
        it.join()
    it.wait(lambda: it.alive() == count)


def on_two(it: Cluster, job: Callable[..., Job]) -> tuple[Job, dict[str, Any]]:
    """A job on two workers that has saved more than once, and its start."""
    with_nodes(it, 2)
    begun = job("train.workers=2")
    return begun, begun.wait_for_step(50)


def on_both(it: Job) -> dict[str, Any]:
    """The start on two nodes: Ray may take half a minute to see one that has just joined."""
    start = it.wait_for_step(50)
    if start["workers"] == 1:
        os.kill(start["pid"], signal.SIGSTOP)
        start = it.wait_for_another(start)
    return start


def that_train(it: Cluster) -> dict[Process, int]:
    """Processes -> the ones that have imported for them."""
    ours, parent = that_run("bigmodel.training.forkserver"), parents()
    above = {process: parent.get(parent.get(process.pid, 0), 0) for process in processes_of(it) if process.pid in ours}
    return {process: kept for process, kept in above.items() if kept in ours}


def other_node(it: Cluster) -> str:
    """The one that is not the head."""
    told = it.get("/nodes?view=summary")["data"]["summary"]  # type: ignore[index]
    [found] = [
        node["raylet"] for node in told if node["raylet"]["state"] == "ALIVE" and not node["raylet"]["isHeadNode"]
    ]
    return str(found["nodeId"])


def same(job: Job, unbroken: Path) -> bool:
    return sha256(job.run) == sha256(unbroken) and steps(job.run) == steps(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_joins_is_used(nodes, job, unbroken):
    it = job("train.workers=1..2")
    alone = it.wait_for_step(50)
    os.kill(alone["pid"], signal.SIGSTOP)  # there is no hurry
    with_nodes(nodes, 2)
    both = it.wait_for_another(alone)
    assert (alone["workers"], both["workers"]) == (1, 2) and both["step"] >= 40
    it.to_its_end()
    assert same(it, unbroken)


@pytest.mark.timeout(600)
def test_a_killed_worker(nodes, job, unbroken):
    it, first = on_two(nodes, job)
    os.kill(first["pid"], signal.SIGKILL)
    second = it.wait_for_another(first)
    assert second["workers"] == 2 and second["again"] <= EVERY + 10
    assert second["after"] == "worker 0 died"
    it.to_its_end()
    assert same(it, unbroken) and "steps are done again" in it.said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_of_rays(nodes, job, unbroken):
    """With the process that trains for it. What has imported serves the next workers."""
    it, first = on_two(nodes, job)
    trained = that_train(nodes)
    end(named(nodes, "RayTrainWorker")[0])
    second = it.wait_for_another(first)
    assert len(trained) == 2 and not running().keys() & trained.keys()
    assert {*that_train(nodes).values()} == {*trained.values()}
    assert second["workers"] == 2 and second["again"] <= EVERY + 10 and "died" in second["after"]
    it.to_its_end()
    assert same(it, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_stands_still(nodes, job, unbroken):
    with_nodes(nodes, 2)
    it = job("train.workers=2", "train.timeout=15")
    first = it.wait_for_step(50)
    [other] = [each for each in that_train(nodes) if each.pid != first["pid"]]
    os.kill(other.pid, signal.SIGSTOP)
    stopped = time.time()
    second = it.wait_for_another(first)
    assert second["workers"] == 2 and second["again"] <= EVERY + 10 and second["after"]
    assert second["time"] - stopped < 15 + NOTICE_S + 60, "a minute to import"
    it.to_its_end()
    assert same(it, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_controller(nodes, job, unbroken):
    """The room that it had asked for is no longer counted as taken."""
    with_nodes(nodes, 2)
    it = job("train.workers=1..2")
    first = on_both(it)
    for controller in named(nodes, "TrainController"):
        end(controller)
    killed = time.time()
    second = it.wait_for_another(first)
    assert second["workers"] == 2 and second["time"] - killed < 90
    assert second["again"] <= EVERY + 10 and second["after"] == "Ray Train's controller died"
    it.to_its_end()
    assert same(it, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver(nodes, job, unbroken):
    with_nodes(nodes, 2)
    it = job("train.workers=1..2")
    first = on_both(it)
    it.kill()
    killed = time.time()
    it = job("train.workers=1..2")
    second = it.wait_for_another(first)
    assert second["time"] - killed < 90
    assert second["again"] <= EVERY + 10
    it.to_its_end()
    assert same(it, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_will_be_taken_away_is_left_in_time(nodes, job, unbroken):
    with_nodes(nodes, 2)
    it = job("train.workers=1..2")
    both = on_both(it)
    workers = [*named(nodes, "RayTrainWorker"), *that_train(nodes)]
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)  # till the notice is there
    node = other_node(nodes)
    notice = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds")
    drained = nodes.ray("drain-node", "--address", nodes.address, "--node-id", node, *notice, "60")
    assert drained.returncode == 0, drained.stdout
    leaving = nodes.nodes.pop(1)
    for worker in workers:
        os.kill(worker.pid, signal.SIGCONT)
    one = it.wait_for_another(both)
    assert (both["workers"], one["workers"], one["again"]) == (2, 1, 0)
    assert "is to be taken away" in one["after"]
    it.to_its_end()
    assert same(it, unbroken)
    leaving.terminate()  # its raylet has left; what began it waits on
    leaving.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_node(nodes, job, unbroken):
    with_nodes(nodes, 2)
    it = job("train.workers=1..2")
    both = on_both(it)
    nodes.lose(1)
    one = it.wait_for_another(both)
    assert (both["workers"], one["workers"]) == (2, 1) and one["again"] <= EVERY + 10
    it.to_its_end()
    assert same(it, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_too_few_nodes_are_left(nodes, job):
    """Who waits is told at once what befell the run, and after some minutes that there is no room for it."""
    with_nodes(nodes, 2)
    it = job("train.workers=2..3")
    it.wait_for_step(50)
    nodes.lose(1)
    assert it.process.wait(600) == 2, it.said
    assert re.search("died, or (the|its) node did; the last checkpoint stays", it.said)
    assert f"no room for them for {WAIT_S} s" in it.said and "Traceback" not in it.said
