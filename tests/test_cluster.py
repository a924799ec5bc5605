"""A Ray that starts while its caller does something else."""

import os
import subprocess
import sys

SCRIPT = """
from bigmodel import cluster

with cluster.Ahead() as ahead:
    {first}
    joined = not cluster.connect(num_cpus=1)
    import ray
    print("joined" if joined else "own", int(ray.is_initialized()))
    ahead.stop()
    if not joined:
        ray.shutdown()
print("left", int(ray.is_initialized()))
"""


def run(script: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_who_connects_joins_the_ray_that_was_started_ahead_and_it_goes_with_its_owner():
    assert run(SCRIPT.format(first="ahead.start()")) == ["joined 1", "left 0"]


def test_without_a_start_who_connects_gets_a_ray_of_its_own():
    assert run(SCRIPT.format(first="pass")) == ["own 1", "left 0"]


GARBAGE = """
import gc, time, weakref
from bigmodel import cluster

class Cycle:
    def __init__(self, kept):
        self.me, self.kept = self, kept

gc.disable()  # it would come at some other time
with cluster.Ahead() as ahead:
    ahead.start()
    cluster.connect(num_cpus=1)
    import ray
    left = [weakref.ref(Cycle(ray.put(number))) for number in range(4000)]
    ahead.stop()
    for cycle in left:
        if (found := cycle()) is not None:
            found.me = None
        del found
        time.sleep(0.0008)
print("alive")
"""


def test_what_ray_objects_are_left_to_the_collector_does_not_end_the_process():
    assert run(GARBAGE) == ["alive"]
