"""Preparation holds a part of the rows at a time, however many there are."""

import random
import subprocess
import sys
from pathlib import Path

MIB = 2**20
PROGRAM = """
import resource, sys
from bigmodel.data import arrow, cleaned, prepare
from bigmodel.experiment import Experiment

arrow.PART_BYTES = cleaned.CHARS = 2**20  # not 32 and 8 of them, so that a small file is many parts

def prepared(file):
    data = {"train": file, "text": "text", "label": "label", "cache": f"{file}.prepared"}
    asked = {"task": "text-classification", "model": {"type": "textcnn"}, "data": data, "output": f"{file}.run"}
    return prepare.prepare(Experiment.model_validate(asked)).counts["rows"]

prepared(sys.argv[1])  # what is loaded once, and what any file takes
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]),) * 2)
print(prepared(sys.argv[2]))
"""


def test_a_file_is_prepared_in_half_the_memory_that_it_would_fill(tmp_path: Path) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    write(small, 3 * MIB)
    num_rows = write(large, 24 * MIB)
    allowed = str(12 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small), str(large), allowed], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(num_rows)), done.stderr[-1000:]


def write(path: Path, num_bytes: int) -> int:
    """Rows of 6 kB in words that are soon all known. -> how many."""
    rng = random.Random(0)
    phrases = [" ".join(f"w{rng.randrange(3000)}" for _ in range(100)) for _ in range(1000)]
    num_rows = num_bytes // 6000
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for i in range(num_rows):
            file.write(f"{i} {' '.join(rng.choices(phrases, k=10))},{i % 2}\n")
    return num_rows
