"""No room any more: on the disk, wherever a run writes; in Ray's object store, which training does not need."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, cluster
from training.test_interruption import CHANGES, sha256, steps

from bigmodel.errors import ResourceError, TrainingError
from bigmodel.training.events import Events
from bigmodel.training.fit import fit
from bigmodel.training.run import Run, put_whole

HOLD = """
import numpy, ray, time
ray.init(log_to_driver=False)
held = [ray.put(numpy.ones(45_000_000, numpy.uint8)) for _ in range(4)]
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def filling() -> Iterator[Callable[[int], None]]:
    """fill(n): from now on no file of this process grows beyond n bytes, to the end of `with`."""
    before, usual = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, usual)


@pytest.mark.parametrize(("kind", "size", "what"), [
    ("step", 2500, "events.jsonl: the events cannot be written: .*File too large"),
    ("step", 10, "events.jsonl: the events cannot be written: .*File too large"),  # nor run.json, that it failed
    ("end", 7300, "model: the model cannot be written: .*File too large"),  # the weights
    ("prepared", 10, "run.json: cannot be written: File too large"),
])  # fmt: skip
def test_a_full_disk_is_said_whatever_is_written(experiment, kind, size, what):
    with pytest.raises(ResourceError, match=what), filling() as fill:

        def listen(event: dict[str, Any]) -> None:
            if event["kind"] == kind and event.get("step", 12) >= 12:
                fill(size)

        fit(experiment(), listener=listen)
    run = fit(experiment())
    assert run.finished and [step for step, _ in steps(run.path)] == list(range(1, 23))


def test_a_full_disk_is_said_where_the_tokenizer_is_written(experiment):
    """Whose error has no class of its own."""
    wanted = experiment("model.hidden_size=1", "model.embedding_size=1", "train.epochs=1")
    rows = [" ".join(f"word{4 * i + k}" for k in range(4)) for i in range(200)]
    lines = [f"{text} {text},{'good' if i % 2 else 'bad'}\n" for i, text in enumerate(rows)]
    Path(wanted.data.train).write_text("text,label\n" + "".join(lines))
    with pytest.raises(ResourceError, match="model: the model cannot be written: File too large"), filling() as fill:
        fit(wanted, listener=lambda event: fill(8000) if event["kind"] == "end" else None)


def test_a_full_disk_hides_no_other_error(tmp_path):
    with pytest.raises(KeyError), filling() as fill, Events(tmp_path / "a.jsonl", lambda event: None) as events:
        fill(10)
        events.write("step", step=1)
        raise KeyError
    with pytest.raises(ResourceError, match="the events cannot be written"), filling() as fill:
        with Events(tmp_path / "b.jsonl", lambda event: None) as events:
            fill(10)
            events.write("step", step=1)


def test_a_file_is_put_whole_on_the_disk_or_not_at_all(tmp_path, monkeypatch):
    file, synced, fsync = tmp_path / "run.json", list[tuple[str, bool]](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").read_text(), file.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    put_whole(file, "before")
    assert synced == [("before", False)]
    with pytest.raises(ResourceError, match=r"run\.json: cannot be written: File too large"), filling() as fill:
        fill(10)
        put_whole(file, "afterwards, and longer")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_said_and_the_same_command_goes_on(experiment, tmp_path, ray_here):
    """The file size limit of the worker stands for the disk: writing fails in the middle of a checkpoint."""
    changes = (*CHANGES, "model.hidden_size=64")
    unbroken = fit(experiment(*changes, f"output={tmp_path / 'unbroken'}")).path

    def fill(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] >= 20 and pid and saved() >= "step-00000014":  # not under way yet
            resource.prlimit(pid.pop(), resource.RLIMIT_FSIZE, (40_000, 40_000))
        if event["kind"] == "start":
            pid.append(event["pid"])

    def saved() -> str:
        return max((file.parent.name for file in tmp_path.glob("run/checkpoints/step-*/manifest.json")), default="")

    pid: list[int] = []
    on_ray = experiment(*changes, "train.workers=1", "train.retries=0")
    with pytest.raises(TrainingError, match="the last checkpoint stays: worker 0: .*be written: .*File too large"):
        fit(on_ray, listener=fill)
    assert Run(tmp_path / "run").info["state"] == "failed"

    starts: list[int] = []
    run = fit(on_ray, listener=lambda event: starts.append(event["step"]) if event["kind"] == "start" else None)
    assert starts[-1] >= 14
    assert sha256(run.path) == sha256(unbroken) and steps(run.path) == steps(unbroken)


@pytest.fixture
def full() -> Iterator[Cluster]:
    """A node of 100 MB of object store, and somebody who holds more than that."""
    with cluster(1) as it:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD], env=it.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            yield it
        finally:
            holder.kill()
            holder.communicate()


@pytest.mark.timeout(600)
def test_a_full_object_store_does_not_keep_a_run_from_training(full, experiment, tmp_path):
    (tmp_path / "e.yaml").write_text(experiment("train.workers=1").to_yaml())
    done = full.run([sys.executable, "-m", "bigmodel", "train", str(tmp_path / "e.yaml")], 300)
    assert done.returncode == 0, done.stdout
    assert Path(tmp_path / "run" / "report.json").exists()
