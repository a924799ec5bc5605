"""The lines of the last steps of all workers, and what they agree on beside them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bigmodel.training import healing
from bigmodel.training.events import Events, read
from bigmodel.training.run import STOP
from bigmodel.training.stop import Stop
from bigmodel.training.trainer import Trainer

FLUSH = 10  # most steps between two looks at the loss, so that a GPU is not waited for at each
FLUSH_S = 1.0  # seconds between them, where steps are slow
CHECKPOINT_S = 30.0


class StepLog:
    """The lines of the last steps, written together: only then is a GPU, or another worker, waited for. Up to the step
    `doubtful` each comes alone.

    Whether to look again and whether a checkpoint is due depends on time, but all workers must do the same: the first
    one's clock, which travels with the losses, decides for all. What any of them knows of a signal, of the file that
    asks to stop, or of machines that will be taken away, all of them learn.
    """

    def __init__(self, trainer: Trainer, events: Events, stop: Stop, run_path: Path, doubtful: int = 0) -> None:
        self._trainer, self._events, self._stop, self._stop_file = trainer, events, stop, run_path / STOP
        spike = trainer.experiment.train.spike
        self._spikes = healing.Spikes(spike, healing.last_losses(read(run_path / "events.jsonl")) if spike else [])
        self._pending: list[dict[str, Any]] = []
        self._wanted, self._doubtful = 1, doubtful
        self._flushed = self._saved = time.perf_counter()
        self.checkpoint_due = self._stop_asked = self.leaving = False

    @property
    def full(self) -> bool:
        return len(self._pending) >= self._wanted

    @property
    def stops(self) -> bool:
        """Whether the run is to end after this step: several workers know it once they have agreed."""
        return self._stop_asked or (self._trainer.worker.world == 1 and self._stop.asked)

    def add(self, happened: dict[str, Any]) -> None:
        self._pending.append(happened)

    def saved(self) -> None:
        self._flushed = self._saved = time.perf_counter()
        self.checkpoint_due = False

    def flush(self) -> None:
        """Write the lines. Unusable if a loss, the norm of a gradient or the weights after a step are no numbers."""
        if not self._pending:
            return
        now = time.perf_counter()
        seconds = now - self._flushed
        losses, norms = (torch.stack([happened[name] for happened in self._pending]) for name in ("loss", "norm"))
        stop, leaves = self._stop.asked or self._stop_file.exists(), self._trainer.worker.leaves()
        losses, seconds, age, self._stop_asked, self.leaving = self._agree(
            losses, seconds, now - self._saved, stop, leaves
        )
        self._trainer.progress.seconds += seconds
        self.checkpoint_due = age >= CHECKPOINT_S
        most = FLUSH if self._pending[-1]["step"] >= self._doubtful else 1
        self._wanted = min(most, max(1, int(FLUSH_S * len(self._pending) / max(seconds, 1e-9))))
        rate = sum(happened["samples"] for happened in self._pending) / max(seconds, 1e-9)
        finite, first = self._trainer.is_finite(), self._pending[0]
        for happened, loss, norm in zip(self._pending, losses.tolist(), norms.tolist(), strict=True):
            if why := self._fault(loss, norm):  # of the first one the weights before it are known
                raise healing.Unusable(happened["step"], why, sure=finite or happened is first)
            numbers = {"loss": loss, "norm": norm, "samples_per_s": round(rate, 1)}
            self._events.write("step", **happened | numbers)
        if not finite:
            why = "the weights after it are no numbers"
            raise healing.Unusable(self._pending[-1]["step"], why, sure=len(self._pending) == 1)
        self._events.flush()
        self._pending, self._flushed = [], time.perf_counter()

    def _fault(self, loss: float, norm: float) -> str:
        """Why a step with these cannot be used; nothing if it can."""
        for what, number in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(number):
                return f"the {what} is {number}"
        return self._spikes(loss)

    def _agree(
        self, losses: Tensor, seconds: float, age: float, stop: bool, leaves: bool
    ) -> tuple[Tensor, float, float, bool, bool]:
        """The mean of all workers' losses; of the first one seconds, age of its checkpoint; whether any of them is to
        stop, or leaves."""
        world = self._trainer.worker.world
        if world == 1:
            return losses, seconds, age, stop, leaves
        own = [seconds * world, age * world] if self._trainer.worker.rank == 0 else [0.0, 0.0]
        own += [float(stop), float(leaves)]
        shared = torch.cat([losses.double(), torch.tensor(own, dtype=torch.float64, device=losses.device)])
        dist.all_reduce(shared)
        shared /= world
        seconds, age, asked, leaving = shared[-4:].tolist()
        return shared[:-4], seconds, age, asked > 0, leaving > 0
