"""Python's own standard library as text: a small decoder learns to write what looks like it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEM = "python"
CHARACTERS = 250_000
SEPARATOR = "# ---- the next module"

EXPERIMENT = f"""\
# The experiment of `bigmodel demo text-generation`. Change it, and run it again:
#   bigmodel train {{yaml}} --fresh
task: text-generation
data:
  train: {{data}}/python.txt
  separator: "{SEPARATOR}"
  max_length: 128
  split: {{{{by: position, valid: 0, test: 0.05}}}}
  tokenizer: {{{{type: char}}}}
model: {{{{type: transformer}}}}
optim: {{{{type: adamw, lr: 4.0e-3, betas: [0.9, 0.99], weight_decay: 0.1}}}}
train: {{{{epochs: 1, batch_size: 16, threads: 1}}}}
output: {{output}}
"""

HONESTLY = "A minute is enough to learn how Python looks, not how it works: what is written below does not run."
TESTED = "The last module was held out. Bits a byte beside n-grams say how well the model foresees it."

QUESTIONS: list[dict[str, Any]] = [
    {"text": "def ", "max_new_tokens": 40},
    {"text": "import ", "max_new_tokens": 40, "temperature": 0.8, "seed": 1},
    {"text": "    for ", "max_new_tokens": 40, "temperature": 0.8, "seed": 2},
    {"text": "class ", "max_new_tokens": 40, "stop": ["\n"]},
]
NEXT = """\
bigmodel predict {model} --text "def main("
bigmodel serve {model} --port 8000
curl -N localhost:8000/models/model/predict -d '{{"text": "def ", "stream": true}}'
bigmodel train {yaml} model.type=lstm_lm output={folder}-lstm"""


def write(folder: Path) -> str:
    """The demonstration's data. -> what it is"""
    library = Path(os.__file__).parent
    parts, size = [], 0
    for path in sorted(library.glob("*.py")):
        if size >= CHARACTERS:
            break
        text = path.read_text("utf-8")[: CHARACTERS - size]
        parts.append(text.rstrip("\n") + "\n")
        size += len(text)
    (folder / "python.txt").write_text(f"{SEPARATOR}\n".join(parts), "utf-8")
    return f"{size:,} characters of {len(parts)} modules of Python's standard library: {folder / 'python.txt'}"


def shown(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Question and answer in a line."""
    return f"{question['text']!r} -> {answer['text']!r}"
