"""Checkpoints are published, not written: what has no valid manifest does not exist."""

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import safetensors.torch
import torch

from bigmodel.errors import ResourceError
from bigmodel.training.checkpoint import Checkpoints, _as_bytes

TENSORS = {"model": {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}, "optimizer": {}}


class Place:
    """The folder of some checkpoints, as the file system has it."""

    def __init__(self, uri: str) -> None:
        self._fs, self._root = pafs.FileSystem.from_uri(uri)

    def read(self, file: str) -> bytes:
        with self._fs.open_input_file(f"{self._root}/{file}") as stream:
            data: bytes = stream.read()
        return data

    def write(self, file: str, data: bytes) -> None:
        self._fs.create_dir(f"{self._root}/{file}".rpartition("/")[0])
        with self._fs.open_output_stream(f"{self._root}/{file}", compression=None) as stream:
            stream.write(data)

    def delete(self, file: str) -> None:
        self._fs.delete_file(f"{self._root}/{file}")

    def files(self, folder: str) -> dict[str, int]:
        """Their sizes."""
        found = self._fs.get_file_info(pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True))
        return {info.base_name: info.size for info in found}


@pytest.fixture(params=["path", "uri", "s3"])
def uri(request, tmp_path: Path) -> str:
    """The same protocol on a path, on a pyarrow filesystem named by a URI, and on object storage."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4()}"
    return str(tmp_path / "checkpoints") if request.param == "path" else f"file://{tmp_path}/checkpoints"


@pytest.fixture
def checkpoints(uri: str) -> Checkpoints:
    return Checkpoints(uri)


@pytest.fixture
def place(uri: str) -> Place:
    return Place(uri)


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


def test_without_its_manifest_a_save_does_not_exist(checkpoints, place):
    save(checkpoints, 1)
    save(checkpoints, 2)
    place.delete("step-00000002/manifest.json")
    found, damaged = checkpoints.latest("step-")
    assert found is not None and found.name == "step-00000001" and damaged == []


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_save_is_named_and_the_one_before_is_taken(checkpoints, place, file, how):
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = f"step-00000002/{file}"
    data = place.read(path)
    if how == "remove":
        if file == "manifest.json":
            pytest.skip("that is no save at all")
        place.delete(path)
    else:
        place.write(path, data[:-1] if how == "cut" else data[:5] + bytes([data[5] ^ 1]) + data[6:])
    found, damaged = checkpoints.latest("step-")
    assert found is not None and found.name == "step-00000001"
    assert damaged == ["step-00000002"]


@pytest.mark.parametrize("bit", [1, 64, 128])
def test_a_bit_that_flips_anywhere_in_the_manifest_never_loads_anything_else(tmp_path, bit):
    checkpoints, place = Checkpoints(str(tmp_path)), Place(str(tmp_path))
    save(checkpoints, 1)
    data = place.read("step-00000001/manifest.json")
    for at in range(len(data)):
        place.write("step-00000001/manifest.json", data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        assert checkpoints.load("step-00000001") is None, at
        assert not checkpoints.is_whole("step-00000001")


def test_a_published_save_that_is_whole_is_left_as_it_is(checkpoints):
    save(checkpoints, 1)
    checkpoints.save("step-00000001", {"model": {}}, {"step": 99})
    found, _ = checkpoints.latest("step-")
    assert found is not None and found.state == {"step": 1}


def test_one_that_is_damaged_is_replaced(checkpoints, place):
    save(checkpoints, 1)
    place.write("step-00000001/model.safetensors", b"x")
    save(checkpoints, 1)
    assert checkpoints.load("step-00000001") is not None


def test_an_unfinished_save_is_replaced(checkpoints, place):
    place.write("step-00000001/model.safetensors", b"half")
    place.write("step-00000001/junk", b"")
    save(checkpoints, 1)
    found, _ = checkpoints.latest("step-")
    assert found is not None and found.state == {"step": 1}
    assert "junk" not in place.files("step-00000001")


def test_pruning_keeps_what_is_named(checkpoints, place):
    for step in (1, 2, 10, 9):
        save(checkpoints, step)
    place.write("step-00000005/model.safetensors", b"what a kill left")
    checkpoints.prune("step-", ["step-00000009", "step-00000010"])
    assert checkpoints.names("step-") == ["step-00000009", "step-00000010"]
    assert not place.files("step-00000005")


def test_a_readonly_worker_changes_nothing(tmp_path):
    writer, reader = Checkpoints(str(tmp_path)), Checkpoints(str(tmp_path), readonly=True)
    save(writer, 1)
    save(reader, 2)
    reader.prune("step-", [])
    assert writer.names("step-") == ["step-00000001"]


def test_the_manifest_tells_sizes_and_hashes(checkpoints, place):
    save(checkpoints, 1)
    manifest = json.loads(place.read("step-00000001/manifest.json"))
    files = place.files("step-00000001")
    del files["manifest.json"]
    assert {file: entry["size"] for file, entry in manifest.items()} == files
    assert all(len(entry["sha256"]) == 64 for entry in manifest.values())


def test_where_nothing_can_be_written_one_message_says_so(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(ResourceError, match="the checkpoint cannot be written"):
        save(Checkpoints(str(tmp_path / "checkpoints")), 1)


NAMES: dict[str, dict[str, torch.Tensor]] = {
    "nothing": {},
    "a scalar and an empty one": {"step": torch.tensor(3.0), "none": torch.zeros(0, 4)},
    "all types": {
        str(dtype): torch.arange(5).to(dtype)
        for dtype in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16,
            torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
        )
    },
    "names of all kinds": {"layer.0/exp_avg": torch.ones(2), 'a "b"': torch.ones(3), "schön": torch.ones(1)},
    "not contiguous": {"w": torch.arange(12.0).reshape(3, 4)[:, ::2]},
}  # fmt: skip


@pytest.mark.parametrize("tensors", NAMES.values(), ids=NAMES)
def test_tensors_are_written_as_safetensors_writes_them(tensors: dict[str, Any]):
    ours = b"".join(bytes(piece) for piece in _as_bytes(tensors))
    assert ours == safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


class Rotten(Checkpoints):
    """On a disk that loses a bit of what it is given."""

    def _write(self, path, pieces):
        return super()._write(path, pieces) | ({"sha256": "0" * 64} if path.endswith("model.safetensors") else {})


def test_what_is_not_read_back_as_it_was_written_is_not_a_save(uri, checkpoints):
    save(checkpoints, 1)
    with pytest.raises(ResourceError, match="what is read back is not what was written. The one before it is whole"):
        save(Rotten(uri), 2)
    assert checkpoints.names("step-") == ["step-00000001"]


def test_a_bucket_that_is_not_there_is_one_message(s3):
    with pytest.raises(ResourceError, match="the checkpoint cannot be written"):
        save(Checkpoints(f"{s3}-none/run"), 1)
