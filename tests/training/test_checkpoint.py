"""Checkpoints are published, not written: what has no valid manifest does not exist."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bigmodel.errors import ResourceError
from bigmodel.training.checkpoint import Checkpoints

TENSORS = {"model": {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}, "optimizer": {}}


@pytest.fixture(params=["path", "uri"])
def checkpoints(request, tmp_path: Path) -> Checkpoints:
    """The same protocol on a path and on a pyarrow filesystem named by a URI."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return Checkpoints(str(folder) if request.param == "path" else f"file://{folder}")


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(f"step-{step:08d}", TENSORS, {"step": step})


def test_what_was_saved_comes_back(checkpoints):
    save(checkpoints, 3)
    found, damaged = checkpoints.latest("step-")
    assert found is not None and damaged == []
    assert found.state == {"step": 3} and found.name == "step-00000003"
    for name, tensor in TENSORS["model"].items():
        assert torch.equal(found.tensors["model"][name], tensor)
    assert found.tensors["optimizer"] == {}


def test_nothing_saved_is_nothing_found(tmp_path):
    assert Checkpoints(str(tmp_path / "nowhere")).latest("step-") == (None, [])


def test_without_its_manifest_a_save_does_not_exist(checkpoints, tmp_path):
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    found, damaged = checkpoints.latest("step-")
    assert found is not None and found.name == "step-00000001" and damaged == []


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_save_is_named_and_the_one_before_is_taken(checkpoints, tmp_path, file, how):
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / file
    data = path.read_bytes()
    if how == "remove":
        if file == "manifest.json":
            pytest.skip("that is no save at all")
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else data[:5] + bytes([data[5] ^ 1]) + data[6:])
    found, damaged = checkpoints.latest("step-")
    assert found is not None and found.name == "step-00000001"
    assert damaged == ["step-00000002"]


def test_a_published_save_is_never_overwritten(checkpoints):
    save(checkpoints, 1)
    checkpoints.save("step-00000001", {"model": {}}, {"step": 99})
    found, _ = checkpoints.latest("step-")
    assert found is not None and found.state == {"step": 1}


def test_an_unfinished_save_is_replaced(checkpoints, tmp_path):
    left = tmp_path / "checkpoints" / "step-00000001"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "junk").write_bytes(b"")
    save(checkpoints, 1)
    found, _ = checkpoints.latest("step-")
    assert found is not None and found.state == {"step": 1}
    assert not (left / "junk").exists()


def test_pruning_keeps_the_newest(checkpoints):
    for step in (1, 2, 10, 9):
        save(checkpoints, step)
    checkpoints.prune("step-", ["step-00000009", "step-00000010"])
    assert checkpoints.names("step-") == ["step-00000009", "step-00000010"]


def test_a_readonly_worker_changes_nothing(tmp_path):
    writer, reader = Checkpoints(str(tmp_path)), Checkpoints(str(tmp_path), readonly=True)
    save(writer, 1)
    save(reader, 2)
    reader.prune("step-", [])
    assert writer.names("step-") == ["step-00000001"]


def test_the_manifest_tells_sizes_and_hashes(checkpoints, tmp_path):
    save(checkpoints, 1)
    folder = tmp_path / "checkpoints" / "step-00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {file: entry["size"] for file, entry in manifest.items()} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"
    }
    assert all(len(entry["sha256"]) == 64 for entry in manifest.values())


def test_where_nothing_can_be_written_one_message_says_so(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(ResourceError, match="the checkpoint cannot be written"):
        save(Checkpoints(str(tmp_path / "checkpoints")), 1)


SAVER = """
import sys, torch
from bigmodel.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
start = checkpoints.latest("step-")[0]
step = start.state["step"] if start else 0
print("ready", flush=True)
while True:
    step += 1
    checkpoints.save(f"step-{step:08d}", {"model": {"w": torch.full((50_000,), float(step))}}, {"step": step})
    checkpoints.prune("step-", checkpoints.names("step-")[-2:])
"""


def test_kills_while_saving_never_leave_an_unloadable_state(tmp_path):
    reached = 0
    for number in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found, damaged = Checkpoints(str(tmp_path)).latest("step-")
        assert found is not None and damaged == []
        assert found.state["step"] > reached or number == 0
        assert torch.all(found.tensors["model"]["w"] == found.state["step"])
        reached = found.state["step"]
