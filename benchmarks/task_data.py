"""The rows of tasks.py: real ones of the folder that BIGMODEL_DATA names, where they are there, else those of the
demonstrations or written by chance."""

from __future__ import annotations

import csv
import gzip
import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

Pairs = list[tuple[Any, Any]]
HELD_OUT = 5  # a fifth as many rows as are trained on, at most
MOST_HELD_OUT = 500
WINDOW = 256  # characters of one row of text-generation
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
]  # fmt: skip


def real(*parts: str) -> Path | None:
    """A file of the real data, if it is there."""
    folder = Path(os.environ.get("BIGMODEL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = folder.joinpath(*parts)
    return path if path.is_file() else None


def write(task: str, folder: Path, rows: int, seed: int) -> str:
    """`rows` rows to train on and some held out, in files of the folder. -> what they are"""
    held_out = min(MOST_HELD_OUT, max(rows // HELD_OUT, 32))
    num_train, what = WRITERS[task](folder, rows, held_out, seed)
    return f"{what}: {num_train:,} to train on"


def parted(rows: Pairs, held_out: int, seed: int, count: int) -> tuple[Pairs, Pairs]:
    random.Random(seed).shuffle(rows)
    return rows[held_out : held_out + count], rows[:held_out]


# ---- images


def images(folder: Path, rows: int, held_out: int, seed: int) -> tuple[int, str]:
    """Bytes of PNG files and their labels, as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    archive = real("img_mnist_png", "mnist_png.tar.xz")
    found = list(mnist(archive)) if archive else list(islice(squares(seed), rows + held_out))
    for name, part in zip(("train", "valid"), parted(found, held_out, seed, rows), strict=True):
        pictures, labels = zip(*part, strict=True)
        parquet.write_table(pa.table({"image": pictures, "label": labels}), folder / f"{name}.parquet")
    return min(rows, len(found) - held_out), "MNIST" if archive else "GENERATED images of 28 by 28"


def mnist(archive: Path) -> Iterator[tuple[bytes, str]]:
    with tarfile.open(archive) as files:
        for member in files:
            parts = member.name.split("/")
            if parts[0] == "train" and member.name.endswith(".png"):
                content = files.extractfile(member)
                assert content is not None
                yield content.read(), parts[1]


def squares(seed: int) -> Iterator[tuple[bytes, str]]:
    """A bright square in noise; the label is its size."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    while True:
        label = int(rng.integers(10))
        pixels = rng.integers(0, 128, (28, 28), dtype=np.uint8)
        top, left = rng.integers(0, 28 - 5 - label, 2)
        pixels[top : top + 5 + label, left : left + 5 + label] += 100
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        yield file.getvalue(), str(label)


# ---- texts


def translations(folder: Path, rows: int, held_out: int, seed: int) -> tuple[int, str]:
    files = [real("mt_multi30k", f"train.{language}.gz") for language in ("de", "en")]
    if None in files:
        from bigmodel.demos import translation

        translation.write(folder)
        with open(folder / "appointments.csv", encoding="utf-8", newline="") as file:
            found = [(row["german"], row["english"]) for row in csv.DictReader(file)]
        what = "WRITTEN appointments, German to English"
    else:
        texts = [gzip.open(file, "rt", encoding="utf-8").read().splitlines() for file in files if file]
        found, what = list(zip(*texts, strict=True)), "Multi30k, German to English"
    for name, part in zip(("train", "valid"), parted(found, held_out, seed, rows), strict=True):
        write_csv(folder / f"{name}.csv", ["source", "target"], part)
    return min(rows, len(found) - held_out), what


def texts(folder: Path, rows: int, held_out: int, seed: int) -> tuple[int, str]:
    """One document; its end is held out."""
    path = real("lm_tinyshakespeare", "input.txt")
    if path is None:
        from bigmodel.demos import text_generation

        text_generation.write(folder)
        text, what = (folder / "python.txt").read_text("utf-8"), "Python's standard library"
    else:
        text, what = path.read_text("utf-8"), "Tiny Shakespeare"
    size, end = rows * WINDOW, held_out * WINDOW
    (folder / "train.txt").write_text(text[: min(size, len(text) - end)], "utf-8")
    (folder / "valid.txt").write_text(text[-end:], "utf-8")
    return min(size, len(text) - end) // WINDOW, f"{what}, in windows of {WINDOW} characters"


# ---- tables


def tables(folder: Path, rows: int, held_out: int, seed: int) -> tuple[int, str]:
    path = real("tab_adult", "adult-train.csv")
    if path is None:
        found, what = list(islice(people(seed), rows + held_out)), "GENERATED rows of 14 columns"
    else:
        with open(path, encoding="utf-8", newline="") as file:
            found = [row for row in csv.reader(file, skipinitialspace=True) if len(row) == len(ADULT)]
        what = "Adult (census income)"
    for name, part in zip(("train", "valid"), parted(found, held_out, seed, rows), strict=True):
        write_csv(folder / f"{name}.csv", ADULT, part)
    return min(rows, len(found) - held_out), what


def people(seed: int) -> Iterator[Any]:
    rng = random.Random(seed)
    while True:
        age, years, hours = rng.randint(17, 90), rng.randint(1, 16), rng.randint(10, 80)
        words = [rng.choice("abcdefgh") for _ in range(8)]
        weight, gain, loss = rng.randint(10_000, 900_000), rng.randint(0, 9_999), rng.randint(0, 3_000)
        label = "yes" if age / 90 + years / 16 + rng.gauss(0, 0.3) > 1.4 else "no"
        yield [age, words[0], weight, words[1], years, *words[2:7], gain, loss, hours, words[7], label]


def write_csv(path: Path, names: list[str], rows: Pairs) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])


WRITERS: dict[str, Callable[[Path, int, int, int], tuple[int, str]]] = {
    "image-classification": images,
    "translation": translations,
    "text-generation": texts,
    "tabular-classification": tables,
}
