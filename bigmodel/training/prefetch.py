"""The samples of the next step, augmented in a thread of their own while this step's backward pass runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from bigmodel.data.order import Ids
from bigmodel.tasks.base import Sample

Parts = list[Sequence[Sample]]


class Prefetch:
    """Of a Trainer, whose samples are functions of (seed, epoch, sample): made ahead or not, they are the same.

    cut   the ids of a step, and its number -> those of each micro-batch of this worker

    A forward pass calls Python for each layer and waits for it while the thread has it; a backward pass does not. So
    the thread begins with a backward pass, the first one of several micro-batches. Only where samples are augmented,
    for to read them is quick, and a core is left: threads that compute together wait for the one it disturbs.
    """

    def __init__(self, trainer: Any, cut: Callable[[Ids, int], list[Ids]]) -> None:
        self._trainer, self._cut = trainer, cut
        worker = trainer.worker
        self._pays = trainer.augmented and (worker.device != "cpu" or worker.threads < worker.cores)
        self._thread: threading.Thread | None = None
        self._step = -1
        """That the thread works for."""
        self._made: Parts | BaseException = []

    def take(self, ids: Ids, step: int) -> Parts:
        """The samples of each micro-batch of a step."""
        ahead = self._thread is not None and self._step == step
        self._wait()  # also for those of a step that was passed over
        made, self._made = self._made, []
        if not ahead:
            return self._read(self._cut(ids, step), step)
        if isinstance(made, BaseException):
            raise made
        return made

    def begin(self, step: int) -> None:
        """Have those of this step made, if none are under way."""
        if not self._pays or self._thread is not None or step >= self._trainer.total_steps:
            return
        wanted = self._cut(self._trainer.order.batch(step), step)  # the order is not for two threads

        def run() -> None:
            try:
                self._made = self._read(wanted, step)
            except BaseException as e:
                self._made = e

        self._step = step
        self._thread = threading.Thread(target=run, name="augmentation", daemon=True)
        self._thread.start()

    def _read(self, wanted: list[Ids], step: int) -> Parts:
        epoch = step // self._trainer.order.steps_per_epoch
        return [self._trainer.read(ids, epoch) for ids in wanted]

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The thread holds on to the Trainer: it ends before another one is built."""
        if kind is None or not issubclass(kind, KeyboardInterrupt):  # which leaves at once
            self._wait()
