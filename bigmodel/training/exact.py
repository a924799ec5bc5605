"""`train.exact`: the same bits whatever the number of workers. A batch is cut into a fixed number of shards; each gives
its own gradient, whoever computes it, and these are summed along one binary tree.

Floating-point sums depend on their order, so the order must not depend on who adds. Each worker has a run of
neighbouring shards and sums what of the tree lies within it; the nodes that are left are gathered, and every worker
finishes the tree by itself. Running averages of batch norms go the same way: each shard starts from those before the
step, and their mean is what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bigmodel.data.order import Ids, shard

Total = Callable[[], Any]
Node = tuple[int, int]  # (level, place): the shards from place << level on, 1 << level of them


def owned(rank: int, world: int, shards: int) -> range:
    """The shards of a worker: neighbours, as many as the others have or one fewer."""
    return range(rank * shards // world, (rank + 1) * shards // world)


def nodes(part: range) -> list[Node]:
    """The largest nodes of the tree that make up a run of shards, in their order."""
    found, start = [], part.start
    while start < part.stop:
        level = 0
        while start % (2 << level) == 0 and start + (2 << level) <= part.stop:
            level += 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def add_up(values: Iterable[tuple[Node, Tensor]]) -> Iterator[tuple[Node, Tensor]]:
    """Neighbouring nodes in their order -> the largest nodes they make, each the sum of its two halves. Holds as many
    tensors as the tree is high, and adds in place."""
    stack: list[tuple[Node, Tensor]] = []
    for node, value in values:
        while node[1] % 2 and stack and stack[-1][0] == (node[0], node[1] - 1):
            value = stack.pop()[1].add_(value)
            node = (node[0] + 1, node[1] // 2)
        stack.append((node, value))
    yield from stack


def total(values: Iterable[tuple[Node, Tensor]]) -> Tensor:
    """The sum of all: what is left without a sibling at the end is added from the right."""
    left = [value for _, value in add_up(values)]
    sum_ = left.pop()
    while left:
        sum_ = left.pop().add_(sum_)
    return sum_


def gather(own: Sequence[tuple[Node, Tensor]], world: int, shards: int) -> list[tuple[Node, Tensor]]:
    """The nodes of all workers, in their order."""
    if world == 1:
        return list(own)
    theirs = [nodes(owned(rank, world, shards)) for rank in range(world)]
    rounds = []
    for number in range(max(map(len, theirs))):
        mine = own[number][1] if number < len(own) else torch.zeros_like(own[0][1])
        parts = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(parts, mine)
        rounds.append(parts)
    return [(node, rounds[number][rank]) for rank in range(world) for number, node in enumerate(theirs[rank])]


class ExactGradients:
    """Of a Trainer: leaves the gradient of the whole batch in the parameters, equal to the bit for any number of
    workers."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, worker = trainer, trainer.worker
        self._shards = trainer.experiment.train.shards
        self._own = owned(worker.rank, worker.world, self._shards)
        self._parameters = trainer.trained
        changing = [
            buffer
            for module in trainer.model.modules()
            if getattr(module, "track_running_stats", False)
            for buffer in module.buffers(recurse=False)
        ]
        self._averages = [buffer for buffer in changing if buffer.is_floating_point()]
        self._counts = [buffer for buffer in changing if not buffer.is_floating_point()]
        self._sizes = [tensor.numel() for tensor in [*self._parameters, *self._averages]] + [2 + len(self._parameters)]

    def cut(self, ids: Ids, step: int) -> list[Ids]:
        """A batch -> this worker's shards but for empty ones, which come last."""
        return [part for number in self._own if len(part := shard(ids, number, self._shards))]

    def __call__(self, ids: Ids, step: int) -> tuple[Tensor, int]:
        """-> mean loss of the batch's targets, and its tokens with padding."""
        trainer = self._trainer
        batches = dict(zip(self._own, map(trainer.collate, trainer.ahead.take(ids, step)), strict=False))
        num_targets = trainer.over_workers(sum(trainer.task.num_targets(batch) for batch in batches.values()))
        before = [average.clone() for average in self._averages]
        counts = [count + 1 for count in self._counts]
        summed = add_up(
            ((0, number), self._gradient(batches.pop(number, None), step, number, num_targets, before))
            for number in self._own
        )
        whole = total(gather(list(summed), trainer.worker.world, self._shards))
        for count, value in zip(self._counts, counts, strict=True):
            count.copy_(value)
        return self._spread(whole, min(len(ids), self._shards))

    def _gradient(
        self, batch: dict[str, Tensor] | None, step: int, number: int, num_targets: Total, before: list[Tensor]
    ) -> Tensor:
        """Of one shard, in a row: gradients, running averages, loss, tokens with padding, and of each parameter whether
        it took part. Nothing of an empty one."""
        trainer = self._trainer
        for average, value in zip(self._averages, before, strict=True):
            average.copy_(value)
        if batch is None:
            return torch.zeros(sum(self._sizes), device=trainer.worker.device)
        with trainer.forward(step, number, 0):
            loss = trainer.task.loss(trainer.model, trainer.sent(batch), trainer.experiment) / float(num_targets())
            trainer.ahead.begin(step + 1)
            loss.backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        took_part = [float(p.grad is not None) for p in self._parameters]
        numbers = [float(loss.detach()), float(trainer.task.padded(batch)), *took_part]
        told = torch.tensor(numbers, device=trainer.worker.device)
        flat = torch.cat([tensor.reshape(-1) for tensor in [*gradients, *self._averages, told]])
        trainer.clear_gradients()
        return flat

    def _spread(self, whole: Tensor, num_shards: int) -> tuple[Tensor, int]:
        """Gradients and running averages to where they belong; no gradient where no shard had one, so that weights out
        of use do not decay."""
        *tensors, told = whole.split(self._sizes)
        loss, padded, *took_part = told.tolist()
        for p, gradient, took in zip(self._parameters, tensors, took_part, strict=False):
            p.grad = gradient.view_as(p) if took else None
        for average, value in zip(self._averages, tensors[len(self._parameters) :], strict=True):
            average.copy_(value.view_as(average).div_(num_shards))
        return torch.tensor(loss, device=whole.device), int(padded)
