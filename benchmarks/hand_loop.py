"""What an expert would write on one page: bucketed batches, fused Adam, autocast. training.py measures against it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

Ids = NDArray[np.int64]
WINDOW = 50  # batches sorted by length together


def train(
    model: Any,
    input_ids: list[NDArray[np.int32]],
    labels: NDArray[np.int64],
    *,
    pad: int,
    epochs: int,
    batch_size: int,
    lr: float,
    warmup: int,
    precision: str,
    seed: int,
) -> list[float]:
    """Train in place. -> seconds of each epoch."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(ids) for ids in input_ids])
    total = epochs * math.ceil(len(labels) / batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, total, warmup))
    torch.manual_seed(seed)
    model.train()

    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        epoch(model, input_ids, labels, batches(lengths, batch_size, rng), optimizer, schedule, pad, precision)
        seconds.append(time.perf_counter() - start)
    return seconds


def epoch(
    model: Any,
    input_ids: list[NDArray[np.int32]],
    labels: NDArray[np.int64],
    order: Iterator[Ids],
    optimizer: Any,
    schedule: Any,
    pad: int,
    precision: str,
) -> None:
    """Every batch of the order once."""
    for number, ids in enumerate(order):
        batch = collate([input_ids[i] for i in ids], pad)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(**batch).logits
        learn(model, cross_entropy(logits.float(), torch.from_numpy(labels[ids])), optimizer, schedule, number)


def learn(model: Any, loss: Tensor, optimizer: Any, schedule: Any, number: int) -> None:
    """Step `number`, from its loss; now and then the loss is looked at."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if number % 50 == 0 and not math.isfinite(loss.item()):
        raise FloatingPointError("the loss is not a number")


def cosine(step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def batches(lengths: Ids, batch_size: int, rng: np.random.Generator) -> Iterator[Ids]:
    """Every sample once: shuffled, sorted by length within windows, the batches of a window in random order."""
    order = rng.permutation(len(lengths))
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        cut = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        yield from (cut[i] for i in rng.permutation(len(cut)))


def collate(input_ids: list[NDArray[np.int32]], pad: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 (B, T)."""
    ids = np.full((len(input_ids), max(map(len, input_ids))), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (own, read) in enumerate(zip(input_ids, (len(own) for own in input_ids), strict=True)):
        ids[row, :read], mask[row, :read] = own, 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
