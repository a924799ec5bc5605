"""The same bits each time on a GPU, where some kernels add up in the order in which their threads arrive.

torch takes others on demand: https://docs.pytorch.org/docs/stable/notes/randomness.html. A step of the built-in models
takes no longer with them, as far as could be measured (docs/log.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def kernels(device: str, wanted: bool = True) -> Iterator[None]:
    """Inside, no other kernels on a GPU: an operation that has none raises what `lacking` knows."""
    if device == "cpu" or not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    memory: Any = torch.utils.deterministic
    before, fills = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False  # it would look for mistakes, at the cost of writing all memory twice
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills


def lacking(error: BaseException) -> str:
    """Which operation has no such kernel, in torch's words; empty if this error says something else."""
    said, found, _ = str(error).partition(" does not have a deterministic implementation")
    return said.splitlines()[-1] + found if found else ""
