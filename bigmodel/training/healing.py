"""What a run does about a step it cannot take: back to the last checkpoint, the batch passed over or cut smaller.

A decision is written into run.json before anything is done again: a run that is killed and continued keeps to it, and
events.jsonl tells of it. From the same checkpoint the same steps lead to the same place, so a rerun decides alike.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bigmodel.errors import ResourceError, TrainingError, out_of_memory
from bigmodel.experiment import TrainConfig
from bigmodel.models.fields import root_message

Decision = dict[str, Any]  # what: skip or accumulate; step, from 1; why; rows (file, line) of a skipped batch; to
BEFORE = 50  # steps whose median loss a spike is measured by


class Unusable(Exception):
    """A step, counted from 1, that cannot be taken. Not `sure`: one of those before it may have spoilt the weights, and
    they are taken again, each looked at by itself."""

    def __init__(self, step: int, why: str, memory: bool = False, sure: bool = True) -> None:
        super().__init__(step, why, memory, sure)
        self.step, self.why, self.memory, self.sure = step, why, memory, sure


@contextmanager
def held() -> Iterator[None]:
    """ResourceError where what a run holds the whole time, which smaller pieces of a batch would not change, does not
    fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        raise ResourceError(
            f"out of memory: {root_message(e)}. The model, its optimiser's state and the copies for a checkpoint do "
            "not fit. Lower the size of the model, or train where there is more memory"
        ) from e


class Spikes:
    """Whether a loss is more than `times` the median of the `BEFORE` steps before it; 0 never looks."""

    def __init__(self, times: float, losses: Sequence[float]) -> None:
        self._times, self._before = times, deque(losses, maxlen=BEFORE)

    def __call__(self, loss: float) -> str:
        """Why it is one; nothing if it is none, and then it counts for those to come."""
        if self._times and len(self._before) == BEFORE and loss > self._times * (usual := self._median()):
            return f"the loss is {loss:.4g}, {loss / usual:.1f} times the median of {BEFORE} steps before"
        self._before.append(loss)
        return ""

    def _median(self) -> float:
        return max(statistics.median(self._before), 1e-9)


def decide(
    found: Unusable, made: Sequence[Decision], train: TrainConfig, largest: int, rows: Any, lr: float, total: int
) -> Decision:
    """What to do about a step. `largest` is the number of samples in its largest piece, `rows` where they stand.

    Raises TrainingError where more batches would be passed over than `train.heal` allows, or half of the run's `total`,
    ResourceError where a piece cannot be cut any smaller.
    """
    if not found.memory:
        skipped = [decision["step"] for decision in made if decision["what"] == "skip"]
        if len(skipped) >= train.heal or 2 * (len(skipped) + 1) >= total:
            before = f" Batches passed over before: steps {', '.join(map(str, skipped))}." if skipped else ""
            raise TrainingError(
                f"{found.why} at step {found.step} (learning rate {lr:g}).{before} Lower optim.lr, set optim.clip, or "
                "train.precision=fp32, and start over with --fresh"
            )
        return {"what": "skip", "step": found.step, "why": found.why, "rows": rows}
    if train.exact:
        raise ResourceError(
            f"out of memory at step {found.step}: {found.why}. Under train.exact to cut a shard would change bits: "
            f"set more than train.shards={train.shards}, or fewer samples a batch, and start over with --fresh"
        )
    if largest <= 1:
        raise ResourceError(f"out of memory at step {found.step}, for a single sample: {found.why}")
    return {"what": "accumulate", "step": found.step, "why": found.why, "to": 2 * pieces(found.step, made, train)}


def skips(step: int, made: Sequence[Decision]) -> bool:
    return any(decision["what"] == "skip" and decision["step"] == step for decision in made)


def pieces(step: int, made: Sequence[Decision], train: TrainConfig) -> int:
    """Micro-batches of a step, counted from 1."""
    cut = [decision["to"] for decision in made if decision["what"] == "accumulate" and decision["step"] <= step]
    return int(max([train.accumulate, *cut]))


def rate(step: int, made: Sequence[Decision], train: TrainConfig) -> float:
    """What the learning rate of a step is multiplied by, after the batches passed over before it."""
    before = sum(decision["what"] == "skip" and decision["step"] <= step for decision in made)
    return float(train.heal_lr**before)


def last_losses(events: Sequence[Mapping[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["kind"] == "step"][-BEFORE:]
