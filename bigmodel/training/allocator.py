"""The memory of one step, kept for the next."""

import ctypes
import os
import platform
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER = -1
KEPT_BYTES = 65 << 20  # 64 MiB and what aligning takes; of larger ones, more soon lies free between others than is used
USUAL_BYTES = 32 << 20  # what glibc's own threshold grows to
THEIRS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_ours = platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in THEIRS)
_libc: Any = ctypes.CDLL(None) if _ours else None


def keep_freed() -> None:
    """Have this process hand out again what it frees, rather than give it back to the system.

    glibc maps every tensor of more than 32 MiB anew, and Linux clears its pages; a step allocates what the one before
    it has freed. The process stays as large as its largest step made it, or somewhat larger. Elsewhere than on glibc,
    or where the environment tells it what to do, nothing is changed.
    """
    if _libc is not None:
        _libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        _libc.mallopt(M_TRIM_THRESHOLD, NEVER)


def give_back() -> None:
    """What is free, at once, and from now on as usual: for a process that is short of memory."""
    if _libc is not None:
        _libc.mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)
        _libc.mallopt(M_TRIM_THRESHOLD, 2 * USUAL_BYTES)
        _libc.malloc_trim(0)
