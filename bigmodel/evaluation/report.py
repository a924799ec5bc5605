"""The report as a person reads it: the same lines on a terminal and in a log.

Training and inference are told here; what stands between them belongs to the kind of task, in the module that analysed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bigmodel.evaluation.evaluate import analysis
from bigmodel.evaluation.layout import heading, put

SPLITS = {"test": "of the test", "valid": "of validation: the model was chosen by them, so they flatter it"}


def show(report: Mapping[str, Any]) -> None:
    """Print the summary on standard output."""
    put(summary(report))


def summary(report: Mapping[str, Any]) -> Group:
    return Group(*_parts(report))


def _parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    split = report.get("split")
    rows = f"{report['rows']:,} row{'' if report['rows'] == 1 else 's'}"
    yield heading(f"{report['task']}, {rows}" + (f" {SPLITS.get(split, split)}" if split else ""))
    yield from analysis(report["task"]).render(report)
    yield heading("speed")
    if training := report.get("training"):
        yield Text(_training(training))
    yield Text(_inference(report["speed"]))
    if report["truncated"]["rows"]:
        yield Text(_truncated(report["truncated"], report["rows"]))


def _training(training: Mapping[str, Any]) -> str:
    """As far as it is known."""
    known = {name: value for name, value in training.items() if value is not None}
    told = [
        _told(known, "parameters", "{:,} parameters"),
        _told(known, "rows", "{:,} rows"),
        _told(known, "steps", "{:,} steps"),
        _told(known, "best_step", "best after {:,}"),
        _told(known, "seconds", "{:,.1f} s"),
        _told(known, "samples_per_s", "{:,.0f} samples/s"),
        _told(known, "precision", "{}"),
    ]
    return "training   " + ", ".join(filter(None, told))


def _told(known: Mapping[str, Any], name: str, form: str) -> str:
    return form.format(known[name]) if name in known else ""


def _inference(speed: Mapping[str, Any]) -> str:
    threads = f"{speed['threads']} thread{'' if speed['threads'] == 1 else 's'}"
    return (
        f"inference  {speed['rows_per_s']:,.0f} rows/s, {speed['tokens_per_s']:,.0f} {speed.get('unit', 'tokens')}/s, "
        f"{speed['seconds']:,.2f} s ({speed['device']}, {threads}, {speed['precision']})"
    )


def _truncated(truncated: Mapping[str, int], num_rows: int) -> str:
    return (
        f"{truncated['rows']:,} of {num_rows:,} rows were read in part: the model reads {truncated['read']:,} tokens, "
        f"the longest row has {truncated['longest']:,} (data.max_length)"
    )
