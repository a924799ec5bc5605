"""Saving beside training: the training thread copies the state and goes on; another one writes, verifies and prunes.

The order is what makes a kill harmless: the best weights are published before the step's checkpoint that names them,
and what is old goes when that checkpoint has been read back whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bigmodel.cores import available_cores
from bigmodel.training.checkpoint import Checkpoints

STEP, BEST = "step-", "best-"
COPIERS = min(4, available_cores())
Groups = Mapping[str, Mapping[str, Tensor]]
State = Mapping[str, Any]


class Saver:
    """Saves the steps of one run. Use it in `with`: on leaving, all that was saved is on disk.

    keep         newest checkpoints that stay
    keep_every   of each so many optimiser steps the first checkpoint stays besides; 0 is none
    settle       sees to it that what a checkpoint tells of beside itself is on the disk

    One save is under way at a time. What fails in it, a ResourceError, is raised by the next `save` or `wait`.
    """

    def __init__(
        self, checkpoints: Checkpoints, keep: int, keep_every: int = 0, settle: Callable[[], None] = lambda: None
    ) -> None:
        self._checkpoints, self._keep, self._keep_every, self._settle = checkpoints, keep, keep_every, settle
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._copies: dict[tuple[str, str, str], Tensor] = {}
        self._best_of: dict[str, int | None] = {}
        """Step whose weights a checkpoint names as the best, by the checkpoint's name."""

    def save(self, tensors: Groups, state: State, best: tuple[Groups, State] | None = None) -> None:
        """Begin to publish the checkpoint of `state["step"]`, after its weights where they are the best so far.

        Returns when the tensors have been copied; they may then change.
        """
        if self._checkpoints.readonly:
            return
        self.wait()
        step = state["step"]
        saves = [(f"{STEP}{step:08d}", self._copied(STEP, tensors), dict(state))]
        if best is not None:
            saves.insert(0, (f"{BEST}{step:08d}", self._copied(BEST, best[0]), dict(best[1])))
        self._begin(lambda: self._publish(saves))

    def reserve(self, tensors: Groups) -> None:
        """Have memory ready for the copies: to touch it for the first time takes longer than to copy."""
        if not self._checkpoints.readonly:
            self.wait()
            kinds = {STEP: tensors, BEST: {"model": tensors["model"]}}
            self._begin(lambda: [self._copy_of(*key, tensor).zero_() for key, tensor in _keyed(kinds)])

    def wait(self) -> None:
        """Until the save under way is on disk. ResourceError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, GeneratorExit):
            self.wait()
        elif self._thread is not None and not issubclass(kind, KeyboardInterrupt):  # which leaves at once
            self._thread.join()

    def _begin(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as e:
                self._failure = e

        self._thread = threading.Thread(target=run, name="saver", daemon=True)
        self._thread.start()

    def _copied(self, kind: str, tensors: Groups) -> dict[str, dict[str, Tensor]]:
        """Into memory that is used again each time, as one save is under way at a time."""
        keyed = list(_keyed({kind: tensors}))
        copies = [self._copy_of(*key, tensor) for key, tensor in keyed]
        _copy([tensor for _, tensor in keyed], copies)
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in tensors}
        for ((_, group, name), _), copy in zip(keyed, copies, strict=True):
            groups[group][name] = copy
        return groups

    def _copy_of(self, kind: str, group: str, name: str, tensor: Tensor) -> Tensor:
        copy = self._copies.get((kind, group, name))
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[kind, group, name] = copy
        return copy

    def _publish(self, saves: Sequence[tuple[str, Groups, State]]) -> None:
        self._settle()
        for name, tensors, state in saves:
            self._checkpoints.save(name, tensors, state)
        newest, _, state = saves[-1]
        self._best_of[newest] = state.get("best_step")
        kept = self._kept(newest)
        self._checkpoints.prune(STEP, kept)
        named = {self._best(name) for name in kept}
        self._checkpoints.prune(BEST, {f"{BEST}{step:08d}" for step in named if step is not None})

    def _kept(self, newest: str) -> list[str]:
        """Checkpoints that stay now that `newest` is whole; any after it were damaged, or this run would have begun
        there."""
        names = [name for name in self._checkpoints.names(STEP) if name <= newest]
        firsts: dict[int, str] = {}
        if self._keep_every:
            for name in names:
                firsts.setdefault(int(name.removeprefix(STEP)) // self._keep_every, name)
            firsts.pop(0, None)
        return sorted({*names[-self._keep :], *firsts.values()})

    def _best(self, name: str) -> int | None:
        if name not in self._best_of:
            self._best_of[name] = (self._checkpoints.state(name) or {}).get("best_step")
        return self._best_of[name]


def _copy(tensors: list[Tensor], copies: list[Tensor]) -> None:
    """Several threads at once: one alone does not use all that the memory gives."""

    def copy_part(number: int) -> None:
        if part := copies[number::COPIERS]:
            torch._foreach_copy_(part, tensors[number::COPIERS], non_blocking=True)

    with ThreadPoolExecutor(COPIERS) as pool:
        list(pool.map(copy_part, range(COPIERS)))
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()  # the copies are on their way


def _keyed(kinds: Mapping[str, Groups]) -> Iterator[tuple[tuple[str, str, str], Tensor]]:
    return chain.from_iterable(
        (((kind, group, name), tensor) for name, tensor in named.items())
        for kind, groups in kinds.items()
        for group, named in groups.items()
    )
