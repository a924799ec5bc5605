"""How long the first step takes to come, once the data is prepared. tasks.py calls it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BAR_S = 1.0  # from an open run to its first step
WAIT_S = 0.005


def measured(experiment: Any, rounds: int) -> str:
    """Each round a process of its own; the first round's process prepares the data and is not counted."""
    from bigmodel.data.prepare import prepare

    prepare(experiment)
    yaml = Path(experiment.output).with_name("start.yaml")
    yaml.write_text(experiment.to_yaml(), "utf-8")
    command, within = [], []
    for _ in range(rounds):
        command.append(first_step(yaml, Path(experiment.output)))
        within.append(json.loads(subprocess.check_output([sys.executable, __file__, str(yaml)], text=True)))
    inner = {name: statistics.median(each[name] for each in within) for name in within[0]}
    missed = "" if inner["first_step_s"] <= BAR_S else ", MISSED"
    return (
        f"`bigmodel train` on prepared data: first step {statistics.median(command):.2f} s after the process began\n"
        f"  of these: importing {inner['import_s']:.2f} s, opening data and building model {inner['open_s']:.2f} s, "
        f"choosing the precision and the step itself {inner['first_step_s']:.2f} s\n"
        f"From the start event to the first step: {inner['first_step_s']:.2f} s (bar {BAR_S:g} s{missed}); "
        f"medians of {rounds}"
    )


def first_step(yaml: Path, output: Path) -> float:
    """Seconds from the start of `bigmodel train` until its events tell of a step; it is stopped then."""
    events = output / "events.jsonl"
    events.unlink(missing_ok=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", "bigmodel", "train", str(yaml), "--fresh"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (events.exists() and b'"kind": "step"' in events.read_bytes()):
            if process.poll() is not None:
                sys.exit(f"it ended before its first step:\n{process.communicate()[1].decode()[-2000:]}")
            time.sleep(WAIT_S)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def stages(yaml: Path) -> dict[str, float]:
    """Seconds of each part of the way to the first step, in this process."""
    began = time.perf_counter()
    from bigmodel import pipeline
    from bigmodel.training.fit import fit

    experiment = pipeline.read_experiment(yaml)
    marks = {"imported": time.perf_counter()}

    class Enough(Exception):
        pass

    def listen(event: dict[str, Any]) -> None:
        marks.setdefault(event["kind"], time.perf_counter())
        if event["kind"] == "step":
            raise Enough

    try:
        fit(experiment, fresh=True, listener=listen)
    except Enough:
        pass
    return {
        "import_s": marks["imported"] - began,
        "open_s": marks["start"] - marks["imported"],
        "first_step_s": marks["step"] - marks["start"],
    }


if __name__ == "__main__":
    print(json.dumps(stages(Path(sys.argv[1]))), flush=True)
    os._exit(0)
