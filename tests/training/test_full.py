"""No room any more: on the disk while workers of Ray train; in Ray's object store, which training does not need."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, cluster
from training.test_interruption import CHANGES, sha256, steps

from bigmodel.errors import TrainingError
from bigmodel.training.fit import fit
from bigmodel.training.run import Run

HOLD = """
import numpy, ray, time
ray.init(log_to_driver=False)
held = [ray.put(numpy.ones(45_000_000, numpy.uint8)) for _ in range(4)]
print("held", flush=True)
time.sleep(600)
"""


def test_a_full_disk_is_said_and_the_same_command_goes_on(experiment, tmp_path, ray_here):
    """The file size limit of the worker stands for the disk: writing fails in the middle of a checkpoint."""
    changes = (*CHANGES, "model.hidden_size=64")
    unbroken = fit(experiment(*changes, f"output={tmp_path / 'unbroken'}")).path

    def fill(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] >= 20 and pid:
            resource.prlimit(pid.pop(), resource.RLIMIT_FSIZE, (40_000, 40_000))
        if event["kind"] == "start":
            pid.append(event["pid"])

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
