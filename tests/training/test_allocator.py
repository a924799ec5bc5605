import os
import platform
import subprocess
import sys

import pytest

SETTLES = """
import resource
import torch
from bigmodel.training import allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

allocator.keep_freed()
for number in range(60):
    if number == 40:
        before = faults()
    torch.ones(12 << 20)
print(faults() - before)
"""


def late_faults(**environment: str) -> int:
    """Pages that Linux has to hand out for 20 tensors of 48 MiB, one after the other, after 40 others."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SETTLES]
    return int(subprocess.run(command, env=theirs | environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is asked")
def test_what_a_step_frees_the_next_one_takes_unless_the_environment_says_otherwise():
    assert 10 * late_faults() < late_faults(MALLOC_MMAP_THRESHOLD_="1000000")
