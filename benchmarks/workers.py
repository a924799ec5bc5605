"""What several workers are worth, and what exactness costs: one worker of one thread against two, fast and exact.

    python benchmarks/workers.py                     the encoder, reviews of hotel length
    python benchmarks/workers.py --type lstm
    python benchmarks/workers.py --batch 128 --micro 32     everybody computes 32 rows at a time

All train the same model on the same global batches, each worker in a process of its own with one thread, in fp32; gloo
adds up the gradients, as on Ray Train. With --micro each accumulates micro-batches of at most so many rows, but for
"one worker, whole" and the exact ones; without it one worker computes a batch at once and two half of one each,
which may be faster where a whole one no longer fits into a cache. "two apart" are two runs of half the batch that know
nothing of each other: what the machine's cores are worth together. Rounds are interleaved. The speed is that between
step 10 and the last one, by the clock of the first worker.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from reviews import lengthen, reviews, write

from bigmodel.data.prepare import prepare
from bigmodel.experiment import Experiment
from bigmodel.imports import lighten
from bigmodel.training import loop
from bigmodel.training.trainer import Worker

WARM = 10
NO_SPLIT = {"valid": 0, "test": 0}
WHOLE = "one worker, whole"
CONTENDERS = {
    "one worker": (1, {}),
    WHOLE: (1, {"accumulate": 1}),
    "two workers": (2, {}),
    "two apart": (2, {}),
    "one worker, exact": (1, {"exact": True}),
    "two workers, exact": (2, {"exact": True}),
}
APART = "two apart"


def work(number: int, apart: bool, world: int, folder: str, tree: dict[str, Any], prepared: Path) -> None:
    experiment = Experiment.model_validate(tree)
    rank = number
    if apart:
        rank, world, folder = 0, 1, f"{folder}/{number}"
    times: dict[int, float] = {}

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            times[event["step"]] = time.perf_counter()

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    loop.train(experiment, prepared, Path(folder), Worker(rank, world), listen)
    dist.destroy_process_group()
    if rank == 0:
        seconds = max(times.values()) - times[WARM]
        Path(folder, "speed").write_text(str((len(times) - WARM) * experiment.train.batch_size / seconds))


def speed(name: str, experiment: Experiment, prepared: Path, micro: int) -> float:
    """Samples a second of one contender."""
    world, changes = CONTENDERS[name]
    apart, part = name == APART, experiment.train.batch_size // world
    half = {"batch_size": part} if apart else {}
    train = experiment.train.model_copy(update={"accumulate": -(-part // micro)} | changes | half)
    tree = experiment.model_copy(update={"train": train}).model_dump(mode="json")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(world):
            Path(folder, str(number)).mkdir()
        torch.multiprocessing.start_processes(
            work, (apart, world, folder, tree, prepared), world, start_method="forkserver"
        )
        return sum(float(file.read_text()) for file in Path(folder).rglob("speed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="transformer", help="of the model (default transformer, the encoder)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro", type=int, help="rows of a micro-batch (default: all that a worker has of a batch)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS))
    asked = parser.parse_args()
    contenders = asked.contenders or [name for name in CONTENDERS if asked.micro or name != WHOLE]
    lighten()  # the processes of the fork server inherit it, as `bigmodel train` has it
    multiprocessing.get_context("forkserver").set_forkserver_preload(["bigmodel.training.loop"])
    with tempfile.TemporaryDirectory() as folder:
        rows, _, what = reviews(0)
        count = asked.steps * asked.batch
        write(Path(folder, "rows.csv"), lengthen(rows, count, 0))
        experiment = Experiment.model_validate(
            {
                "task": "text-classification",
                "data": {"train": f"{folder}/rows.csv", "text": "text", "label": "label", "split": NO_SPLIT},
                "model": {"type": asked.type},
                "train": {"epochs": 1, "batch_size": asked.batch, "threads": 1, "precision": "fp32"},
                "output": f"{folder}/run",
            }
        )
        prepared = prepare(experiment).path
        print(f"{what}, strung together to {count:,} of hotel length; {asked.type}, batches of {asked.batch}")
        print(f"micro-batches of {asked.micro} rows" if asked.micro else "each worker's part of a batch at once")
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; one thread a worker, fp32", flush=True
        )
        speeds: dict[str, list[float]] = {name: [] for name in ["one worker", *contenders]}
        for number in range(asked.rounds):
            for name, found in speeds.items():
                found.append(speed(name, experiment, prepared, asked.micro or asked.batch))
                print(f"round {number + 1}  {name:18}  {found[-1]:8,.1f} samples/s", flush=True)
    one = speeds["one worker"]
    for name, found in speeds.items():
        ratios = [each / alone for each, alone in zip(found, one, strict=True)]
        print(f"{name:18}  {statistics.median(found):8,.1f} samples/s  {statistics.median(ratios):.2f}x of one worker")


if __name__ == "__main__":
    main()
