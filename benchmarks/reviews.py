"""The rows of the training benchmarks: Chinese reviews with a sentiment, real ones where the data is there."""

from __future__ import annotations

import csv
import hashlib
import os
import random
from collections import defaultdict
from pathlib import Path

Review = tuple[str, str]  # text, label
LONGEST = 256  # characters, as in the hotel reviews that `lengthen` imitates
MEAN = 120


def reviews(seed: int) -> tuple[list[Review], list[Review], str]:
    """Training rows, held-out rows (md5 of the text divisible by 5), and what they are, in words."""
    folder = Path(os.environ.get("BIGMODEL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = folder / "zh_waimai_10k" / "waimai_10k.csv"
    if path.is_file():
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(row["review"].strip(), row["label"]) for row in csv.DictReader(file) if row["review"].strip()]
        what = "real reviews of a delivery service (waimai_10k)"
    else:
        rows, what = generated(12_000, seed), f"GENERATED text with the lengths of waimai_10k, which is not in {folder}"
    random.Random(seed).shuffle(rows)  # the file has one label after the other
    held_out = [row for row in rows if is_held_out(row[0])]
    return [row for row in rows if not is_held_out(row[0])], held_out, what


def is_held_out(text: str) -> bool:
    return int(hashlib.md5(text.encode()).hexdigest(), 16) % 5 == 0


def lengthen(rows: list[Review], count: int, seed: int) -> list[Review]:
    """`count` longer texts: reviews of one label strung together to lengths like those of hotel reviews, cut at 256.

    The lengths are log-normal with a mean of about 120 characters. More text of one opinion is easier to judge, so the
    accuracy says nothing about hotel reviews; the speed does.
    """
    rng = random.Random(seed)
    of_label = defaultdict(list)
    for text, label in rows:
        of_label[label].append(text)
    longer = []
    for _ in range(count):
        label = rng.choice(rows)[1]
        wanted, text = min(LONGEST, int(rng.lognormvariate(4.68, 0.7))), ""
        while len(text) < wanted:
            text += rng.choice(of_label[label]) + "。"
        longer.append((text[: max(wanted, 5)], label))
    return longer


def generated(count: int, seed: int) -> list[Review]:
    """Characters drawn by Zipf's law, a tenth of them telling the label; lengths log-normal, 24 on average."""
    rng = random.Random(seed)
    common = [chr(0x4E00 + i) for i in range(3_000)]
    weights = [1 / (i + 10) for i in range(len(common))]
    telling = {"0": common[100:160], "1": common[160:220]}
    rows = []
    for _ in range(count):
        label = "1" if rng.random() < 1 / 3 else "0"
        text = rng.choices(common, weights, k=max(2, min(LONGEST, int(rng.lognormvariate(2.8, 0.85)))))
        rows.append(("".join(rng.choice(telling[label]) if rng.random() < 0.1 else c for c in text), label))
    return rows


def write(path: Path, rows: list[Review]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
