"""Workers, Ray Train's controller, nodes killed on a cluster of this machine: seconds to the next step, and the cost.

    PYTHONPATH=.:tests python benchmarks/faults.py [--faults worker controller node each] [--every 60] [--epochs 2000]

Two nodes of one CPU each, an LSTM on generated reviews, `train.exact`, a checkpoint every 200 steps. One run that
nothing befalls; then one for each fault, which it meets every so many seconds; `each` is one of the others in turn. A
killed node loses all that runs there and is replaced at once, by one that has imported nothing. For each: the seconds
from the kill to the next step and how they part, the steps done again, the time of the run over that of the run alone,
and whether the weights have its SHA-256. Exit code 1 if any have not.

The parts: until the process that trains is forked (the loss is noticed, room is found, Ray's workers start, and a new
node imports), until that process has written its `start` (the workers meet, the checkpoint is read), and until its
first step. `cpu` are the seconds of processor time that it had used by then.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from cluster import Cluster, Process, cluster, end
from conftest import write_reviews
from job import Job, named

from bigmodel.data.files import digest
from bigmodel.experiment import Experiment, change

TICKS = os.sysconf("SC_CLK_TCK")
WORKERS = {"worker": "2", "controller": "2", "node": "1..2", "each": "1..2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=sorted(WORKERS), default=["worker", "controller", "node"])
    parser.add_argument("--every", type=float, default=60.0, help="seconds of training between two of them")
    parser.add_argument("--epochs", type=int, default=2000, help="of 21 steps each")
    parser.add_argument("--folder", type=Path, help="where to work, and leave the runs; else a temporary folder")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="bigmodel-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    write_reviews(folder / "reviews.csv", 400)
    with cluster(2) as it:
        alone = endure(it, experiment(folder, "alone", "2", asked.epochs), (), asked.every)
        print(f"alone: {alone.seconds:.1f} s  load {os.getloadavg()[0]:.1f}", flush=True)
        equal = True
        for fault in asked.faults:
            found = endure(it, experiment(folder, fault, WORKERS[fault], asked.epochs), FAULTS[fault], asked.every)
            equal &= found.weights == alone.weights
            verdict = "equal" if found.weights == alone.weights else "DIFFERENT"
            print(
                f"{fault}: {len(found.gaps)} in {found.seconds:.1f} s, {found.seconds / alone.seconds:.2f} of the time "
                f"alone, weights {verdict}  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            for gap in found.gaps:
                print(f"  {gap}", flush=True)
    if equal and not asked.folder:
        shutil.rmtree(folder)
    sys.exit(0 if equal else 1)


def experiment(folder: Path, name: str, workers: str, epochs: int) -> Experiment:
    return change(
        {
            "task": "text-classification",
            "data": {"train": str(folder / "reviews.csv"), "text": "text", "label": "label"},
            "model": {"type": "lstm", "hidden_size": 64, "embedding_size": 64},
            "train": {"batch_size": 16, "exact": True, "checkpoint_every": 200, "retries": 1000},
            "output": str(folder / name),
        },
        (f"train.workers={workers}", f"train.epochs={epochs}", "train.validate_every=2000"),
    )


@dataclass
class Outcome:
    seconds: float
    """From the first step to the end of the command."""
    gaps: list[str]
    weights: str


def kill_worker(it: Cluster, start: dict[str, Any]) -> None:
    os.kill(start["pid"], 9)


def kill_controller(it: Cluster, start: dict[str, Any]) -> None:
    for controller in named(it, "TrainController"):
        end(controller)


def kill_node(it: Cluster, start: dict[str, Any]) -> None:
    it.lose(1)
    it.join()


Fault = Callable[[Cluster, dict[str, Any]], None]
KINDS: dict[str, Fault] = {"worker": kill_worker, "controller": kill_controller, "node": kill_node}
FAULTS = {kind: [fault] for kind, fault in KINDS.items()} | {"each": list(KINDS.values())}


def endure(it: Cluster, experiment: Experiment, faults: Sequence[Fault], every: float) -> Outcome:
    """The experiment from its beginning to its end, a fault coming so long after each first step."""
    coming = cycle(faults)
    shutil.rmtree(experiment.output_path, ignore_errors=True)
    job, gaps = Job(it, experiment), []
    start = job.wait_for_step(1)
    began = last = time.monotonic()
    while job.process.poll() is None:
        time.sleep(0.1)
        if faults and time.monotonic() - last >= every:
            if left(job, start) <= 300:
                faults = ()
                continue
            before = time.time()
            next(coming)(it, start)
            start = job.wait_for_another(start)
            last = time.monotonic()
            gaps.append(told(job, start, before, time.time()))
    job.to_its_end()
    weights = digest(str(experiment.output_path / "model" / "model.safetensors"))
    return Outcome(time.monotonic() - began, gaps, str(weights))


def left(job: Job, start: dict[str, Any]) -> int:
    """Steps. One that is lost as training ends has nobody to wait for."""
    return int(start["total_steps"]) - job.steps()[-1]


def told(job: Job, start: dict[str, Any], killed: float, stepped: float) -> str:
    try:
        fields = Path(f"/proc/{start['pid']}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # the run has ended since
        return f"{stepped - killed:.1f} s to the next step; {start['again']} steps done again"
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    up = float(Path("/proc/uptime").read_text().split()[0])
    process = time.time() - up + Process(start["pid"], int(fields[19])).started / TICKS
    wrote = start["time"]
    return (
        f"{stepped - killed:.1f} s to the next step: {process - killed:.1f} until the process that trains, "
        f"{wrote - process:.1f} until it begins, {stepped - wrote:.1f} until its first step; cpu {cpu:.1f} s; "
        f"{start['again']} steps done again"
    )


if __name__ == "__main__":
    main()
