"""The gradient of a batch shared out among workers: DDP adds the parts up while the backward pass still runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bigmodel import models
from bigmodel.data.order import Ids


class SharedGradients:
    """Of a Trainer: leaves the gradient of the whole batch in the parameters, each worker computing its part."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, worker = trainer, trainer.worker
        self._model: Any = trainer.model
        if worker.world > 1:
            devices = [worker.device] if worker.device != "cpu" else None
            change = any(getattr(module, "track_running_stats", False) for module in trainer.model.modules())
            if not change:  # else the first worker's would be sent before each forward pass
                constant = [name for name, _ in trainer.model.named_buffers()]
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trainer.model, constant)
            strange = not models.uses_all(trainer.experiment.model, trainer.experiment.task)
            self._model = DistributedDataParallel(
                trainer.model, devices, find_unused_parameters=strange, gradient_as_bucket_view=True
            )

    def cut(self, ids: Ids, step: int) -> list[Ids]:
        pieces: list[Ids] = self._trainer.pieces(ids, step)
        return pieces

    def __call__(self, ids: Ids, step: int) -> tuple[Tensor, int]:
        """-> this worker's part of the loss times the number of workers, and about how many tokens the batch has with
        padding."""
        trainer, worker = self._trainer, self._trainer.worker
        batches, idle = [trainer.collate(samples) for samples in trainer.ahead.take(ids, step)], trainer.idle(ids)
        num_targets = 0 if idle else sum(trainer.task.num_targets(batch) for batch in batches)
        total = trainer.over_workers(num_targets)
        loss = torch.zeros((), device=worker.device)
        for number, batch in enumerate(batches):
            with self._apart(number < len(batches) - 1), trainer.forward(step, number, worker.rank):
                summed = trainer.task.loss(self._model, trainer.sent(batch), trainer.experiment)
                piece_loss = summed * (0.0 if idle else worker.world / total())
                trainer.ahead.begin(step + 1)
                piece_loss.backward()
            loss += piece_loss.detach()
        return loss, sum(trainer.task.padded(batch) for batch in batches) * worker.world

    def _apart(self, unfinished: bool) -> AbstractContextManager[Any]:
        """Gradients of all but the last micro-batch stay with this worker."""
        return self._model.no_sync() if unfinished and self._model is not self._trainer.model else nullcontext()
