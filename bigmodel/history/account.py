"""`bigmodel show`: what one run was asked, how far it is, what happened and what came out; also while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigmodel.data.progress import EVERY_S
from bigmodel.experiment import Experiment
from bigmodel.history.record import RunRecord, open_run, section
from bigmodel.history.sections import Sections, aligned, clock, count, counted, moment, put_sections, value
from bigmodel.training.display import in_words
from bigmodel.training.events import Event, Tail, number

SHOWN = 5  # validations, the last ones
HAPPENINGS = ("start", "decision", "healing", "damaged_checkpoint", "early_stop")
FILES = {
    "experiment.yaml": "what was asked, every field",
    "events.jsonl": "a line a step and validation",
    "quarantine.jsonl": "the refused rows",
    "checkpoints": "where it would go on",
    "model": "the best model",
    "report.json": "its test",
}


def show(path: Path, follow: bool = False) -> None:
    """Print the account of a run; with `follow` also what happens until it ends, or until Ctrl-C."""
    record = open_run(path)
    following = Following(record)  # before anything is read, so that nothing falls between
    put_sections(account(record))
    if follow:
        following.until_the_end()


def account(record: RunRecord) -> Sections:
    """Heading -> lines."""
    return {
        record.name: progress(record),
        "asked, where not the default": asked(record),
        "data": data(record),
        "validations": validations(record),
        "what happened": happenings(record),
        "test": test(record),
        "versions": aligned({name: str(version) for name, version in record.versions.items()}),
        "files": aligned({f"{record.name}/{name}": text for name, text in FILES.items() if _holds(record.path / name)}),
    }


def progress(record: RunRecord) -> list[str]:
    done, total, start, best = record.step, record.total_steps, record.start, record.best
    left = record.seconds_left if record.is_active else None
    machine = [
        str(start.get("node", "")),
        str(start.get("device", "")),
        counted(start.get("threads"), "thread"),
        counted(start.get("workers"), "worker"),
        f"pid {start['pid']}" if record.is_active and "pid" in start else "",
    ]
    return aligned(
        {
            "state": f"{record.state}: run.json cannot be read" if record.damaged else record.state,
            "steps": f"{done:,} of {total:,} ({done / total:.0%})" if total else f"{done:,}" if done else "",
            "speed": f"{record.samples_per_s:,.0f} samples/s" if record.samples_per_s else "",
            "left": f"about {clock(left)}" if left is not None else "",
            "best": f"{best[0]} {value(best[1])} at step {best[2]:,}" if best else "",
            "started": moment(record.started),
            "took": f"{clock(record.seconds)} in training steps" if record.seconds else "",
            "on": ", ".join(part for part in machine if part),
        }
    )


def asked(record: RunRecord) -> list[str]:
    """The leaves of the experiment that are not what a file without them would mean."""
    tree = {key: each for key, each in record.experiment.items() if key not in ("task", "output")}
    try:
        least = Experiment.model_validate({"task": record.task, "data": {"train": ""}}).model_dump(mode="json")
    except ValidationError:
        least = {}
    return aligned({"task": record.task} | dict(_others(tree, least | {"model": {}})))


def _others(tree: Mapping[str, Any], default: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """Key and value of the leaves that are not the default."""
    for key, each in tree.items():
        usual = default.get(key)
        if isinstance(each, dict) and isinstance(usual, dict):
            yield from _others(each, usual, f"{at}{key}.")
        elif each != usual:
            yield f"{at}{key}", each if isinstance(each, str) else json.dumps(each, ensure_ascii=False, default=str)


def data(record: RunRecord) -> list[str]:
    counts, splits = record.counts, section(record.counts, "splits")
    rows = ", ".join(f"{split} {count(num)}" for split, num in splits.items())
    samples = ", ".join(f"{split} {count(num)}" for split, num in section(record.start, "samples").items())
    packed = section(record.start, "samples").get("train") != splits.get("train")
    notes = ("duplicates", "conflicting_labels", "also_in_training")
    return aligned(
        {
            "rows": rows,
            "samples": samples if packed else "",
            "refused": count(counts["refused"]) if "refused" in counts else "",
            "noted": ", ".join(f"{count(counts[note])} {note.replace('_', ' ')}" for note in notes if counts.get(note)),
            "fingerprint": str(record.info.get("fingerprint", "")),
        }
    )


def validations(record: RunRecord) -> list[str]:
    found = record.of_kind("validation")
    more = [f"{len(found) - SHOWN:,} before these"] if len(found) > SHOWN else []
    return more + [told(event) for event in found[-SHOWN:]]


def happenings(record: RunRecord) -> list[str]:
    """Decisions, restarts, damaged checkpoints, an early end, lines that cannot be read."""
    first, *others = record.of_kind(*HAPPENINGS) or [{}]
    lines = [told(event) for event in ([first] if first.get("kind") not in (None, "start") else []) + others]
    if record.unreadable:
        lines.append(f"{record.unreadable:,} lines of events.jsonl cannot be read")
    return lines


def test(record: RunRecord) -> list[str]:
    """The metrics of report.json with their intervals, those of the baselines beside them."""
    report = record.report
    intervals, lines = section(report, "intervals"), dict[str, str]()
    for name, metric in section(report, "metrics").items():
        between = intervals.get(name)
        spread = f" ({' to '.join(map(value, between))})" if isinstance(between, list) else ""
        others = [
            f"{baseline} {value(other)}"
            for baseline, numbers in section(report, "baselines").items()
            if isinstance(numbers, dict) and (other := number(numbers, name)) is not None
        ]
        lines[name] = ", ".join([f"{value(metric)}{spread}", *others])
    rows = f"{count(report['rows'])} of the {report.get('split', 'test')} split" if "rows" in report else ""
    return aligned({"rows": rows} | lines)


def told(event: Event) -> str:
    """An event in words; one that another version wrote, as it stands."""
    try:
        if event["kind"] == "start":
            return f"{'continued from' if event['step'] else 'started at'} step {event['step']:,} on {event['node']}"
        return in_words(event)
    except (KeyError, TypeError, ValueError, AttributeError):
        return " ".join(f"{name} {each}" for name, each in event.items())


def _holds(path: Path) -> bool:
    """Whether there is a folder, or a file that is not empty."""
    return path.is_dir() or (path.exists() and path.stat().st_size > 0)


class Following:
    """Prints what happens to a run, a step every few seconds."""

    def __init__(self, record: RunRecord) -> None:
        self._tail = Tail(record.path / "events.jsonl", self._tell)
        self._path, self._total = record.path, record.total_steps
        self._last_line = 0.0

    def until_the_end(self) -> None:
        """Ctrl-C leaves the run as it is, and says nothing."""
        try:
            while RunRecord(self._path).is_active:
                self._tail.read()
                time.sleep(0.5)
            self._tail.read()
        except KeyboardInterrupt:
            return
        ended = RunRecord(self._path)
        put_sections({ended.name: progress(ended)})

    def _tell(self, event: dict[str, Any]) -> None:
        if event.get("kind") == "start":
            self._total = int(number(event, "total_steps") or 0)
        if event.get("kind") == "step":
            if time.monotonic() - self._last_line < EVERY_S:
                return
            self._last_line = time.monotonic()
            print(f"step {count(event.get('step'))}/{self._total:,}  {told(event)}", flush=True)
        elif event.get("kind") != "end":
            print(told(event), flush=True)
