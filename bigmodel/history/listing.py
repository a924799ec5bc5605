"""`bigmodel runs`: every run below a folder, the newest first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from bigmodel.errors import ConfigError
from bigmodel.evaluation.layout import console, printable, put, table
from bigmodel.history.record import DEPTH, RunRecord, find
from bigmodel.history.sections import clock, counted, moment, value

HEADER = ("run", "task", "model", "state", "progress", "best", "started", "took", "where")
RIGHT = {7}  # columns that end at the same cell


def show(folder: Path, as_json: bool) -> None:
    """Print a line for every run. ConfigError if there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Name the one that holds the runs, such as runs")
    records = sorted(map(RunRecord, find(folder)), key=lambda record: record.age, reverse=True)
    if as_json:
        for record in records:
            print(json.dumps(facts(record), ensure_ascii=False))
    elif records:
        _put([cells(record) for record in records])
    else:
        print(f"{folder}: no run here, nor up to {DEPTH} folders below. bigmodel train EXPERIMENT makes one")


def facts(record: RunRecord) -> dict[str, Any]:
    """What the line of a run says, for programs; null where it is not known."""
    metric, best, step = record.best or (None, None, None)
    return {
        "run": record.name,
        "task": record.task or None,
        "model": record.model or None,
        "state": record.state,
        "step": record.step,
        "total_steps": record.total_steps or None,
        "metric": metric,
        "best": best,
        "best_step": step,
        "started": record.started.isoformat() if record.started else None,
        "seconds": round(record.seconds, 1),
        "node": record.start.get("node"),
        "workers": record.start.get("workers"),
        "pid": record.start.get("pid") if record.is_active else None,
    }


def cells(record: RunRecord) -> list[str]:
    """The same for people, in the order of HEADER."""
    told = facts(record)
    done, total = record.step, record.total_steps
    where = [told["node"], f"pid {told['pid']}" if told["pid"] else "", counted(told["workers"], "worker")]
    return [
        printable(cell)
        for cell in (
            record.name,
            record.task,
            record.model,
            record.state,
            f"{done:,}/{total:,} {done / total:.0%}" if total else "",
            f"{told['metric']} {value(told['best'])} at {told['best_step']:,}" if told["metric"] else "",
            moment(record.started),
            clock(record.seconds) if record.seconds else "",
            ", ".join(str(part) for part in where if part),
        )
    ]


def _put(rows: list[list[str]]) -> None:
    """A table that fits the terminal; elsewhere every line is whole."""
    if console().is_terminal:
        put(table(HEADER, rows, left=set(range(len(HEADER))) - RIGHT))
        return
    lines = [list(HEADER), *rows]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(HEADER))]
    for line in lines:
        padded = [_padded(cell, width, i in RIGHT) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(padded).rstrip())


def _padded(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if right else cell + blanks
