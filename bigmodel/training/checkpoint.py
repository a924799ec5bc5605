"""Checkpoints are published, not written: each save is a new folder whose manifest, with sizes and hashes, comes last.
What has no valid manifest does not exist. The same protocol serves local disks and object storage (any pyarrow
filesystem).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import safetensors.torch
from torch import Tensor

from bigmodel.errors import ResourceError

MANIFEST = "manifest.json"


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
        self._readonly = readonly
        if "://" in root:
            self._fs, self._root = pafs.FileSystem.from_uri(root)
        else:
            self._fs, self._root = pafs.LocalFileSystem(), os.path.abspath(root)

    def names(self, prefix: str) -> list[str]:
        """Saves whose manifest stands, oldest first; whether the files are whole shows when one is loaded."""
        try:
            found = self._fs.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        except NotADirectoryError:  # a file is in the way: saving will say so
            return []
        folders = [info.base_name for info in found if info.type == pafs.FileType.Directory]
        manifests = self._fs.get_file_info([f"{self._root}/{name}/{MANIFEST}" for name in folders])
        there = [name for name, info in zip(folders, manifests, strict=True) if info.type == pafs.FileType.File]
        return sorted(name for name in there if name.startswith(prefix))

    def save(self, name: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Publish a save. One that is published already is left as it is; an unfinished one is replaced."""
        folder = f"{self._root}/{name}"
        if self._readonly or name in self.names(name):
            return
        self._remove(folder)
        files = {f"{group}.safetensors": safetensors.torch.save(dict(named)) for group, named in tensors.items()}
        files["state.json"] = json.dumps(state).encode()
        manifest = {
            file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()
        }
        try:
            self._fs.create_dir(folder, recursive=True)
            for file, data in files.items():
                self._write(f"{folder}/{file}", data)
            self._write(f"{folder}/{MANIFEST}.part", json.dumps(manifest).encode())
            self._fs.move(f"{folder}/{MANIFEST}.part", f"{folder}/{MANIFEST}")
        except OSError as e:
            self._remove(folder)
            raise ResourceError(f"{folder}: the checkpoint cannot be written: {e}. The one before it is whole.") from e

    def load(self, name: str) -> Checkpoint | None:
        """The save, verified against its manifest; None if it is damaged."""
        folder = f"{self._root}/{name}"
        try:
            manifest = json.loads(self._read(f"{folder}/{MANIFEST}"))
            files = {file: self._read(f"{folder}/{file}") for file in manifest}
        except (OSError, ValueError):
            return None
        if any(hashlib.sha256(data).hexdigest() != manifest[file]["sha256"] for file, data in files.items()):
            return None
        state = json.loads(files.pop("state.json"))
        groups = {file.removesuffix(".safetensors"): safetensors.torch.load(data) for file, data in files.items()}
        return Checkpoint(name, groups, state)

    def latest(self, prefix: str) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole save, and the names of damaged newer ones that were passed over."""
        damaged: list[str] = []
        for name in reversed(self.names(prefix)):
            if (checkpoint := self.load(name)) is not None:
                return checkpoint, damaged
            damaged.append(name)
        return None, damaged

    def prune(self, prefix: str, keep: int) -> None:
        """Delete all but the newest `keep`. The manifest goes first, so that no half-deleted save can be loaded."""
        if not self._readonly:
            for name in self.names(prefix)[:-keep]:
                self._remove(f"{self._root}/{name}")

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_file(path) as file:
            data: bytes = file.read()
        return data

    def _write(self, path: str, data: bytes) -> None:
        if not isinstance(self._fs, pafs.LocalFileSystem):
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        with open(
            path, "wb"
        ) as file:  # on the disk, not only handed to the system, before the manifest says it is there
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _remove(self, folder: str) -> None:
        if self._fs.get_file_info(f"{folder}/{MANIFEST}").type == pafs.FileType.File:
            self._fs.delete_file(f"{folder}/{MANIFEST}")
        if self._fs.get_file_info(folder).type == pafs.FileType.Directory:
            self._fs.delete_dir(folder)
