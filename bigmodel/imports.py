"""Before what is heavy is imported."""

import gc
import os


def lighten() -> None:
    """What spares a process time that is going to import torch and transformers, and to compute.

    The libraries make half a million objects that stay, and Python would walk all of them again and again meanwhile: a
    tenth of the time that importing takes. Young objects are looked at as often as ever.

    Activations are allocated anew in each step, and Linux hands out their memory in pages of 4 KiB, each cleared: torch
    asks it for pages of 2 MiB instead, wherever a tensor is as large as that. It reads this when it first allocates.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1000)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what training/deterministic.py asks of a GPU
