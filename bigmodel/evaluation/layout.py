"""How reports and explanations are laid out: the same lines on a terminal, in a file and in a log.

Tables have no frames: columns are told apart by blanks alone, which stays readable where colours and line-drawing
characters are not. Widths are counted in terminal cells, of which a Chinese character takes two.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Collection, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

EXCERPT = 200  # characters of a text that a report keeps
PLAIN_WIDTH = 120  # cells of a line where no terminal says how many there are


def console() -> Console:
    """Of standard output. Characters that its encoding cannot write become question marks instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PLAIN_WIDTH if fixed else None, highlight=False, markup=False, emoji=False)


def put(*parts: RenderableType) -> None:
    """Print on standard output: as it is on a terminal, without blanks at the ends of lines elsewhere."""
    out = console()
    if out.is_terminal:
        out.print(Group(*parts))
        return
    with out.capture() as captured:
        out.print(Group(*parts))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def in_colour() -> bool:
    out = console()
    return out.is_terminal and not out.no_color


def heading(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def table(header: Sequence[str], lines: Sequence[Sequence[str]], left: Collection[int]) -> Table:
    """Columns whose number is in `left` begin at the same cell, the others end there."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(header):
        grid.add_column(Text(name), justify="left" if i in left else "right", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(cell) for cell in line))
    return grid


def printable(text: str) -> str:
    """One line without what would steer a terminal: control and invisible characters become blanks."""
    return "".join(c if c.isprintable() else " " for c in text)


def excerpt(text: str) -> str:
    """The start of a text."""
    start = printable(text)
    return start if len(start) <= EXCERPT else start[: EXCERPT - 1] + "…"


def wide(text: str, cells: int) -> str:
    """A name in at most so many cells."""
    name = printable(text)
    return name if cell_len(name) <= cells else set_cell_size(name, cells - 1).rstrip() + "…"


def near(file: str) -> str:
    """A path as seen from here, where that is shorter; an address stays."""
    return file if "://" in file else min(file, os.path.relpath(file), key=len)
