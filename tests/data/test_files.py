"""Which files are meant: a path, a list, a glob, a folder, object storage."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from bigmodel.data.files import digest, images_below, resolve
from bigmodel.data.record import ReadOptions, Record
from bigmodel.data.sources import open_rows
from bigmodel.errors import DataError

CSV = b"text,label\nhello,1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "c.jsonl.gz", "notes.md", ".hidden.csv", "_SUCCESS.csv", "more/d.csv", "a[1].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CSV)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("{}/a.csv", ["a.csv"]),
        ("file://{}/a.csv", ["a.csv"]),
        ("{}", ["a.csv", "a[1].csv", "b.csv", "c.jsonl.gz"]),
        ("{}/", ["a.csv", "a[1].csv", "b.csv", "c.jsonl.gz"]),
        ("{}/?.csv", ["a.csv", "b.csv"]),
        ("{}/**/*.csv", ["_SUCCESS.csv", "a.csv", "a[1].csv", "b.csv", "more/d.csv"]),
        ("{}/a[1].csv", ["a[1].csv"]),
        (["{}/b.csv", "{}/a.csv", "{}/?.csv"], ["a.csv", "b.csv"]),
    ],
)
def test_a_path_a_glob_a_folder_and_a_list_name_files(spec: str | list[str], names: list[str], folder: Path) -> None:
    asked = spec.format(folder) if isinstance(spec, str) else [part.format(folder) for part in spec]
    assert [os.path.relpath(file, folder) for file in resolve(asked)] == names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}/b.cvs", "b.cvs: no such file. Did you mean .*/b.csv"),
        ("{}/zzz", r"no such file. Data files in .*: a.csv, a\[1\].csv"),
        ("{}/nowhere/a.csv", "no such file: there is no folder .*nowhere"),
        ("{}/*.parquet", "no file matches"),
        ("{}/empty", "no data file in this folder .*It is empty"),
        ("{}/only", "no data file in this folder .*It has: readme"),
        ("{}/pipe", "is not a regular file"),
        ("ftp9://host/a.csv", "no file system is called 'ftp9'. Known: "),
        ("https://host/a.csv", "http is not read. Download the file"),
        ([], "no data files named"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(spec: str | list[str], words: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "only").mkdir()
    (folder / "only/readme").write_text("")
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError, match=words):
        resolve(spec.format(folder) if isinstance(spec, str) else spec)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.csv")).write_bytes(CSV)
    with pytest.raises(DataError, match=r"caf\\xe9.csv: the name of this file is not UTF-8. Rename it"):
        resolve(str(tmp_path))


def read(source: str) -> list[object]:
    _, rows = open_rows(source, ReadOptions())
    return [row.values if isinstance(row, Record) else row for row in rows]


def test_any_file_system_of_fsspec_is_read() -> None:
    with fsspec.open("memory://test-files/a.csv", "wb") as file:
        file.write(CSV)
    with fsspec.open("memory://test-files/b.csv.gz", "wb") as file:
        file.write(gzip.compress(CSV))
    files = resolve("memory://test-files")
    assert files == ["memory://test-files/a.csv", "memory://test-files/b.csv.gz"]
    assert files == resolve("memory://test-files/*.csv*")
    assert [read(file) for file in files] == [[{"text": "hello", "label": "1"}]] * 2
    with pytest.raises(DataError, match="memory://test-files/none.csv: no file matches"):
        resolve("memory://test-files/none.csv")


def test_the_hub_out_of_reach_is_one_line() -> None:
    code = (
        "from bigmodel.data.files import resolve\nfrom bigmodel.errors import DataError\n"
        "try: resolve('hf://datasets/nobody/nothing/train.csv')\nexcept DataError as error: print(error)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"hf://datasets/nobody/nothing/train.csv: cannot be read: .*offline.*\n", done.stdout), done


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("gone.csv")
    for use in (resolve, digest):
        with pytest.raises(DataError, match="a.csv: is a link to gone.csv, which does not exist"):
            use(str(tmp_path / "a.csv"))


# ---- S3, as a real server speaks it


@pytest.fixture(scope="module")
def bucket(s3: str) -> str:
    from pyarrow.fs import FileSystem

    fs, root = FileSystem.from_uri(s3)
    for name, data in {"d/a.csv": CSV, "d/b.csv.gz": gzip.compress(CSV), "d/notes.md": b"x"}.items():
        with fs.open_output_stream(f"{root}/{name}", compression=None) as file:
            file.write(data)
    return s3


@pytest.mark.parametrize("spec", ["/d", "/d/*.csv*", "/*/*.csv*"])
def test_s3_is_read_through_arrow(spec: str, bucket: str) -> None:
    files = resolve(bucket + spec)
    assert files == [f"{bucket}/d/a.csv", f"{bucket}/d/b.csv.gz"]
    assert [read(file) for file in files] == [[{"text": "hello", "label": "1"}]] * 2


def test_an_object_of_s3_has_the_digest_of_the_local_file(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    assert digest(f"{bucket}/d/a.csv") == digest(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("spec", ["/d/none.csv", "/none/*.csv", "-none/a.csv"])
def test_what_is_not_in_s3_is_one_message(spec: str, bucket: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"{bucket}{spec}: no file matches")):
        resolve(bucket + spec)


def test_a_link_to_itself_is_no_folder(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    assert images_below(str(tmp_path)) == ["a.png"]
