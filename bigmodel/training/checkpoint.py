"""Checkpoints are published, not written: each save is a new folder whose manifest, with sizes and hashes, comes last.
What has no valid manifest does not exist. The same protocol serves local disks and object storage (any pyarrow
filesystem).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import safetensors.torch
import torch
from torch import Tensor

from bigmodel.errors import ResourceError

MANIFEST = "manifest.json"
CHUNK = 8 << 20  # bytes hashed, written or read at a time
DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""In the order in which safetensors lays them down, wide ones first, so that every tensor lies aligned."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded and verified save: named groups of tensors, and the plain state."""

    name: str
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """The saves under one folder, a path or a URI. Names sort by age, such as step-00000100.

    `readonly` is for all workers but the first: saving and pruning then do nothing.
    """

    def __init__(self, root: str, readonly: bool = False) -> None:
        self.readonly = readonly
        if "://" in root:
            self._fs, self._root = pafs.FileSystem.from_uri(root)
        else:
            self._fs, self._root = pafs.LocalFileSystem(), os.path.abspath(root)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)

    def names(self, prefix: str) -> list[str]:
        """Saves whose manifest stands, oldest first; whether the files are whole shows when one is loaded."""
        folders = self._folders(prefix)
        manifests = self._fs.get_file_info([f"{self._root}/{name}/{MANIFEST}" for name in folders])
        return [name for name, info in zip(folders, manifests, strict=True) if info.type == pafs.FileType.File]

    def save(self, name: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Publish a save, and read back what was written. One that is published and whole is left as it is; an
        unfinished or damaged one is replaced. ResourceError if it cannot be written, or is not read as written.
        """
        if self.readonly or self.is_whole(name):
            return
        folder = f"{self._root}/{name}"
        files = {f"{group}.safetensors": _as_bytes(named) for group, named in tensors.items()}
        files["state.json"] = [json.dumps(state).encode()]
        try:
            self._remove(name)
            self._fs.create_dir(folder, recursive=True)
            manifest = {file: self._write(f"{folder}/{file}", pieces) for file, pieces in files.items()}
            self._write(f"{folder}/{MANIFEST}.part", [json.dumps(manifest).encode()])
            self._fs.move(f"{folder}/{MANIFEST}.part", f"{folder}/{MANIFEST}")
            self._settle(folder)
            if self._manifest(name) != manifest or not self._fits(name, manifest):
                raise OSError("what is read back is not what was written")
        except (OSError, ValueError) as e:
            self._give_up(name)
            raise ResourceError(f"{folder}: the checkpoint cannot be written: {e}. The one before it is whole.") from e

    def is_whole(self, name: str) -> bool:
        """Whether it is published, and every file is as its manifest says."""
        try:
            return self._fits(name, self._manifest(name))
        except (OSError, ValueError):
            return False

    def load(self, name: str) -> Checkpoint | None:
        """The save, verified against its manifest; None if it is damaged."""
        try:
            files = {file: self._verified(name, file, entry) for file, entry in self._manifest(name).items()}
        except (OSError, ValueError):
            return None
        state = json.loads(files.pop("state.json"))
        groups = {file.removesuffix(".safetensors"): safetensors.torch.load(data) for file, data in files.items()}
        return Checkpoint(name, groups, state)

    def state(self, name: str) -> dict[str, Any] | None:
        """The plain state alone; None if it is damaged."""
        try:
            data = self._verified(name, "state.json", self._manifest(name)["state.json"])
        except (OSError, ValueError):
            return None
        state: dict[str, Any] = json.loads(data)
        return state

    def latest(
        self, prefix: str, needed: Callable[[dict[str, Any]], str] = lambda state: ""
    ) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole save, and the names of damaged ones that were passed over. Where a save's state tells of
        another one that is `needed` beside it, that must be whole too."""
        damaged: list[str] = []
        for name in reversed(self.names(prefix)):
            checkpoint = self.load(name)
            other = name if checkpoint is None else needed(checkpoint.state)
            if checkpoint is not None and (not other or self.is_whole(other)):
                return checkpoint, damaged
            if other not in damaged:
                damaged.append(other)
        return None, damaged

    def prune(self, prefix: str, keep: Iterable[str]) -> None:
        """Delete all but those named, and what unfinished saves left. The manifest goes first, so that no half-deleted
        save can be loaded. ResourceError if they cannot be deleted."""
        if self.readonly:
            return
        try:
            for name in set(self._folders(prefix)).difference(keep):
                self._remove(name)
        except OSError as e:
            raise ResourceError(f"{self._root}: old checkpoints cannot be deleted: {e}") from e

    def _folders(self, prefix: str) -> list[str]:
        """All with the prefix, published or not, in order."""
        try:
            found = self._fs.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        except NotADirectoryError:  # a file is in the way: saving will say so
            return []
        names = [info.base_name for info in found if info.type == pafs.FileType.Directory]
        return sorted(name for name in names if name.startswith(prefix))

    def _manifest(self, name: str) -> dict[str, dict[str, Any]]:
        """File -> size and sha256. OSError where there is none, ValueError where it is damaged."""
        manifest = json.loads(self._read(f"{self._root}/{name}/{MANIFEST}"))
        if not isinstance(manifest, dict) or "state.json" not in manifest:
            raise ValueError("not a manifest")
        return manifest

    def _verified(self, name: str, file: str, entry: object) -> bytes:
        """The file's content. ValueError if the manifest says otherwise."""
        data = self._read(f"{self._root}/{name}/{file}")
        if entry != {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
            raise ValueError(f"{file} is damaged")
        return data

    def _fits(self, name: str, manifest: Mapping[str, Any]) -> bool:
        """Whether every file is as the manifest says."""
        return all(self._entry(f"{self._root}/{name}/{file}") == entry for file, entry in manifest.items())

    def _entry(self, path: str) -> dict[str, Any]:
        """What a manifest would say of the file."""
        size, sha256 = 0, hashlib.sha256()
        with self._fs.open_input_file(path) as file:
            while data := file.read(CHUNK):
                size += len(data)
                sha256.update(data)
        return {"size": size, "sha256": sha256.hexdigest()}

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_file(path) as file:
            data: bytes = file.read()
        return data

    def _write(self, path: str, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
        """-> what the manifest says of the file."""
        size, sha256 = 0, hashlib.sha256()
        with self._open(path) as file:
            for piece in pieces:
                for start in range(0, len(piece), CHUNK):
                    part = piece[start : start + CHUNK]
                    sha256.update(part)
                    file.write(part)
                    size += len(part)
            if self._local:  # on the disk, not only handed to the system, before the manifest says it is there
                file.flush()
                os.fsync(file.fileno())
        return {"size": size, "sha256": sha256.hexdigest()}

    def _open(self, path: str) -> AbstractContextManager[Any]:
        if self._local:
            return open(path, "wb")
        stream: AbstractContextManager[Any] = self._fs.open_output_stream(path, compression=None)
        return stream

    def _settle(self, folder: str) -> None:
        """The names of the files, too, survive a power cut, before older saves are deleted."""
        if self._local:
            for path in (folder, self._root):
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def _give_up(self, name: str) -> None:
        """Take back a failed save; where that fails too, it has no manifest, or one that does not fit."""
        try:
            self._remove(name)
        except OSError:
            pass

    def _remove(self, name: str) -> None:
        folder = f"{self._root}/{name}"
        if self._fs.get_file_info(f"{folder}/{MANIFEST}").type == pafs.FileType.File:
            self._fs.delete_file(f"{folder}/{MANIFEST}")
        if self._fs.get_file_info(folder).type == pafs.FileType.Directory:
            self._fs.delete_dir(folder)


def _as_bytes(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """What `safetensors.torch.save` makes of CPU tensors, byte for byte, but without a copy of them: that function
    holds Python's lock while it copies, which training would wait for."""
    order = list(DTYPES)
    ordered = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    header, offset = dict[str, Any](), 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    views = [tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data for _, tensor in ordered]
    return [len(text).to_bytes(8, "little"), text, *(view for view in views if len(view))]
