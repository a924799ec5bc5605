"""Images on s3://, as a real server speaks it: folders per class, archives and parts of them, tables of paths."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigmodel import pipeline
from bigmodel.data import files
from bigmodel.data.clean import Placed, clean, read_options
from bigmodel.data.prepare import prepare
from bigmodel.data.record import Bad
from bigmodel.errors import DataError
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import image_classification
from bigmodel.training.fit import fit

Put = Callable[[str, bytes], None]
PETS = ("cats/a b.png", "cats/é#1.png", "dogs/more/x%20y.png", "dogs/2.png")


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((6, 6), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


IMAGES = {name: picture(40 * number) for number, name in enumerate(PETS)}


@pytest.fixture(scope="module")
def put(s3: str) -> Put:
    from pyarrow.fs import FileSystem

    fs, root = FileSystem.from_uri(s3)

    def put(name: str, data: bytes) -> None:
        with fs.open_output_stream(f"{root}/{name}", compression=None) as file:
            file.write(data)

    return put


@pytest.fixture(scope="module")
def bucket(s3: str, put: Put) -> str:
    for name, data in IMAGES.items():
        put(f"pets/{name}", data)
    put("pets/cats/.hidden.png", b"")
    put("pets/cats/notes.md", b"")
    put("flat/1.png", picture(0))
    put("empty/notes.md", b"")
    tarred, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:xz") as tar, zipfile.ZipFile(zipped, "w") as archive:
        for name, data in IMAGES.items():
            member = tarfile.TarInfo(f"train/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            archive.writestr(f"train/{name}", data)
    put("pets.tar.xz", tarred.getvalue())
    put("pets.zip", zipped.getvalue())
    return s3


def rows(source: str, **data: Any) -> list[Placed | Bad]:
    config, task = DataConfig(train=source, **data), image_classification
    (found,) = files.resolve(source)
    return list(clean(found, task, task.columns(config), read_options(config)))  # type: ignore[arg-type]


def told(items: list[Placed | Bad]) -> list[tuple[str, str, bytes]]:
    return [(item.source, item.row["label"], item.row["image"]) for item in items if isinstance(item, Placed)]


@pytest.mark.parametrize("where", ["pets", "pets/", "pets.tar.xz", "pets.tar.xz/train", "pets.zip", "pets.zip/train"])
def test_a_folder_of_class_folders_and_an_archive_are_one_source_each(bucket: str, where: str) -> None:
    found, source = told(rows(f"{bucket}/{where}")), f"{bucket}/{where.rstrip('/')}"
    inside = "train/" if where in ("pets.tar.xz", "pets.zip") else ""
    expected = [(f"{source}/{inside}{name}", name.split("/")[-2], data) for name, data in IMAGES.items()]
    assert sorted(found) == sorted(expected)


def test_a_table_on_s3_names_images_beside_it_or_in_full(bucket: str, put: Put) -> None:
    names = ["../pets/cats/a b.png", f"{bucket}/pets/dogs/2.png", "none.png", "/etc/hosts", "http://here/1.png"]
    put("tables/pets.csv", "\n".join(["file,kind", *(f"{name},cat" for name in names)]).encode())
    beside, full, *bad = rows(f"{bucket}/tables/pets.csv", image="file", label="kind")
    assert isinstance(beside, Placed) and beside.row == {"image": IMAGES["cats/a b.png"], "label": "cat"}
    assert isinstance(full, Placed) and full.row["image"] == IMAGES["dogs/2.png"]
    reasons = [item.reason for item in bad if isinstance(item, Bad)]
    for reason, words in zip(reasons, ("tables/none.png", "from the root", "an address is not followed"), strict=True):
        assert words in reason


def test_a_table_here_names_images_on_s3(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "pets.csv").write_text(f"file,kind\n{bucket}/pets/dogs/2.png,dog\n")
    assert [data for _, _, data in told(rows(str(tmp_path / "pets.csv"), image="file", label="kind"))] == [
        IMAGES["dogs/2.png"]
    ]


@pytest.mark.parametrize(
    ("where", "words"), [("flat", "name that FOLDER"), ("empty", "no data file in this folder"), ("none", "no file")]
)
def test_what_is_no_folder_of_class_folders_is_one_message(bucket: str, where: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rows(f"{bucket}/{where}")


def test_a_run_trains_on_images_of_s3_and_prepares_them_again_only_where_they_changed(
    bucket: str, put: Put, tmp_path: Path
) -> None:
    for number in range(12):
        put(f"shades/{'dark' if number % 2 else 'light'}/{number}.png", picture(10 * number))
    lines = [f"../shades/dark/{n}.png,dark" if n % 2 else f"../shades/light/{n}.png,light" for n in range(12)]
    put("tables/shades.csv", "\n".join(["file,kind", *lines]).encode())

    def asked(name: str, **data: Any) -> Experiment:
        return Experiment.model_validate(
            {
                "task": "image-classification",
                "data": {"train": f"{bucket}/{name}", "split": {"valid": 0.3, "test": 0}, "max_bad": 0.5, **data},
                "model": {"type": "cnn", "hidden_sizes": [4], "depths": [1]},
                "train": {"epochs": 1, "precision": "fp32", "threads": 1},
                "output": str(tmp_path / name / "run"),
            }
        )

    for experiment in (asked("tables/shades.csv", image="file", label="kind"), asked("shades")):
        run = fit(experiment)
        assert not prepare(experiment).fresh
        put("shades/dark/1.png", picture(250) + b" " * len(experiment.output))
        assert prepare(experiment).fresh
    answers = tmp_path / "answers.jsonl"
    pipeline.predict(run.model, [f"{bucket}/pets/dogs/2.png"], answers)
    assert "pets/dogs/2.png" in answers.read_text()
