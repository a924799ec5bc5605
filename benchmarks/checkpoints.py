"""How long training waits for a checkpoint of 100 MB: saved at once, and saved beside training.

    python benchmarks/checkpoints.py [--mb 100] [--rounds 7]

stall      what `save` takes of the training thread, besides
slower     what the steps of the training thread take longer while the writer works, summed until it is done
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.saver import Saver

TENSORS = 48  # in each group: about what a small encoder has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to save; else a temporary folder")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        compare(state(asked.mb), asked.rounds, folder)


def compare(tensors: dict[str, dict[str, Tensor]], rounds: int, folder: str) -> None:
    """Both ways in turn, and a line for each figure: median (least to most)."""
    at_once, beside = Checkpoints(f"{folder}/at-once"), Checkpoints(f"{folder}/beside")
    saver = Saver(beside, keep=2)
    usual = statistics.median(step() for _ in range(500))
    saver.reserve(tensors)
    synchronous, stalls, slower = [], [], []
    for number in range(1, rounds + 1):
        synchronous.append(timed(lambda: at_once.save(f"step-{number:08d}", tensors, {"step": number})))  # noqa: B023
        at_once.prune("step-", at_once.names("step-")[-2:])
        saver.wait()
        stalls.append(timed(lambda: saver.save(tensors, {"step": number})))  # noqa: B023
        steps = []
        while saver.busy:
            steps.append(step())
        slower.append(sum(steps) - usual * len(steps))
    print(f"synchronous {shown(synchronous)}")
    for name, times in (("stall", stalls), ("slower", slower)):
        share = statistics.median(times) / statistics.median(synchronous)
        print(f"{name:11} {shown(times)}, {share:.1%} of the synchronous time")


def state(size_mb: int) -> dict[str, dict[str, Tensor]]:
    """Weights, twice as much of an optimiser, and their average."""
    numel = size_mb * 1_000_000 // 4 // 4 // TENSORS
    groups = {"model": TENSORS, "optimizer": 2 * TENSORS, "average": TENSORS}
    return {group: {str(i): torch.randn(numel) for i in range(num)} for group, num in groups.items()}


def step() -> float:
    """Seconds of what training does: Python between products."""
    began = time.perf_counter()
    matrix = torch.ones(128, 128)
    for _ in range(20):
        matrix = (matrix @ matrix).clamp(max=1.0)
    return time.perf_counter() - began


def timed(work: object) -> float:
    assert callable(work)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def shown(times: list[float]) -> str:
    median, least, most = statistics.median(times), min(times), max(times)
    return f"{median * 1e3:7.1f} ms ({least * 1e3:.1f} to {most * 1e3:.1f})"


if __name__ == "__main__":
    main()
