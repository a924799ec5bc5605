"""Training killed at random moments, and begun again by the same command, against training that nobody killed.

    python benchmarks/kill.py [--task T] [--kills 20] [--folder F] [--seed 0]

Each task's default model, small, on the data of `bigmodel demo`, with dropout, shuffling, augmentation, accumulation,
averaged weights, where the task has them. The moment of a SIGKILL is uniformly random in what is left of the run, from
the command's first line on: before that nothing has been touched. Preparation is killed too. Whenever a run reaches its
end, its model directory, the tensors of its newest checkpoint and its events, without times, must have the SHA-256 of
the run that was left alone. Exit code 1 if any has not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bigmodel.data.files import digest
from bigmodel.demonstration import DEMOS, demo_of
from bigmodel.experiment import Experiment
from bigmodel.training.checkpoint import MANIFEST, Checkpoints
from bigmodel.training.events import read
from bigmodel.training.saver import STEP

COMMON = (
    "train.threads=1", "train.precision=fp32", "train.accumulate=2", "train.average=0.99", "train.seed=7",
    "train.checkpoint_every=10", "train.keep_every=50",
)  # fmt: skip
WORDS = ("data.augment.token_dropout=0.1", "data.augment.swap=0.1", "data.augment.mask=0.1")
PIXELS = tuple(
    f"data.augment.{name}" for name in ("rotation=10", "colour=0.2", "erasing=0.2", "mixup=0.3", "cutmix=0.3")
)
SMALL = {
    "text-classification": (*WORDS, "train.epochs=1", "train.validate_every=25", "model.embedding_size=32"),
    "tabular-classification": ("train.epochs=10", "train.validate_every=25", "data.split.test=0.1"),
    "tabular-regression": ("train.epochs=10", "train.validate_every=25", "data.split.test=0.1"),
    "image-classification": (*PIXELS, "train.epochs=2", "train.validate_every=25", "model.hidden_sizes=[8, 16, 16]"),
    "text-generation": (
        "data.split.valid=0.02", "data.split.test=0.02", "train.epochs=1", "train.validate_every=25",
        "model.hidden_size=32", "model.num_hidden_layers=2", "model.attention_dropout=0.1",
    ),
    "translation": (
        *WORDS, "train.epochs=1", "train.validate_every=25", "model.hidden_size=32", "model.num_hidden_layers=1",
    ),
}  # fmt: skip
"""What each task's default model is cut down to, so that a run takes seconds."""
TIMES = {"samples_per_s", "seconds"}
EACH = 10  # most kills of one run
LEAST_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(DEMOS), action="append", help="may be given again; else all")
    parser.add_argument("--kills", type=int, default=20, help="for each task")
    parser.add_argument("--folder", type=Path, help="where to work, and leave what differs; else a temporary folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="bigmodel-kill-"))
    outcomes = [endure(task, asked.kills, folder / task, asked.seed) for task in asked.task or DEMOS]
    if all(outcome.equal for outcome in outcomes) and not asked.folder:
        shutil.rmtree(folder)
    sys.exit(0 if all(outcome.equal for outcome in outcomes) else 1)


@dataclass
class Outcome:
    """Of one task: where the kills fell, the runs that reached their end, and what differed in them."""

    where: Counter[str]
    runs: int
    different: list[str]

    @property
    def equal(self) -> bool:
        return not self.different


def endure(task: str, num_kills: int, folder: Path, seed: int, changes: Sequence[str] = ()) -> Outcome:
    """Kill so many times, over as many complete runs as that takes; a line about it is printed."""
    command = write(task, folder, changes)
    alone = Life(command, folder / "alone")
    alone.wait()
    wanted = hashes(alone.output)
    rng, outcome = random.Random(f"{task} {seed}"), Outcome(Counter(), 0, [])
    lived, kills = 0.0, 0  # of the run that is not yet at its end
    while sum(outcome.where.values()) < num_kills or kills:
        output = folder / f"killed-{outcome.runs}"
        life = Life(command, output)
        if sum(outcome.where.values()) < num_kills and kills < EACH:
            moment = rng.uniform(0, max(alone.seconds - lived, LEAST_S))
            if life.lasts(moment):
                outcome.where[where := life.kill()] += 1
                lived, kills = lived + moment, kills + 1 if where != "test" else EACH  # nothing is left to be lost
                continue
        life.wait()
        found = hashes(output)
        outcome.different += [f"{output}: {name}" for name in wanted if found[name] != wanted[name]]
        outcome.runs, lived, kills = outcome.runs + 1, 0.0, 0
        if outcome.equal:
            shutil.rmtree(output.with_name(f"{output.name}.cache"))
            shutil.rmtree(output)
    where = ", ".join(f"{name} {count}" for name, count in outcome.where.most_common())
    verdict = "all equal" if outcome.equal else "DIFFERENT: " + "; ".join(outcome.different)
    kills = sum(outcome.where.values())
    print(f"{task}: {kills} kills ({where}), {outcome.runs} runs of {alone.seconds:.1f} s: {verdict}", flush=True)
    return outcome


def write(task: str, folder: Path, changes: Sequence[str]) -> list[str]:
    """The demonstration's data, and its experiment with the task's default model. -> the command"""
    demo = demo_of(task)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    demo.write(folder)
    file = folder / "experiment.yaml"
    tree = yaml.safe_load(demo.EXPERIMENT.format(yaml=file, folder=folder, data=folder, output=folder))
    tree["model"] = {}
    file.write_text(yaml.safe_dump(tree), "utf-8")
    return [sys.executable, "-m", "bigmodel", "train", str(file), *COMMON, *SMALL[task], *changes]


class Life:
    """One process of the command. Its seconds count from its first line on."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self.output, self.seconds = output, 0.0
        self._said = output.with_name(f"{output.name}.log")
        self._began_at = self._said.stat().st_size if self._said.exists() else 0
        with open(self._said, "ab") as log:
            places = [f"output={output}", f"data.cache={output}.cache"]
            self._process = subprocess.Popen([*command, *places], stdout=log, stderr=log, env=surroundings())
        while not self._lines() and self._process.poll() is None:
            time.sleep(0.005)
        self._began, self._began_on = time.perf_counter(), time.time()

    def lasts(self, seconds: float) -> bool:
        """Whether it still runs so long after its first line."""
        try:
            self._process.wait(max(0.0, self._began + seconds - time.perf_counter()))
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> str:
        """-> where it was, as far as its traces tell"""
        self._process.kill()
        self._process.wait()
        return self._where()

    def wait(self) -> None:
        """To its end, which must be a good one."""
        if code := self._process.wait():
            sys.exit(f"the command left with {code}: {self._said.read_text('utf-8')}")
        self.seconds = time.perf_counter() - self._began

    def _lines(self) -> str:
        return self._said.read_bytes()[self._began_at :].decode("utf-8", "replace")

    def _where(self) -> str:
        said = self._lines()
        if "testing on" in said:
            return "test"
        if "data prepared" not in said and "data found prepared" not in said:
            return "preparation"
        if "training " not in said:
            return "start"
        events = read(self.output / "events.jsonl")
        if any(not (save / MANIFEST).exists() for save in self.output.glob("checkpoints/*") if self._saw(save)):
            return "save"
        if events[-1]["kind"] == "end":
            return "model"
        every = Experiment.stored(self.output / "experiment.yaml").train.validate_every
        return "validation" if events[-1]["kind"] == "step" and events[-1]["step"] % every == 0 else "step"

    def _saw(self, folder: Path) -> bool:
        """Whether it was written in this life, not left by one before."""
        return folder.stat().st_mtime >= self._began_on


def surroundings() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def hashes(output: Path) -> dict[str, str]:
    """SHA-256 of all that must not depend on kills."""
    newest, damaged = Checkpoints(str(output / "checkpoints")).latest(STEP)
    assert newest is not None and not damaged
    manifest = json.loads((output / "checkpoints" / newest.name / MANIFEST).read_text("utf-8"))
    tensors = {file: entry for file, entry in manifest.items() if file != "state.json"}
    events = [event for event in read(output / "events.jsonl") if event["kind"] in ("step", "validation")]
    return {
        "model directory": sha256(
            [(path.name, digest(str(path))) for path in sorted(output.glob("model/*")) if same(path)]
        ),
        "newest checkpoint": sha256([newest.name, tensors, without_times(newest.state)]),
        "events": sha256([without_times(event) for event in events]),
    }


def same(path: Path) -> bool:
    """bigmodel.json tells where the run lies."""
    return path.is_file() and path.name != "bigmodel.json"


def without_times(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in TIMES | {"events"}}


def sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    main()
