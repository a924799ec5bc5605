"""Preparing and training from a file larger than the memory allowed: what stays resident, and how soon a killed run
goes on.

`bigmodel train` reads a file of generated texts, a generated table or a folder of generated images in a process that
may allocate a quarter of its size (RLIMIT_DATA; mapped files are the kernel's to keep or drop). Mid-epoch it is killed,
and the same command started again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from large_data import write_images, write_table, write_texts

MIB = 2**20
BAR_S = 2.0  # from opening the data to the first new step
SAMPLE_S = 1.0
# Arrow's own allocator reserves what it does not use; glibc's keeps large freed blocks once it has seen some.
ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": str(MIB)}
PHASES = ("reading and cleaning", "learning labels and vocabulary", "encoding", "validation:", "testing", "training")
Write = Callable[[Path, int], None]
TASKS: dict[
    str, tuple[str, Write, dict[str, Any], dict[str, Any]]
] = {  # what is written, by whom; data and model of it
    "text-classification": ("reviews.csv", write_texts, {"text": "text", "label": "label"}, {"type": "lstm"}),
    "tabular-classification": (
        "table.csv",
        write_table,
        {"label": "dear", "table": {"types": {"price": "ignore"}}},
        {"type": "tabular_mlp"},
    ),
    "tabular-regression": (
        "table.csv",
        write_table,
        {"label": "price", "table": {"types": {"dear": "ignore"}}},
        {"type": "tabular_mlp"},
    ),
    "image-classification": (
        "images",
        write_images,
        {"images": {"size": 32}},
        {"type": "cnn", "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
}
OPENED, STARTED, STEP = "data found prepared", "training ", "step "  # how the lines begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="text-classification", choices=TASKS)
    parser.add_argument("--gigabytes", type=float, default=4.3, help="size of the file, or of all images")
    parser.add_argument("--limit", type=int, default=1024, help="MiB the process may allocate")
    parser.add_argument("--model", default=None, help="its type; an LSTM, a perceptron or a CNN if not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training before it is killed, and after")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-texts", type=int, default=1_000_000, help="that the vocabulary is learnt from")
    parser.add_argument("--finish", action="store_true", help="then train to the end of the epoch, and test")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; needs five times --gigabytes")
    parser.add_argument("--keep", action="store_true", help="leave the files; a second call uses them")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="beyond-memory-"))
    try:
        measure(options, folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder)


def measure(options: argparse.Namespace, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name, write, *_ = TASKS[options.task]
    source = folder / name
    if not source.exists():
        write(source, int(options.gigabytes * 1e9))
    size = size_of(source)
    print(f"{size / 1e9:.2f} GB, {size / options.limit / MIB:.1f} times the {options.limit} MiB allowed", flush=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = train(folder, options)

    first = Watched(command, options.limit)
    began = first.when(STEP)
    time.sleep(options.seconds)
    first.kill()
    imports = statistics.median(importing() for _ in range(3))
    again = Watched(command, options.limit)
    opened, started, stepped = again.when(OPENED), again.when(STARTED), again.when(STEP)
    if options.finish:
        again.wait()
    else:
        time.sleep(options.seconds)
        again.kill()

    prepared = next((seconds for seconds, line in first.said if line.startswith("data prepared")), None)
    if prepared is not None:
        print(
            f"prepared in {prepared:.0f} s, {size / prepared / 1e6:.1f} MB/s; first step {began - prepared:.2f} s later"
        )
    print("\n".join(table({**first.held, "training, continued": again.held.get("training", [])})))
    went_on = next(
        (line for _, line in again.said if line.startswith("continuing")), "it did not go on, but began anew"
    )
    missed = "" if stepped - imports <= BAR_S else ", MISSED"
    print(
        f"{went_on}: first new step {stepped:.2f} s after the process began, of which imports take {imports:.2f} s; "
        f"without them {stepped - imports:.2f} s (bar {BAR_S:g} s{missed})\n"
        f"  data found at {opened:.2f} s, checkpoint loaded at {started:.2f} s, first new step at {stepped:.2f} s"
    )


def train(folder: Path, options: argparse.Namespace) -> list[str]:
    name, _, data, model = TASKS[options.task]
    data = {"train": str(folder / name), **data}
    if "text" in data:
        data["tokenizer"] = {"max_texts": options.max_texts}
    experiment: dict[str, Any] = {
        "task": options.task,
        "data": data,
        "model": {"type": options.model} if options.model else model,
        "train": {
            "epochs": 1,
            "batch_size": options.batch_size,
            "precision": "fp32",
            "checkpoint_every": 20,
            "threads": 1,
        },
        "output": str(folder / "run"),
    }
    file = folder / "experiment.yaml"
    file.write_text(json.dumps(experiment), "utf-8")  # JSON is YAML
    return [sys.executable, "-m", "bigmodel", "train", str(file)]


class Watched:
    """A process under a limit of memory: what it says, when, and what it holds."""

    def __init__(self, command: list[str], limit: int) -> None:
        self.said: list[tuple[float, str]] = []  # seconds since its start, line
        self.held: dict[str, list[tuple[float, float, float]]] = {}  # phase -> seconds, MB allocated, MB resident
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | ALLOCATOR,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit * MIB, limit * MIB)),
        )
        for follow in (self._listen, self._look):
            threading.Thread(target=follow, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None, "it was opened with a pipe"
        for line in self._process.stdout:
            self.said.append((time.perf_counter() - self._began, line.rstrip()))
            print(f"  {self.said[-1][0]:8.2f} s  {line.rstrip()}", flush=True)

    def _look(self) -> None:
        """Each second: anonymous memory, which is the process's own, and all that is resident, mapped files too."""
        status = Path(f"/proc/{self._process.pid}/status")
        while self._process.poll() is None:
            try:
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                own, resident = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "VmRSS"))
            except (OSError, KeyError):
                return  # it has ended
            phase = next((phase for _, line in reversed(self.said) for phase in PHASES if phase in line), "starting")
            self.held.setdefault(phase, []).append((time.perf_counter() - self._began, own, resident))
            time.sleep(SAMPLE_S)

    def when(self, words: str) -> float:
        """Seconds from the process's start until it says a line that begins so."""
        while True:
            ended = self._process.poll() is not None
            if found := next((seconds for seconds, line in self.said if line.startswith(words)), None):
                return found
            if ended:
                print("\n".join(table(self.held)))
                sys.exit(f"it ended before it said '{words}': " + " / ".join(line for _, line in self.said[-3:]))
            time.sleep(0.01)

    def wait(self) -> None:
        if code := self._process.wait():
            sys.exit(f"it ended with exit code {code}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def table(held: dict[str, list[tuple[float, float, float]]]) -> Iterator[str]:
    columns = ("phase", "seconds", "own MB: first tenth", "last tenth", "most", "resident MB, most")
    yield "{:<32}{:>9}{:>21}{:>12}{:>7}{:>19}".format(*columns)
    for phase, looks in held.items():
        seconds, own, resident = zip(*looks, strict=True)
        tenth = max(1, len(own) // 10)
        first, last = (statistics.median(part) for part in (own[:tenth], own[-tenth:]))
        numbers = seconds[-1] - seconds[0], first, last, max(own), max(resident)
        yield "{:<32}{:9.0f}{:21.0f}{:12.0f}{:7.0f}{:19.0f}".format(phase, *numbers)


def importing() -> float:
    """Seconds that a process takes to start and to import what training needs."""
    command = [sys.executable, "-c", "import bigmodel.pipeline, bigmodel.training.fit, transformers.modeling_utils"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def size_of(source: Path) -> int:
    files = source.rglob("*") if source.is_dir() else [source]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
