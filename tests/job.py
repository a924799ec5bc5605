"""`bigmodel train` on a test's cluster, followed by the events of its run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from cluster import Cluster, Process, processes_of, said

from bigmodel.experiment import Experiment
from bigmodel.training.events import START, read

STEP = b'{"kind": "step",'


class Job:
    """The command, and what its run tells."""

    def __init__(self, it: Cluster, experiment: Experiment) -> None:
        self.run, self._log = experiment.output_path, experiment.output_path.with_suffix(".log")
        file = self.run.with_suffix(".yaml")
        file.write_text(experiment.to_yaml())
        with open(self._log, "a") as log:
            command = [sys.executable, "-m", "bigmodel", "train", str(file)]
            self.process = subprocess.Popen(command, env=it.environment, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8")

    def steps(self) -> list[int]:
        return [event["step"] for event in read(self.run / "events.jsonl") if event["kind"] == "step"]

    def start(self) -> dict[str, Any]:
        """The newest."""
        return self._newest()[0]

    def _newest(self) -> tuple[dict[str, Any], bool]:
        """The newest start, and whether a step stands after it. Reads one line: to parse all of them, again and again,
        would take a core from those that train."""
        file = self.run / "events.jsonl"
        told = file.read_bytes() if file.exists() else b""
        at = told.rfind(START)
        line, ended, after = told[at:].partition(b"\n") if at >= 0 else (b"", b"", b"")
        return (json.loads(line), STEP in after) if ended else ({"pid": 0, "step": 0}, False)

    def wait_for_step(self, step: int) -> dict[str, Any]:
        self._wait(lambda: any(number >= step for number in self.steps()))
        return self.start()

    def wait_for_another(self, start: dict[str, Any]) -> dict[str, Any]:
        """The start after this one, once it has taken a step."""

        def there() -> bool:
            newest, stepped = self._newest()
            return stepped and newest["pid"] != start["pid"]

        self._wait(there)
        return self.start()

    def _wait(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not there():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def to_its_end(self) -> None:
        assert self.process.wait(300) == 0, self.said
        assert "Traceback" not in self.said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def named(it: Cluster, name: str) -> list[Process]:
    return [process for process in processes_of(it) if said(process).startswith(f"ray::{name}")]
