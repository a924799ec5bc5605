"""What an analysis has before it: rows, where they came from, what the model answered, what it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigmodel.tasks.base import Answer, Row, Task

if TYPE_CHECKING:
    from bigmodel.predictor import Predictor

Say = Callable[[str], None]
Place = Callable[[int], tuple[str, int]]
Training = Callable[[], Iterable[Row]]


@dataclass(frozen=True)
class Evidence:
    task: Task
    rows: Sequence[Row]
    place: Place
    """Number of a row -> its file and line."""
    answers: Sequence[Answer]
    training: Training | None
    """The training rows, as often as wanted; None where they are not at hand."""
    say: Say
    """Where to tell a person what takes its time."""
    predictor: Predictor | None = None
    """Who answered, to be asked more; None where the answers are all there is."""

    def where(self, i: int) -> dict[str, str | int]:
        file, line = self.place(i)
        return {"file": file, "line": line}
