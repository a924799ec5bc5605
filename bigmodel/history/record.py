"""A run as its folder tells it, while it runs or afterwards. Nothing is written; what is missing or damaged is left
out, or said."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bigmodel.data.files import digest
from bigmodel.errors import ConfigError
from bigmodel.evaluation.layout import near
from bigmodel.training.events import Event, number, parsed, seconds_of
from bigmodel.training.run import is_held

GOALS = {
    "text-classification": "accuracy",
    "image-classification": "accuracy",
    "translation": "bleu",
    "text-generation": "loss",
    "tabular-classification": "accuracy",
    "tabular-regression": "rmse",
}
"""The metric of each task's goal; to ask the task itself takes seconds of imports."""
DEPTH = 3  # folders below the one that is searched
WITHIN = {"checkpoints", "model", "ray"}  # folders of a run that hold no runs
RECENT = 100  # steps that tell the speed
QUIET_S = 120.0  # another machine's run that wrote nothing for so long is taken for dead where its lock is free
STEP = b'{"kind": "step"'


class RunRecord:
    """The folder of one run. `damaged` where run.json cannot be read, `unreadable` counts such lines of the events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        info = read_json(path / "run.json")
        self.damaged = info is None
        self.info: dict[str, Any] = info or {}
        self.unreadable = 0

    @property
    def name(self) -> str:
        """The folder as seen from here."""
        return near(str(self.path))

    # ---- what was asked

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """experiment.yaml as it stands, whatever version wrote it; {} if there is none that can be read."""
        try:
            text = (self.path / "experiment.yaml").read_text("utf-8")
            tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (OSError, ValueError, yaml.YAMLError):
            tree = None
        return tree if isinstance(tree, dict) else section(self.stored, "experiment")

    @property
    def task(self) -> str:
        return str(self.experiment.get("task", ""))

    @property
    def model(self) -> str:
        """Its type, or the checkpoint it began as."""
        model = section(self.experiment, "model")
        return str(model.get("type") or model.get("pretrained") or "")

    # ---- what happened

    @cached_property
    def _lines(self) -> tuple[list[Event], list[bytes]]:
        """events.jsonl: all events but the steps, and the steps' lines. One that is still being written is left out."""
        others, steps = list[Event](), list[bytes]()
        try:
            lines = (self.path / "events.jsonl").read_bytes().splitlines(keepends=True)
        except OSError:
            lines = []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            if line.startswith(STEP):
                steps.append(line)
            elif (event := parsed(line)) is not None:
                others.append(event)
            else:
                self.unreadable += 1
        return others, steps

    def of_kind(self, *kinds: str) -> list[Event]:
        """The events of these kinds, in order; steps are not among them."""
        return [event for event in self._lines[0] if event["kind"] in kinds]

    @cached_property
    def steps(self) -> list[Event]:
        """A line each that can be read, in order."""
        found = [step for line in self._lines[1] if (step := parsed(line)) and number(step, "step") is not None]
        self.unreadable += len(self._lines[1]) - len(found)
        return found

    @cached_property
    def start(self) -> Event:
        """The newest `start`; {} before there is one."""
        return next(reversed(self.of_kind("start")), {})

    @cached_property
    def state(self) -> str:
        """As run.json says, unless the process that wrote it is gone, or another has taken the run up."""
        if self.damaged:
            return "damaged"
        told = str(self.info.get("state", "unknown"))
        if told == "running":
            return "running" if self._lives() else "interrupted (killed)"
        return "starting" if told in ("interrupted", "failed") and is_held(self.path) else told

    def _lives(self) -> bool:
        """Whether somebody holds its lock. Some shared disks keep the locks of each machine apart: there it also counts
        that another machine has written of late."""
        if is_held(self.path):
            return True
        elsewhere = self.start.get("node", platform.node()) != platform.node()
        return elsewhere and time.time() - (self._written("events.jsonl") or 0) < QUIET_S

    def _written(self, name: str) -> float | None:
        """When the file was last changed, in seconds since 1970."""
        try:
            return (self.path / name).stat().st_mtime
        except OSError:
            return None

    @property
    def is_active(self) -> bool:
        return self.state in ("running", "starting")

    # ---- how far it is

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        for line in reversed(self._lines[1]):
            if (event := parsed(line)) and (step := number(event, "step")) is not None:
                return int(step)
        return int(number(section(self.info, "progress"), "step") or number(self.start, "step") or 0)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run; 0 where that is not known."""
        return int(number(self.start, "total_steps") or 0)

    @cached_property
    def seconds(self) -> float:
        """Spent in training steps."""
        told = number(section(self.info, "progress"), "seconds")
        return told if told is not None else sum(seconds_of(self.steps))

    @property
    def samples_per_s(self) -> float:
        """Of the last steps; 0 before there are any."""
        last = self.steps[-RECENT:]
        seconds = sum(seconds_of(last))
        return sum(number(step, "samples") or 0 for step in last) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The steps to come as quick as the last ones, the validations as those so far. None where nothing tells."""
        quick = list(seconds_of(self.steps[-RECENT:]))
        if not quick or not self.total_steps:
            return None
        every = number(section(self.experiment, "train"), "validate_every") or number(self.start, "steps_per_epoch")
        taken = [seconds for event in self.of_kind("validation") if (seconds := number(event, "seconds")) is not None]
        to_come = self.total_steps // every - self.step // every if every else 0
        validating = to_come * statistics.mean(taken) if taken else 0
        left = (self.total_steps - self.step) * statistics.mean(quick) + validating
        return left if math.isfinite(left) else None

    @property
    def best(self) -> tuple[str, float, int] | None:
        """(metric, value, step) of the best validation so far."""
        metric, progress = GOALS.get(self.task, "best"), section(self.info, "progress")
        value, step = number(progress, "best_value"), number(progress, "best_step")
        if value is None:
            found = next((event for event in reversed(self.of_kind("validation")) if event.get("best") is True), {})
            value, step = number(found, metric), number(found, "step")
        return None if value is None else (metric, value, int(step or 0))

    @property
    def started(self) -> datetime | None:
        try:
            return datetime.fromisoformat(str(self.info["started"])).astimezone()
        except (KeyError, ValueError, OverflowError):
            return None

    @property
    def age(self) -> float:
        """When it began, else when run.json was written, in seconds since 1970: what runs are sorted by."""
        return self.started.timestamp() if self.started else self._written("run.json") or 0.0

    # ---- what came out

    @cached_property
    def counts(self) -> dict[str, Any]:
        """Of the rows, as preparation counted them; {} where the prepared data is gone."""
        prepared = self.info.get("prepared")
        return section(read_json(Path(prepared) / "prepared.json") or {}, "counts") if isinstance(prepared, str) else {}

    @cached_property
    def stored(self) -> dict[str, Any]:
        """model/bigmodel.json; {} where there is none."""
        return read_json(self.path / "model" / "bigmodel.json") or {}

    @cached_property
    def report(self) -> dict[str, Any]:
        """report.json; {} where there is none."""
        return read_json(self.path / "report.json") or {}

    @property
    def versions(self) -> dict[str, Any]:
        return section(self.stored, "versions") or section(self.info, "versions")

    @property
    def decisions(self) -> dict[str, Any]:
        """Choices made on the way; the precision also where it was asked for."""
        precision = section(self.info, "progress").get("precision")
        return ({"precision": precision} if precision else {}) | section(self.info, "decisions")

    @cached_property
    def weights(self) -> dict[str, Any]:
        """File -> SHA-256 of the model directory's weights, as they were saved. {} before there are any."""
        return section(self.stored, "weights") or self._weights_there

    @cached_property
    def _weights_there(self) -> dict[str, str]:
        """The same of the files as they are."""
        return {file.name: digest(str(file)) for file in sorted((self.path / "model").glob("*.safetensors"))}

    @property
    def damage(self) -> list[str]:
        """In what the files of weights are not what was saved, a line each."""
        there = self._weights_there
        return [
            f"{self.name}/model/{name} {'is not what training saved' if name in there else 'is missing'}"
            for name, saved in self.weights.items()
            if there.get(name) != saved
        ]


def read_json(file: Path) -> dict[str, Any] | None:
    """None where there is no such file, or it holds something else."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def section(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key; {} where there is none."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


# ---- which folders are runs


def find(folder: Path) -> list[Path]:
    """The folders from this one on, up to three below it, that hold a run.json."""
    found = []
    for at, folders, files in os.walk(folder):
        depth = len(Path(at).relative_to(folder).parts)
        is_run = "run.json" in files
        if is_run:
            found.append(Path(at))
        down = [name for name in sorted(folders) if not name.startswith(".") and not (is_run and name in WITHIN)]
        folders[:] = down if depth < DEPTH else []
    return found


def open_run(path: Path) -> RunRecord:
    """The run of a folder, or of the model folder in it. ConfigError if there is none, with what there is."""
    for folder in (path, path.absolute().parent) if path.absolute().name == "model" else (path,):
        if (folder / "run.json").is_file():
            return RunRecord(Path(os.path.abspath(folder)))
    if path.is_file():
        raise ConfigError(f"{path}: this is a file. Name the folder of a run, which holds run.json")
    if not path.exists():
        raise ConfigError(f"{path}: no such folder. {_there(path.absolute().parent)}")
    raise ConfigError(f"{path}: not a run, which holds run.json. {_there(path)}")


def _there(folder: Path) -> str:
    """What stands in a folder, in a sentence."""
    if not folder.is_dir():
        return f"The folder {folder} does not exist either."
    if runs := [os.path.relpath(run) for run in find(folder) if run != folder][:10]:
        return f"The runs below {os.path.relpath(folder)}: {', '.join(runs)}"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))[:10]
    return f"{os.path.relpath(folder)} holds {', '.join(names)}" if names else f"{os.path.relpath(folder)} is empty"
