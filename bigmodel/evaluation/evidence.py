"""What an analysis has before it: rows, where they came from, what the model answered, what it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigmodel.errors import CheckpointError
from bigmodel.evaluation.metrics import Floats
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

    def refuse_broken(self, numbers: Floats, what: str) -> None:
        """CheckpointError at the first row whose number, of which `what` tells, is none."""
        broken = np.flatnonzero(~np.isfinite(numbers))
        if len(broken):
            file, line = self.place(int(broken[0]))
            raise CheckpointError(
                f"{file}:{line}: {what}: its weights are damaged, or the precision does not suit it "
                "(try --precision fp32)"
            )
