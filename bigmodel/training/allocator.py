"""The memory of one step, kept for the next."""

import ctypes
from typing import Any

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of mallopt(3)
NEVER = -1


def keep_freed() -> None:
    """Have this process hand out again what it frees, rather than give it back to the system.

    glibc maps every tensor of more than 32 MiB anew, and Linux clears its pages; a step allocates what the one before
    it has freed. Memory use is that of the largest step either way. Elsewhere than on glibc nothing is changed.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
