"""Data of any size for benchmarks/beyond_memory.py: texts, a table, a folder of images; each row is another, and the
label can be learnt."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 10_000  # rows made together
CLASSES = ("left", "right")
SIDE = 128  # pixels


def write_texts(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Reviews of phrases, the words by Zipf's law, with a number of their own, so that no two are the same and the
    words do not end. A third of the phrases tells the label."""
    rng = np.random.default_rng(seed)
    syllables = np.array(
        [c + v for c in "b c d f g h k l m n p r s t v w ch sh th st".split() for v in "a e i o u".split()]
    )
    words = np.array(sorted({"".join(rng.choice(syllables, size)) for size in rng.integers(1, 5, 60_000)}), object)
    rng.shuffle(words)
    chances = 1 / (np.arange(len(words)) + 2.7)
    drawn = rng.choice(words, (30_000, 6), p=chances / chances.sum())
    phrases = np.array([" ".join(phrase) for phrase in drawn], object)
    number = 0

    def some() -> Iterator[str]:
        nonlocal number
        sizes = np.clip(rng.lognormal(2.4, 0.6, AT_ONCE), 1, 60).astype(int)
        labels, chosen = rng.integers(0, 2, len(sizes)), rng.integers(0, len(phrases) // 3, sizes.sum())
        chosen += np.repeat(labels + 1, sizes) * (rng.random(len(chosen)) < 1 / 3) * (len(phrases) // 3)
        ends = np.cumsum(sizes)
        for start, end, label in zip(ends - sizes, ends, labels, strict=True):
            number += 1
            yield f'"{". ".join(phrases[chosen[start:end]].tolist())}. No. {number}",{label}\n'

    with open(path, "w", encoding="utf-8", newline="") as file:
        written = file.write("text,label\n")
        while written < num_bytes:
            written += file.write("".join(some()))


def write_table(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Twelve numbers, some missing, four categories, a date and a truth. `price` follows from some of them, with noise,
    and `dear` is whether it is above the middle."""
    rng = np.random.default_rng(seed)
    numbers, words = [f"number {i}" for i in range(12)], [f"word {i}" for i in range(4)]
    days = np.datetime_as_string(np.datetime64("2000-01-01") + np.arange(8000))

    def some() -> Iterator[str]:
        values = rng.standard_normal((len(numbers), AT_ONCE))
        kinds = rng.integers(0, [[3], [10], [50], [200]], (len(words), AT_ONCE))
        price = values[:3].sum(0) + (kinds[0] == 1) * 2 + rng.standard_normal(AT_ONCE)
        cells = [_written(value, rng.random(AT_ONCE) < 0.02) for value in values]
        cells += [np.char.mod(f"{name[-1]}-%d", kind).tolist() for name, kind in zip(words, kinds, strict=True)]
        cells += [rng.choice(days, AT_ONCE).tolist(), rng.choice(["yes", "no"], AT_ONCE).tolist()]
        cells += [np.char.mod("%.4f", price).tolist(), np.where(price > 0.67, "dear", "cheap").tolist()]
        return (",".join(row) + "\n" for row in zip(*cells, strict=True))

    with open(path, "w", encoding="utf-8", newline="") as file:
        written = file.write(",".join([*numbers, *words, "day", "truth", "price", "dear"]) + "\n")
        while written < num_bytes:
            written += file.write("".join(some()))


def _written(values: NDArray[Any], missing: NDArray[np.bool_]) -> list[str]:
    return [
        "" if gone else word for word, gone in zip(np.char.mod("%.5f", values).tolist(), missing.tolist(), strict=True)
    ]


def write_images(folder: Path, num_bytes: int, seed: int = 0) -> None:
    """Noise, brighter on the side that the class names; hardly compressed, a file of some 50 kB each."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    written = number = 0
    while written < num_bytes:
        label = CLASSES[number % 2]
        pixels = rng.integers(0, 200, (SIDE, SIDE, 3), np.uint8)
        pixels[:, : SIDE // 2] += 50 * (label == "left")
        pixels[:, SIDE // 2 :] += 50 * (label == "right")
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", compress_level=0)
        path = folder / label / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_bytes(out.getvalue())
        number += 1
