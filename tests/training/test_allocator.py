import platform
import subprocess
import sys

import pytest

TWICE = """
import resource
from bigmodel.imports import lighten

lighten()
import torch
from bigmodel.training import allocator

def faults(num_bytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(num_bytes // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

allocator.keep_freed()
print(*[faults(num_bytes << 20) for num_bytes in [64] * 9 + [48]])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked")
def test_what_a_step_frees_the_next_one_takes_without_asking_for_pages():
    said = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, check=True).stdout
    first, *_, last, smaller = map(int, said.split())
    assert first > 16 and last < 8 and smaller < 8, "64 MiB are 16,384 pages, or 32 large ones"
