"""Headings and lines under them, each line whole however long it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.text import Text

from bigmodel.evaluation.layout import console, heading, printable

Sections = Mapping[str, Sequence[str]]


def put_sections(sections: Sections) -> None:
    """Print those that have lines."""
    out = console()
    for title, lines in sections.items():
        if lines:
            out.print(heading(title), soft_wrap=True)
        for line in lines:
            out.print(Text(f"  {printable(line)}"), soft_wrap=True)


def aligned(facts: Mapping[str, str]) -> list[str]:
    """A line for each name and what is known of it; nothing of what is not."""
    width = max(map(len, facts), default=0)
    return [f"{name:{width}}  {fact}" for name, fact in facts.items() if fact]


def clock(seconds: float) -> str:
    """0:07, 12:34 or 5:06:07."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def moment(time: datetime | None) -> str:
    """In the time of this machine."""
    return f"{time:%Y-%m-%d %H:%M}" if time else ""


def value(metric: object) -> str:
    return f"{metric:.4f}" if isinstance(metric, float) else str(metric)


def counted(num: object, noun: str) -> str:
    """1 worker, 2 workers; nothing of none."""
    return f"{num} {noun}{'' if num == 1 else 's'}" if num else ""


def count(num: object) -> str:
    return f"{num:,}" if isinstance(num, int) else str(num)
