"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere. Fed with events alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bigmodel.data.progress import EVERY_S
from bigmodel.data.quarantine import first
from bigmodel.training.events import Event

MISSING = {
    ("valid",): "no row is held out for validation: the last weights are kept, be they the best or not",
    ("test",): "no row is held out for the test: the validation rows, by which the model is chosen, stand in for it",
    ("valid", "test"): "no row is held out: the last weights are kept, and the model is not tested",
}


class Display:
    """Call it with every event, inside `with`."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._total = 0
        self._last_line = 0.0
        self._started_at = 0
        self._began = time.monotonic()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        show = getattr(self, f"_show_{event['kind']}", None)
        if show is not None:
            show(event)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    def _show_say(self, event: Event) -> None:
        self._say(event["line"])

    def _show_prepared(self, event: Event) -> None:
        splits = ", ".join(f"{split} {count:,}" for split, count in event["splits"].items())
        source = "prepared" if event["fresh"] else "found prepared"
        notes = [
            f"{event[name]:,} {name.replace('_', ' ')}"
            for name in ("refused", "duplicates", "conflicting_labels")
            if event[name]
        ]
        if event["also_in_training"]:
            notes.append(f"{event['also_in_training']:,} held-out rows also stand in the training rows")
        self._say(f"data {source}: {splits}" + (f" ({'; '.join(notes)})" if notes else ""))
        if event["refused"]:
            [why] = first(Path(event["path"]) / "quarantine.jsonl", 1)
            self._say(f"refused, such as {why}. quarantine.jsonl in the run's folder has all of them")
        if missing := tuple(split for split in ("valid", "test") if not event["splits"][split]):
            named, part = (" and ".join(f"data.{at}{split}" for split in missing) for at in ("", "split."))
            self._say(f"{MISSING[missing]}. Name other rows with {named}, or a larger part of these with {part}")

    def _show_start(self, event: Event) -> None:
        self._total, self._started_at, self._began = event["total_steps"], event["step"], time.monotonic()
        if event.get("after"):
            self._say(event["after"])
        if event["step"]:
            again = f": {event['again']:,} steps are done again" if event.get("again") else ""
            self._say(f"continuing from the checkpoint of step {event['step']:,} of {event['total_steps']:,}{again}")
        num = event["workers"]
        workers = f"on {num} worker{'s' if num > 1 else ''} of Ray" if num else "in this process"
        threads = f"{event['threads']} thread" + ("s" if event["threads"] > 1 else "")
        self._say(
            f"training {event['parameters']:,} parameters for {event['total_steps']:,} steps {workers} "
            f"({event['device']}, {threads})"
        )
        if sys.stdout.isatty() and self._bar is None:
            self._open_bar(event)

    def _open_bar(self, event: Event) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns)
        self._task = self._bar.add_task("", total=event["total_steps"], completed=event["step"])
        self._bar.start()

    def _show_in_words(self, event: Event) -> None:
        self._say(in_words(event))

    _show_damaged_checkpoint = _show_decision = _show_healing = _show_validation = _show_early_stop = _show_in_words

    def _show_step(self, event: Event) -> None:
        text = in_words(event)
        if self._bar is not None:
            self._bar.update(self._task, completed=event["step"], description=text)
        elif event["step"] == self._started_at + 1 or time.monotonic() - self._last_line >= EVERY_S:
            self._last_line = time.monotonic()
            self._say(f"step {event['step']:,}/{self._total:,}  {text}{self._time_left(event['step'])}")

    def _time_left(self, step: int) -> str:
        done = step - self._started_at
        seconds = (time.monotonic() - self._began) / done * (self._total - step) if done > 1 else 0
        return f"  {seconds // 60:.0f}:{seconds % 60:02.0f} left" if seconds else ""


def in_words(event: Event) -> str:
    """What an event says by itself, in a line: also to whoever reads it afterwards."""
    match event["kind"]:
        case "step":
            return f"loss {event['loss']:.4f}  lr {event['lr']:.2e}  {event['samples_per_s']:,.0f} samples/s"
        case "validation":
            hidden = ("kind", "step", "best", "seconds")
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in event.items() if name not in hidden)
            return f"step {event['step']:,} validation: {metrics}" + ("  (best so far)" if event["best"] else "")
        case "decision" if event["what"] == "nondeterministic":
            return f"another run may differ in its last digits: {event['choice']}"
        case "decision":
            times = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in event["seconds"].items())
            return f"{event['what']}: {event['choice']}" + (f" (one batch takes {times})" if times else "")
        case "healing" if event["what"] == "accumulate":
            return f"step {event['step']:,}: {event['why']}; from here on each batch is cut into {event['to']} pieces"
        case "healing":
            rows = [f"{file}:{line}" for file, line in event["rows"]]
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            said = f". Its rows: {', '.join(rows[:3])}{more} (all in events.jsonl)" if rows else ""
            return f"step {event['step']:,}: {event['why']}; back to the last checkpoint, without this batch{said}"
        case "damaged_checkpoint":
            best = "; the best weights before it are lost, the best from there on are kept" if event.get("lost") else ""
            return f"checkpoint {event['name']} is damaged; going on from {event['used'] or 'the start'}{best}"
        case "early_stop":
            return f"no improvement since step {event['best_step']:,}: training ends at step {event['step']:,}"
    return " ".join(f"{name} {value}" for name, value in event.items())
