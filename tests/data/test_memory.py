"""Preparation and test hold a part of the rows at a time, however many there are."""

import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MIB = 2**20
PROGRAM = """
import resource, sys
from pathlib import Path
from bigmodel import pipeline
from bigmodel.data import arrow, cleaned, prepare
from bigmodel.evaluation import evaluate
from bigmodel.experiment import Experiment
from bigmodel.tasks import chosen, columns
from bigmodel.training.fit import fit

# Small numbers in place of large ones, so that a small file is many parts.
arrow.PART_BYTES = cleaned.CHARS = prepare.ENCODED_BYTES = chosen.CHARS = 2**20
columns.CELLS, evaluate.AT_ONCE = 20_000, 2048

what, task, small, large, allowed = sys.argv[1:]
data = {
    "text-classification": {"text": "text", "label": "label"},
    "tabular-classification": {"label": "label"},
    "tabular-regression": {"label": "a", "table": {"types": {"label": "ignore"}}},
    "image-classification": {"images": {"size": 16}},
}
model = {"type": "textcnn"} if task[:4] == "text" else {"type": "tabular_mlp" if task[:3] == "tab" else "cnn"}

def experiment(file):
    read = data[task] | {"train": file, "cache": f"{file}.prepared"}
    train = {"epochs": 1, "batch_size": 256}
    asked = {"task": task, "model": model, "data": read, "train": train, "output": f"{file}.run"}
    return Experiment.model_validate(asked)

def prepared(file):
    return prepare.prepare(experiment(file)).counts["rows"]

def tested(file):
    return pipeline.evaluate(Path(f"{small}.run/model"), [file], Path(f"{file}.json"))["rows"]

if what == "tested":
    fit(experiment(small))
run = {"prepared": prepared, "tested": tested}[what]
run(small)  # what is loaded once, and what any file takes
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + int(allowed),) * 2)
print(run(large))
"""


def texts(path: Path, num_bytes: int) -> int:
    """Rows of 6 kB in words that are soon all known. -> how many."""
    rng = random.Random(0)
    phrases = [" ".join(f"w{rng.randrange(3000)}" for _ in range(100)) for _ in range(1000)]
    num_rows = num_bytes // 6000
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for i in range(num_rows):
            file.write(f"{i} {' '.join(rng.choices(phrases, k=10))},{i % 2}\n")
    return num_rows


def cells(path: Path, num_bytes: int) -> int:
    """Rows of 100 bytes: numbers, words, and some that are missing."""
    rng = random.Random(0)
    num_rows = num_bytes // 100
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join([*"abcdefghi", "word", "label"]) + "\n")
        for i in range(num_rows):
            numbers = [f"{rng.gauss(0, 1):.6f}" if rng.random() < 0.98 else "" for _ in range(8)]
            file.write(f"{i},{','.join(numbers)},w{rng.randrange(20)},{'xy'[i % 2]}\n")
    return num_rows


def images(path: Path, num_bytes: int) -> int:
    """Noise that no compression makes smaller, 50 kB a file."""
    rng = np.random.default_rng(0)
    num_rows = num_bytes // (128 * 128 * 3)
    for i in range(num_rows):
        file, out = path / "ab"[i % 2] / f"{i}.png", io.BytesIO()
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(out, "PNG", compress_level=0)
        file.write_bytes(out.getvalue())
    return num_rows


@pytest.mark.parametrize(
    ("what", "task", "write", "size", "allowed"),
    [
        ("prepared", "text-classification", texts, 24, 12),
        ("prepared", "tabular-classification", cells, 6, 20),
        ("prepared", "image-classification", images, 48, 24),
        ("tested", "tabular-classification", cells, 6, 40),
        ("tested", "image-classification", images, 48, 32),
    ],
)
def test_a_source_is_prepared_and_tested_in_less_memory_than_it_would_fill(
    what: str, task: str, write: Callable[[Path, int], int], size: int, allowed: int, tmp_path: Path
) -> None:
    """A table as Python has it takes thirty times as much as its file; a test's intervals take some megabytes."""
    write(tmp_path / "small.csv", size // 6 * MIB)
    num_rows = write(tmp_path / "large.csv", size * MIB)
    command = [sys.executable, "-c", PROGRAM, what, task, tmp_path / "small.csv", tmp_path / "large.csv"]
    done = subprocess.run([*command, str(allowed * MIB)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [str(num_rows)]), done.stderr[-1000:]
