"""hand_loop.py as a search needs it: Adam's betas are arguments, and each epoch ends with the held-out accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hand_loop
import numpy as np
import torch
from training import Job, parts

SPACE = {"lr": (1e-4, 1e-1), "one_minus_beta1": (0.01, 0.5), "one_minus_beta2": (1e-4, 0.1)}  # all of them log-uniform
USUAL = {"lr": 1e-3, "one_minus_beta1": 0.1, "one_minus_beta2": 1e-3}  # everybody's first trial
GRACE, REDUCTION = 1, 3  # of successive halving: bigmodel's defaults, for everybody


@dataclass
class Trial:
    """What one trial came to, whoever ran it."""

    params: dict[str, Any]
    state: str  # finished, stopped, failed
    curve: list[float] = field(default_factory=list)
    """Held-out accuracy after each epoch."""
    seconds: float = 0.0
    """In the loop: training and validation."""


class Rows:
    """Everything that does not depend on the parameters: tokens, the untrained model, the held-out batches."""

    def __init__(self, job: Job) -> None:
        self.model, processor, samples, held_out = parts(job)
        self.pad: int = processor.pad_token_id
        self.input_ids = [sample["input_ids"] for sample in samples]
        self.labels = np.array([sample["labels"] for sample in samples])
        held_out = sorted(held_out, key=lambda sample: len(sample["input_ids"]))
        cut = [held_out[start : start + 256] for start in range(0, len(held_out), 256)]
        self.held_out = [
            (hand_loop.collate([s["input_ids"] for s in part], self.pad), torch.tensor([s["labels"] for s in part]))
            for part in cut
        ]


def epochs(model: Any, rows: Rows, params: dict[str, float], job: Job) -> Iterator[float]:
    """Train in place. Yields the held-out accuracy after each epoch."""
    rng = np.random.default_rng(job.seed)
    lengths = np.array([len(ids) for ids in rows.input_ids])
    total = job.epochs * math.ceil(len(lengths) / job.batch_size)
    warmup = min(job.warmup, total // 10)
    betas = (1 - params["one_minus_beta1"], 1 - params["one_minus_beta2"])
    optimizer = torch.optim.Adam(model.parameters(), lr=params["lr"], betas=betas, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: hand_loop.cosine(step, total, warmup))
    torch.manual_seed(job.seed)

    for _ in range(job.epochs):
        model.train()
        order = hand_loop.batches(lengths, job.batch_size, rng)
        hand_loop.epoch(model, rows.input_ids, rows.labels, order, optimizer, schedule, rows.pad, job.precision)
        yield accuracy(model, rows, job.precision)


def accuracy(model: Any, rows: Rows, precision: str) -> float:
    right = 0
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for batch, labels in rows.held_out:
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / sum(len(labels) for _, labels in rows.held_out)


def timed(curve: Iterator[float]) -> Iterator[tuple[float, float]]:
    """Each value, and the seconds inside the iterator up to then: what its consumer does is not counted."""
    seconds = 0.0
    while True:
        start = time.perf_counter()
        try:
            value = next(curve)
        except StopIteration:
            return
        seconds += time.perf_counter() - start
        yield value, seconds
