"""precision: auto. bf16 pays where the processor has instructions for it and the model is not small: so it is timed.

Where a processor has none, torch computes in another way that is slower by far (on one EPYC of 2 cores 27 s a batch
instead of 2 s): so there single products are timed first, which takes milliseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bigmodel.errors import ResourceError
from bigmodel.predictor import autocast

REPEATS = 3
SIZE = 256  # rows and columns of the matrices whose product tells whether there are instructions
GAIN = 1.1  # bf16 must be a tenth faster: it costs digits


def choose(model: Any, device: str, loss: Callable[[], Any]) -> tuple[str, dict[str, float]]:
    """Time forward and backward of one batch in fp32 and bf16, in turn. -> choice, median seconds of each.

    Where single products on a CPU already tell that bf16 is slower, their seconds are given. Leaves weights and
    buffers, such as batch norm's averages, as they are; gradients are cleared and the random state is set anew by every
    step.
    """
    if device != "cpu" and any(isinstance(module, torch.nn.RNNBase) for module in model.modules()):
        return "fp32", {}  # torch's autocast runs cuDNN's recurrent layers in fp16, whose gradients would vanish
    of_products = products() if device == "cpu" else {}
    if of_products and of_products["bf16"] > of_products["fp32"]:
        return "fp32", of_products
    try:
        times = _time(model, device, loss)
    except ResourceError:  # no kernel
        return "fp32", of_products
    medians = {precision: statistics.median(taken) for precision, taken in times.items()}
    return ("bf16" if medians["fp32"] >= GAIN * medians["bf16"] else "fp32"), medians


def _time(model: Any, device: str, loss: Callable[[], Any]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        for repeat in range(1 + REPEATS):
            for precision, taken in times.items():
                start = time.perf_counter()
                with autocast(device, precision):
                    loss().backward()
                if device != "cpu":
                    torch.cuda.synchronize()
                if repeat:  # the first is a warm-up
                    taken.append(time.perf_counter() - start)
                model.zero_grad(set_to_none=True)
    finally:
        for buffer, kept in zip(model.buffers(), before, strict=True):
            buffer.copy_(kept)
    return times


def products() -> dict[str, float]:
    """Fewest seconds of one product of matrices in fp32 and bf16, on this CPU."""
    fewest = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix, taken = torch.ones(SIZE, SIZE, dtype=dtype), []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            matrix @ matrix
            taken.append(time.perf_counter() - start)
        fewest[precision] = min(taken)
    return fewest
