"""How many images a second are prepared: MNIST's PNG files in an archive, read, decoded, checked, split, encoded.
tasks.py calls it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import task_data

BAR = 729  # images/s: three times the 243 that Ludwig has published


def measured(folder: Path, rounds: int, threads: int) -> str:
    archive = task_data.real("img_mnist_png", "mnist_png.tar.xz")
    if archive is None:
        sys.exit("MNIST is not here: name the folder with img_mnist_png/mnist_png.tar.xz in BIGMODEL_DATA")
    limits = {"OMP_NUM_THREADS": str(threads)}
    found = []
    for number in range(rounds):
        command = [sys.executable, __file__, str(archive), str(folder / f"{number}")]
        found.append(json.loads(subprocess.check_output(command, text=True, env=os.environ | limits)))
    rates = [images / seconds for images, seconds in found]
    rate = statistics.median(rates)
    return (
        f"{found[0][0]:,} images prepared, {rate:,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}, {rounds} "
        f"rounds; bar {BAR}{'' if rate >= BAR else ', MISSED'})"
    )


def prepared(archive: Path, folder: Path) -> tuple[int, float]:
    """Images and seconds."""
    from bigmodel.data.prepare import prepare
    from bigmodel.experiment import Experiment

    data = {"train": f"{archive}/train", "test": f"{archive}/test", "split": {"valid": 0.05}, "cache": str(folder)}
    experiment = Experiment.model_validate({"task": "image-classification", "data": data, "model": {"type": "cnn"}})
    began = time.perf_counter()
    counts = prepare(experiment).counts
    return counts["rows"], time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(prepared(Path(sys.argv[1]), Path(sys.argv[2]))))
