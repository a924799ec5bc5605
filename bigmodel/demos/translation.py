"""Appointments in German words that a small grammar writes, with their English, for self-attention to translate."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEM = "appointments"
ROWS = 3_000

EXPERIMENT = """\
# The experiment of `bigmodel demo translation`. Change it, and run it again:
#   bigmodel train {yaml} --fresh
task: translation
data:
  train: {data}/appointments.csv
  source: german
  target: english
  max_length: 48
  tokenizer: {{vocab_size: 400}}
  split: {{valid: 0.05, test: 0.05}}
model: {{type: transformer, hidden_size: 64, num_hidden_layers: 2}}
optim: {{lr: 3.0e-3, warmup: 50}}
train: {{epochs: 6, batch_tokens: 1500, validate_every: 200, threads: 1, precision: fp32}}
output: {output}
"""

HONESTLY = "Nobody made these appointments. They show that the path works, not how well a model translates people."
TESTED = """\
The tested appointments come from the same grammar: a score near 100 says that the grammar was learnt, no more."""

QUESTIONS = [
    {"text": "Am Montag, dem dritten Mai, um halb vier"},
    {"text": "Am Freitag, dem einundzwanzigsten Juni, um Viertel nach zwei"},
    {"text": "Am Sonntag, dem elften Dezember, um acht Uhr"},
]
NEXT = """\
bigmodel predict {model} --text "Am Samstag, dem ersten April, um Viertel vor zwei"
bigmodel serve {model} --port 8000
bigmodel train {yaml} model.type=rnn_seq2seq output={folder}-rnn"""

DAYS = {"Montag": "Monday", "Dienstag": "Tuesday", "Mittwoch": "Wednesday", "Donnerstag": "Thursday",
        "Freitag": "Friday", "Samstag": "Saturday", "Sonntag": "Sunday"}  # fmt: skip
MONTHS = {"Januar": "January", "Februar": "February", "März": "March", "April": "April", "Mai": "May", "Juni": "June",
          "Juli": "July", "August": "August", "September": "September", "Oktober": "October", "November": "November",
          "Dezember": "December"}  # fmt: skip
HOURS = {"ein": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five", "sechs": "six",
         "sieben": "seven", "acht": "eight", "neun": "nine", "zehn": "ten", "elf": "eleven",
         "zwölf": "twelve"}  # fmt: skip
ORDINALS = {"ersten": "first", "zweiten": "second", "dritten": "third", "vierten": "fourth", "fünften": "fifth",
            "sechsten": "sixth", "siebten": "seventh", "achten": "eighth", "neunten": "ninth", "zehnten": "tenth",
            "elften": "eleventh", "zwölften": "twelfth", "zwanzigsten": "twentieth",
            "einundzwanzigsten": "twenty-first", "zweiundzwanzigsten": "twenty-second",
            "dreiundzwanzigsten": "twenty-third", "achtundzwanzigsten": "twenty-eighth"}  # fmt: skip


def write(folder: Path) -> str:
    """The demonstration's data. -> what it is"""
    file = folder / "appointments.csv"
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("german", "english"), *appointments(ROWS, seed=0)])
    return f"{ROWS:,} appointments in German and English, written by a small grammar: {file}"


def appointments(count: int, seed: int) -> list[tuple[str, str]]:
    """Different ones, in German and in English."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        day, ordinal, month = (rng.choice(list(words)) for words in (DAYS, ORDINALS, MONTHS))
        german, english = time(rng)
        there = f"Am {day}, dem {ordinal} {month}, {german}"
        found[there] = f"{english.capitalize()} on {DAYS[day]}, the {ORDINALS[ordinal]} of {MONTHS[month]}"
    return list(found.items())


def time(rng: random.Random) -> tuple[str, str]:
    """A time of day in both languages; `halb vier` is half past three."""
    hours, named = list(HOURS), [*HOURS.values()]
    i = rng.randrange(1, len(hours))
    return rng.choice([
        (f"um {hours[i]} Uhr", f"at {named[i]} o'clock"),
        (f"um halb {hours[i]}", f"at half past {named[i - 1]}"),
        (f"um Viertel nach {hours[i]}", f"at a quarter past {named[i]}"),
        (f"um Viertel vor {hours[i]}", f"at a quarter to {named[i]}"),
    ])  # fmt: skip


def shown(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Question and answer in a line."""
    return f"{question['text']}  ->  {answer['translation']}"
