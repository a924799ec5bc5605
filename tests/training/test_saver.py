"""Saving beside training: what is copied, in which order it is published, what stays, and kills at any moment."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bigmodel.errors import Interrupted, ResourceError
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.saver import Saver


def save(saver: Saver, step: int, best_step: int | None = None) -> None:
    """A checkpoint, and the weights of `best_step` where that is this one."""
    tensors = {"model": {"w": torch.full((100,), float(step))}, "optimizer": {}}
    best = ({"model": tensors["model"]}, {"metrics": {}}) if best_step == step else None
    saver.save(tensors, {"step": step, "best_step": best_step}, best)


def steps(checkpoints: Checkpoints, prefix: str = "step-") -> list[int]:
    return [int(name.removeprefix(prefix)) for name in checkpoints.names(prefix)]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path))


def test_what_changes_after_save_is_not_in_it(checkpoints):
    weight = torch.ones(1_000_000)
    with Saver(checkpoints, keep=2) as saver:
        saver.reserve({"model": {"w": weight}})
        for step in (1, 2):
            saver.save({"model": {"w": weight.view(1000, 1000).T}}, {"step": step})
            weight.zero_().add_(step + 1)
    for step in (1, 2):
        found = checkpoints.load(f"step-{step:08d}")
        assert found is not None and torch.all(found.tensors["model"]["w"] == step)


@pytest.mark.parametrize(
    ("keep", "keep_every", "saved", "stay"),
    [
        (1, 0, [5, 10, 15], [15]),
        (2, 0, [5, 10, 15], [10, 15]),
        (9, 0, [5, 10, 15], [5, 10, 15]),
        (1, 10, [5, 10, 15, 20, 25, 30, 35], [10, 20, 30, 35]),
        (2, 10, [7, 14, 21, 28, 35, 42, 49], [14, 21, 35, 42, 49]),
        (1, 1, [1, 2, 3], [1, 2, 3]),
        (1, 100, [7, 14], [14]),
    ],
)
def test_the_last_ones_and_every_so_many_steps_the_first_stay(checkpoints, keep, keep_every, saved, stay):
    for one in ([], saved[:3]), (saved[:3], saved):  # the second half by a process that begins anew
        with Saver(checkpoints, keep, keep_every) as saver:
            for step in one[1][len(one[0]) :]:
                save(saver, step)
    assert steps(checkpoints) == stay


def test_the_best_weights_stay_as_long_as_a_checkpoint_names_them(checkpoints):
    with Saver(checkpoints, keep=2) as saver:
        for step, best_step, stay in (1, 1, [1]), (2, 1, [1]), (3, 3, [1, 3]), (4, 3, [3]), (5, 3, [3]), (6, 6, [3, 6]):
            save(saver, step, best_step)
            saver.wait()
            assert steps(checkpoints, "best-") == stay


def test_a_continued_run_knows_what_the_checkpoints_before_it_name(checkpoints):
    with Saver(checkpoints, keep=3) as saver:
        save(saver, 1, 1)
        save(saver, 2, 1)
    with Saver(checkpoints, keep=3) as saver:
        save(saver, 3, 3)
    assert steps(checkpoints, "best-") == [1, 3]


def test_a_damaged_one_further_on_does_not_count_as_kept(checkpoints, tmp_path):
    with Saver(checkpoints, keep=1) as saver:
        save(saver, 2)
        save(saver, 9)
    (tmp_path / "step-00000009" / "state.json").write_text("{")
    with Saver(checkpoints, keep=1) as saver:
        save(saver, 5)  # taken up from an older one
    assert steps(checkpoints) == [5]


class Gated(Checkpoints):
    """Publishes, and reads back, only when it is let."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.let = threading.Event()

    def is_whole(self, name: str) -> bool:
        self.let.wait(30)
        return super().is_whole(name)


def test_nothing_is_deleted_before_the_newer_one_is_verified(tmp_path, checkpoints):
    gated = Gated(str(tmp_path))
    gated.let.set()
    with Saver(gated, keep=1) as saver:
        save(saver, 1, 1)
        saver.wait()
        gated.let.clear()
        save(saver, 2, 2)
        assert saver.busy
        assert steps(checkpoints) == [1] and steps(checkpoints, "best-") == [1]
        gated.let.set()
    assert steps(checkpoints) == [2] and steps(checkpoints, "best-") == [2]


class Rotten(Checkpoints):
    """On a disk that does not keep what it is given."""

    def _write(self, path, pieces):
        return super()._write(path, pieces) | ({"sha256": "0" * 64} if "step-00000002/model" in path else {})


@pytest.mark.parametrize("notice", ["save", "wait", "leave"])
def test_a_failed_save_is_raised_by_the_next_call_and_the_older_ones_stay(tmp_path, checkpoints, notice):
    saver = Saver(Rotten(str(tmp_path)), keep=1)
    with pytest.raises(ResourceError, match="step-00000002: the checkpoint cannot be written"), saver:
        save(saver, 1)
        save(saver, 2)
        if notice == "save":
            save(saver, 3)
        elif notice == "wait":
            saver.wait()
    assert steps(checkpoints) == [1]


@pytest.mark.parametrize("reason", [None, Interrupted, RuntimeError, GeneratorExit])
def test_however_it_is_left_all_is_on_disk(checkpoints, reason):
    try:
        with Saver(checkpoints, keep=1) as saver:
            save(saver, 1)
            if reason is not None:
                raise reason("left")
    except BaseException as e:
        assert reason is not None and type(e) is reason
    assert steps(checkpoints) == [1] and not saver.busy


def test_a_readonly_worker_saves_nothing(tmp_path):
    with Saver(Checkpoints(str(tmp_path / "none"), readonly=True), keep=1) as saver:
        saver.reserve({"model": {}})
        save(saver, 1, 1)
    assert not (tmp_path / "none").exists()


NURSERY = """
import os, sys, torch
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.saver import Saver

def save_for_ever(root):
    checkpoints = Checkpoints(root)
    start = checkpoints.latest("step-")[0]
    step, best = (start.state["step"], start.state["best_step"]) if start else (0, None)
    weight = torch.zeros(50_000)
    with Saver(checkpoints, keep=2, keep_every=50) as saver:
        while True:
            step += 1
            weight.fill_(step)
            better = None
            if step % 3 == 1:
                best, better = step, ({"model": {"w": weight}}, {"metrics": {}})
            saver.save({"model": {"w": weight}}, {"step": step, "best_step": best}, better)

for _ in sys.stdin:  # a process each, without importing torch each time
    if not (pid := os.fork()):
        save_for_ever(sys.argv[1])
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_while_saving_never_leave_an_unloadable_state(checkpoints, tmp_path, kills):
    command = [sys.executable, "-c", NURSERY, str(tmp_path)]
    nursery = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert nursery.stdin is not None and nursery.stdout is not None
    rng, reached = torch.Generator().manual_seed(0), 0
    for _ in range(kills):
        nursery.stdin.write("one\n")
        nursery.stdin.flush()
        pid = int(nursery.stdout.readline())
        time.sleep(0.02 + 0.2 * torch.rand((), generator=rng).item())
        os.kill(pid, signal.SIGKILL)
        assert nursery.stdout.readline() == "gone\n"
        reached = max(reached, whole(checkpoints, reached))
    assert reached > kills / 2, "next to nothing was saved between the kills"
    nursery.stdin.close()
    assert nursery.wait(30) == 0
    nursery.stdout.close()


def whole(checkpoints: Checkpoints, reached: int) -> int:
    """Every published save loads, the newest is no older than before, its best weights are there. -> its step"""
    assert all(checkpoints.load(name) for prefix in ("step-", "best-") for name in checkpoints.names(prefix))
    found, damaged = checkpoints.latest("step-")
    assert damaged == []
    if found is None:
        assert reached == 0
        return 0
    assert found.state["step"] >= reached
    assert torch.all(found.tensors["model"]["w"] == found.state["step"])
    best = checkpoints.load(f"best-{found.state['best_step']:08d}")
    assert best is not None and torch.all(best.tensors["model"]["w"] == found.state["best_step"])
    return int(found.state["step"])


def test_kills_while_saving_to_object_storage_never_leave_an_unloadable_state(s3):
    root, reached = f"{s3}/kills", 0
    checkpoints = Checkpoints(root)
    for number in range(3):
        nursery = subprocess.Popen([sys.executable, "-c", NURSERY, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert nursery.stdin is not None and nursery.stdout is not None
        nursery.stdin.write(b"one\n")
        nursery.stdin.flush()
        pid = int(nursery.stdout.readline())
        time.sleep(1 + 0.37 * number)
        os.kill(pid, signal.SIGKILL)
        nursery.communicate()
        reached = whole(checkpoints, reached)
    assert reached
