"""The samples of the next step, augmented in a thread of their own while this step's backward pass runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bigmodel.data.order import Ids
from bigmodel.tasks.base import Sample

Parts = list[Sequence[Sample]]


class Prefetch:
    """Of a Trainer, whose samples are functions of (seed, epoch, sample): made ahead or not, they are the same.

    cut   the ids of a step -> those of each micro-batch of this worker

    A forward pass calls Python for each layer and would wait for the thread; a backward pass does not.
    """

    def __init__(self, trainer: Any, cut: Callable[[Ids, int], list[Ids]]) -> None:
        self._trainer, self._cut = trainer, cut
        worker = trainer.worker
        spare = worker.device != "cpu" or worker.threads * worker.world < (os.cpu_count() or 1)
        self._thread = ThreadPoolExecutor(1, "augmentation") if trainer.augmented and spare else None
        self._ahead: tuple[int, Future[Parts]] | None = None

    def take(self, step: int) -> Parts:
        """The samples of each micro-batch of a step."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1].result()
        return self._read(self._wanted(step), step)

    def begin(self, step: int) -> None:
        """Where samples are augmented, for to read is quick, and there is a core that does not compute already."""
        if self._thread is not None and self._ahead is None and step < self._trainer.total_steps:
            self._ahead = step, self._thread.submit(self._read, self._wanted(step), step)

    def _wanted(self, step: int) -> list[Ids]:
        return self._cut(self._trainer.order.batch(step), step)

    def _read(self, wanted: list[Ids], step: int) -> Parts:
        epoch = step // self._trainer.order.steps_per_epoch
        return [self._trainer.read(ids, epoch) for ids in wanted]
