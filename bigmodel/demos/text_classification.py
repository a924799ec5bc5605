"""Reviews that a small grammar writes, for a recurrent network to judge."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel.demos import grammar

STEM = "reviews"
ROWS, NEW_ROWS = 5_000, 500
TRAINING_SEED, NEW_SEED = 0, 1

EXPERIMENT = """\
# The experiment of `bigmodel demo`. Change it, and run it again:
#   bigmodel train {yaml} --fresh
# or give another value for this once, and keep what is there:
#   bigmodel train {yaml} model.type=gru output={folder}-gru
task: text-classification
data:
  train: {data}/reviews.csv
  text: review
  label: label
  split: {{valid: 0.1, test: 0.1}}
model:
  type: lstm
  hidden_size: 100
optim: {{type: adam, lr: 3.0e-3}}
train: {{epochs: 5, batch_size: 32, threads: 1, precision: fp32}}   # one thread: small batches gain nothing from more
output: {output}
"""

HONESTLY = "Nobody meant them. They show that the path works, not how good a model is on what people write."
TESTED = """\
The test reviews come from the same grammar as the others: the accuracy is that of an exercise. Of every
hundred labels two are wrong on purpose: the worst mistakes above show how such rows are found."""

QUESTIONS = [
    {"text": "The screen is superb and I love the keyboard."},
    {"text": "The room was anything but clean, and the waiter was rude."},
    {"text": "Although the soup was cold, the staff was wonderful."},
    {"text": "The staff was wonderful, although the soup was awful."},
    {"text": "The lamp does its job."},
]
NEXT = """\
bigmodel predict {model} --text "The staff was wonderful, although the soup was awful." --explain
bigmodel evaluate {model} {folder}/new.csv
bigmodel predict {model} {folder}/new.csv --output answers.jsonl
bigmodel serve {model} --port 8000
bigmodel train {yaml} model.type=textcnn output={folder}-textcnn"""


def write(folder: Path) -> str:
    """The demonstration's data. -> what it is"""
    write_reviews(folder / "reviews.csv", ROWS, TRAINING_SEED)
    write_reviews(folder / "new.csv", NEW_ROWS, NEW_SEED)
    return f"{ROWS:,} reviews, written by a small grammar: {folder / 'reviews.csv'}"


def write_reviews(path: Path, count: int, seed: int) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("product", "review", "label"), *grammar.reviews(count, seed)])


def shown(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Question and answer in a line."""
    return f"{answer['label']:>8}  {answer['score']:.3f}  {question['text']}"
