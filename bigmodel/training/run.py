"""A run is a folder: what was asked, how far it is, what happened, what came out.

experiment.yaml   the experiment as it was started         events.jsonl   a line a step, validation, decision
run.json          state, decisions, versions, times        checkpoints/   to continue from
model/            the best model, for everyone             report.json    its test
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from bigmodel.errors import CheckpointError, ConfigError, ResourceError, missing
from bigmodel.experiment import Experiment, differences
from bigmodel.training.events import read, seconds_of
from bigmodel.training.setback import SETBACK

STOP = "stop"
"""A file of this name asks the run to save and end."""

OWN = ("report.json", "model", "checkpoints", "events.jsonl", SETBACK, "experiment.yaml", "run.json")
"""What a run makes, in the order in which it is deleted: last what tells that the folder is a run's."""
QUARANTINE = "quarantine.jsonl"

# What may change between a run and its continuation: who does the work, not what the work is.
EXECUTION: Any = {
    "output": True,
    "tune": True,
    "train": {"workers", "retries", "timeout", "keep", "keep_every", "checkpoint_every"},
    "data": {"cache", "distributed"},
}


class Run:
    """The folder of one experiment. `info` is run.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.checkpoints = path / "model", path / "checkpoints"
        self.events, self.report = path / "events.jsonl", path / "report.json"
        self.info: dict[str, Any] = self._read()
        self._lock: IO[str] | None = None

    def _read(self) -> dict[str, Any]:
        file = self.path / "run.json"
        try:
            info = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except ValueError:
            info = None
        return info if isinstance(info, dict) else {"state": "damaged"}

    @property
    def finished(self) -> bool:
        return self.info.get("state") == "finished"

    def validations(self) -> list[dict[str, Any]]:
        """The validations so far, in order."""
        return [event for event in read(self.events) if event["kind"] == "validation"]

    def total_steps(self) -> int:
        """Optimiser steps of the whole run, once it has started; else 0."""
        starts = [event["total_steps"] for event in read(self.events) if event["kind"] == "start"]
        return int(starts[-1]) if starts else 0

    def seconds(self) -> float:
        """Spent in training steps so far."""
        return float(sum(seconds_of(event for event in read(self.events) if event["kind"] == "step")))

    def lock(self) -> None:
        """One process trains in a folder at a time."""
        self._lock = hold(self.path, "output folder", "training")

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def refuse_strangers(self) -> None:
        """ResourceError if the folder holds what a run would replace, and no run made it."""
        if self.info.get("state") != "damaged" and "fingerprint" not in self.info:
            own = [QUARANTINE] if _is_foreign(self.path / QUARANTINE) else []
            refuse_strangers(self.path, (*OWN, *own), "no run")

    def refuse_another(self, experiment: Experiment) -> None:
        """ConfigError if the folder holds a run of another experiment that has trained; CheckpointError if it cannot
        be told which."""
        self._refuse(self._changed(experiment))

    def _changed(self, experiment: Experiment) -> list[str]:
        file = self.path / "experiment.yaml"
        try:
            stored = Experiment.stored(file) if file.exists() else experiment
        except (ValueError, yaml.YAMLError):
            self.info = {"state": "damaged"}
        if self.info.get("state") == "damaged":
            raise CheckpointError(f"{self.path}: what run this is cannot be read. --fresh starts over")
        return differences(_what(stored), _what(experiment))

    def refuse_other_data(self, fingerprint: str) -> None:
        """ConfigError if the run in the folder was started with other data, and has trained."""
        if self._has_other_data(fingerprint):
            self._refuse(["the content of the data files"])

    def _has_other_data(self, fingerprint: str) -> bool:
        return bool(self.info.get("fingerprint", fingerprint) != fingerprint)

    @property
    def _has_trained(self) -> bool:
        """Whether there is anything to go on from, or to keep."""
        return self.finished or any(self.checkpoints.glob("*/manifest.json")) or self.model.exists()

    def begin(
        self,
        experiment: Experiment,
        fingerprint: str,
        prepared: Path,
        versions: Mapping[str, str],
        decisions: Mapping[str, Any],
    ) -> None:
        """Start with these decisions, or go on with those made: ConfigError if the run in the folder was started with
        other data. One of another experiment that had not trained yet is replaced."""
        self.refuse_other_data(fingerprint)
        if not self._has_trained and (self._changed(experiment) or self._has_other_data(fingerprint)):
            self.clear()
        if not self.info:
            self.info = {"fingerprint": fingerprint, "started": _now(), "decisions": dict(decisions)}
        if not self.finished:
            self.write(state="running", prepared=str(prepared), versions=versions)
        if not (self.path / "experiment.yaml").exists():  # after run.json, which tells that the folder is a run's
            put_whole(self.path / "experiment.yaml", experiment.to_yaml())

    def _refuse(self, changed: list[str]) -> None:
        if changed and self._has_trained:
            lines = "\n".join(f"  {line}" for line in changed)
            raise ConfigError(
                f"{self.path} holds a {self.info.get('state', 'started')} run of another experiment. What differs:\n"
                f"{lines}\nName another output, or start over with --fresh, which deletes it."
            )

    def clear(self) -> None:
        """Delete what the run made; the lock stays. What a kill leaves of it is a run that goes on."""
        if self.finished:
            with suppress(ResourceError):  # on a full disk, where this makes room
                self.write(state="interrupted", progress={}, metrics={})
        for manifest in self.checkpoints.glob("step-*/manifest.json"):  # before the best weights that they name
            manifest.unlink()
        delete(self.path, OWN)
        self.info = {}

    def write(self, **changes: Any) -> None:
        """Change run.json; a worker may have written in the meantime."""
        self.info |= self._read() | changes | {"written": _now()}
        put_whole(self.path / "run.json", json.dumps(self.info, indent=2, ensure_ascii=False))


def refuse_strangers(folder: Path, names: Iterable[str], nobody: str) -> None:
    """ResourceError if a folder that is not ours holds any of the names that we would replace."""
    if there := [name for name in names if (folder / name).exists()]:
        raise ResourceError(f"{folder} holds {' and '.join(there)} that {nobody} made. Name another output")


def delete(folder: Path, names: Iterable[str]) -> None:
    """What is there of these files and folders, in their order."""
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)


def _is_foreign(quarantine: Path) -> bool:
    """Whether it holds other lines than those of refused rows, which are written before a folder is a run's."""
    with suppress(FileNotFoundError), open(quarantine, "rb") as file:
        return file.read(9) not in (b"", b'{"file": ')
    return False


def put_whole(file: Path, text: str) -> None:
    """As a whole or not at all, also after a power cut. ResourceError if it cannot be written."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    except OSError as e:
        with suppress(OSError):
            part.unlink()
        raise ResourceError(f"{file}: cannot be written: {e.strerror}") from e


def hold(folder: Path, what: str, doing: str) -> IO[str]:
    """The lock of a folder: this process has it alone until the file is closed or the process goes, however it goes.

    ResourceError where another process has it, or where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
    except FileExistsError:
        found = "is a file" if folder.exists() else missing(str(folder))
        raise ResourceError(f"{folder}: the {what} {found}. Name another output") from None
    except OSError as e:
        raise ResourceError(f"{folder}: the {what} cannot be written: {e.strerror}") from None
    try:
        _lock(file)
    except OSError:
        file.close()
        raise ResourceError(f"{folder}: another process is {doing} here. Wait for it, or name another output") from None
    return file


def _lock(file: IO[str]) -> None:
    """A second try is for whoever only asked `is_held`, which takes an instant."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        time.sleep(0.05)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(folder: Path) -> bool:
    """Whether a process has the folder's lock now. Nothing is written, and nobody has to wait."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or none that can be asked
        return False
    return False


def _what(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json", exclude=EXECUTION)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
