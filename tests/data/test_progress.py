"""What is said while data is prepared, and what is remembered of large files."""

import os
import shutil
import time
from pathlib import Path

import pytest

from bigmodel.data import digests, progress
from bigmodel.data.files import blocks, digest, size
from bigmodel.data.images import read_images


def test_progress_tells_bytes_and_rows_of_all_there_are(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    said: list[str] = []
    with progress.following(progress.Progress(said.append, "reading", total_bytes=4_000_000)):
        progress.advance(num_bytes=1_000_000)
        progress.advance(num_rows=2_000)
    assert said[0].startswith("reading: 1.0 MB of 4.0 MB (25%), 0 rows, ")
    assert said[1].startswith("reading: 1.0 MB of 4.0 MB (25%), 2,000 rows, ")
    progress.advance(num_rows=1)
    assert len(said) == 2, "nobody follows any more"


def test_reading_a_file_tells_its_stored_bytes_once(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    (tmp_path / "a.txt").write_bytes(b"x" * 3_000_000)
    said: list[str] = []
    with progress.following(progress.Progress(said.append, "reading", total_bytes=3_000_000)):
        assert sum(map(len, blocks(str(tmp_path / "a.txt")))) == 3_000_000
        list(blocks(str(tmp_path / "a.txt"), told=False))
    assert "3.0 MB of 3.0 MB (100%)" in said[-1] and len(said) == 3


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.zip"])
def test_reading_an_archive_tells_its_stored_bytes_and_not_what_is_in_them(tmp_path, monkeypatch, name):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    for i in range(40):
        (tmp_path / f"pets/cats/{i}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"pets/cats/{i}.png").write_bytes(os.urandom(20_000) + bytes(200_000))
    kind = {"pets.tar": "tar", "pets.tar.gz": "gztar", "pets.zip": "zip"}[name]
    file = shutil.make_archive(str(tmp_path / "pets"), kind, tmp_path / "pets")
    said: list[str] = []
    with progress.following(progress.Progress(said.append, "reading", size(file))):
        assert len(list(read_images(file))) == 40
    told = [float(line.split("(")[1].split("%")[0]) for line in said]
    assert told == sorted(told) and told[-1] > 98
    assert all(abs(part - 100 * i / len(told)) < 10 for i, part in enumerate(told, 1))


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(digests, "LARGE", 1_000)
    file = tmp_path / "large.csv"
    file.write_bytes(b"x" * 2_000)
    long_ago = time.time() - 60
    os.utime(file, (long_ago, long_ago))
    return file


def test_a_large_file_is_read_once_until_it_changes(large, tmp_path, monkeypatch):
    cache, read = tmp_path / "cache", []
    monkeypatch.setattr(digests, "digest", lambda source: read.append(source) or digest(source))
    first = digests.digests([str(large)], cache)
    assert digests.digests([str(large)], cache) == first == [digest(str(large))]
    assert len(read) == 1
    large.write_bytes(b"y" * 2_000)
    assert digests.digests([str(large)], cache) == [digest(str(large))] != first
    assert digests.digests([str(large)], cache) == [digest(str(large))]
    assert len(read) == 3, "what was written a moment ago may be written again unnoticed"


def test_a_large_folder_is_read_once_until_a_file_in_it_changes(large, tmp_path, monkeypatch):
    cache, read, folder = tmp_path / "cache", [], tmp_path / "images"
    monkeypatch.setattr(digests, "digest", lambda source: read.append(source) or digest(source))
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(large, folder / name)
    first = digests.digests([str(folder)], cache)
    assert digests.digests([str(folder)], cache) == first == [digest(str(folder))]
    assert len(read) == 1
    (folder / "a" / "2.png").rename(folder / "b" / "2.png")
    assert digests.digests([str(folder)], cache) == [digest(str(folder))] != first
    assert len(read) == 2


def test_a_damaged_memory_of_digests_is_no_harm(large, tmp_path):
    (tmp_path / "digests.json").write_text('{"a": 3}')
    assert digests.digests([str(large)], tmp_path) == [digest(str(large))]
