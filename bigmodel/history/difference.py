"""`bigmodel diff`: in what two runs differ, from what was asked to the last bit of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigmodel.experiment import Experiment, differences
from bigmodel.history.record import RunRecord, open_run, section
from bigmodel.history.sections import Sections, put_sections
from bigmodel.training.events import Event

SHOWN = 12  # digits of a SHA-256


def show(first: Path, second: Path) -> None:
    """Print what differs, or that nothing does."""
    a, b = open_run(first), open_run(second)
    found = sections(a, b)
    print(f"{a.name} -> {b.name}")
    put_sections({title: lines for title, lines in found.items() if lines})
    same = [title for title, lines in found.items() if not lines]
    print(f"\nthe same: {', '.join(same)}" if len(same) < len(found) else f"nothing differs: {', '.join(same)}")


def sections(a: RunRecord, b: RunRecord) -> Sections:
    """What is compared -> in what it differs. Folders, processes, times and speeds are not compared."""
    return {
        "experiment": differences(_experiment(a), _experiment(b)),
        "data": differences(_data(a), _data(b)),
        "versions": differences(a.versions, b.versions),
        "decisions": differences(_decisions(a), _decisions(b)),
        "machine": differences(machine(a.start), machine(b.start)),
        "result": differences(_result(a), _result(b)) + _tests(a, b),
        "losses of the steps": losses(a, b),
        "weights": weights(a, b),
    }


def _experiment(record: RunRecord) -> dict[str, Any]:
    """All but the folder; fields that came later than the run are at their defaults."""
    try:
        return Experiment.model_validate(record.experiment).model_dump(mode="json", exclude={"output"})
    except ValidationError:
        return {key: value for key, value in record.experiment.items() if key != "output"}


def _data(record: RunRecord) -> dict[str, Any]:
    counts = record.counts
    rows = {f"{split} rows": num for split, num in section(counts, "splits").items()}
    return {"fingerprint": record.info.get("fingerprint")} | rows | {"refused rows": counts.get("refused")}


def _decisions(record: RunRecord) -> dict[str, Any]:
    """Those about single steps in few words, without the rows."""
    healing = record.decisions.get("healing")
    made = [one for one in healing if isinstance(one, dict)] if isinstance(healing, list) else []
    told = [f"{one.get('what')} at step {one.get('step')}" for one in made]
    return record.decisions | {"healing": told or None}


def machine(start: Event) -> dict[str, Any]:
    """Who did the work since this start; of a run that was continued elsewhere, the last one is compared."""
    return {name: start.get(name) for name in ("node", "device", "threads", "workers")} | {"gpu": start.get("gpu", "")}


def _result(record: RunRecord) -> dict[str, Any]:
    metric, value, step = record.best or ("metric", None, None)
    return {"state": record.state, "steps": record.step, f"best {metric}": value, "best step": step}


def _tests(a: RunRecord, b: RunRecord) -> list[str]:
    """The metrics of both tests; of one that only one run has, no more than that."""
    ours, theirs = (section(record.report, "metrics") for record in (a, b))
    if ours and theirs:
        return differences(ours, theirs, "test ")
    return [f"test: {'there' if ours else 'none'} -> {'there' if theirs else 'none'}"] if ours or theirs else []


def losses(a: RunRecord, b: RunRecord) -> list[str]:
    """Where they first part."""
    ours, theirs = ({step["step"]: repr(step.get("loss")) for step in record.steps} for record in (a, b))
    parting = next((step for step in sorted(ours.keys() & theirs.keys()) if ours[step] != theirs[step]), None)
    if parting is not None:
        return [f"part at step {parting:,}: {ours[parting]} -> {theirs[parting]}"]
    if ours.keys() != theirs.keys():
        return [f"equal in {len(ours.keys() & theirs.keys()):,} steps; there are {len(ours):,} -> {len(theirs):,}"]
    return []


def weights(a: RunRecord, b: RunRecord) -> list[str]:
    """SHA-256 of the files that training saved in the model directory, where they differ; and which no longer are."""
    names = sorted(name for name in a.weights.keys() | b.weights.keys() if a.weights.get(name) != b.weights.get(name))
    return [f"{name}: SHA-256 {_start(a, name)} -> {_start(b, name)}" for name in names] + a.damage + b.damage


def _start(record: RunRecord, name: str) -> str:
    return str(record.weights.get(name, "none"))[:SHOWN]
