"""Killed anywhere, the same bits: the benchmark of kills, short."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_kills_at_random_moments_change_no_bit(tmp_path):
    """Of the weights, the optimiser's state, the averaged weights, and each step's and validation's figures."""
    command = [sys.executable, ROOT / "benchmarks" / "kill.py", "--task", "tabular-regression", "--kills", "3"]
    done = subprocess.run([*command, "--folder", tmp_path], capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("tabular-regression: 3 kills") and done.stdout.endswith("all equal\n")
