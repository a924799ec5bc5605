"""Handwritten digits that come with scikit-learn, for a small residual network to read."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEM = "digits"
ASKED = 5

EXPERIMENT = """\
# The experiment of `bigmodel demo image-classification`. Change it, and run it again:
#   bigmodel train {yaml} --fresh
task: image-classification
data:
  train: {data}/digits          # a folder for each digit
  split: {{valid: 0.1, test: 0.1}}
  augment: {{crop: 0.1}}          # no flip: it would change a digit
model: {{type: cnn, hidden_sizes: [16, 32, 64]}}
optim: {{lr: 3.0e-3}}
train: {{epochs: 12, batch_size: 32, threads: 1, precision: fp32}}
output: {output}
"""

HONESTLY = "They are real, 8 by 8 pixels, and easy. They show that the path works, not how good a model is on photos."
TESTED = "The test digits are of the same hands as the others: new hands are harder."
NEXT = """\
bigmodel predict {model} {folder}/digits/7
bigmodel evaluate {model} {folder}/digits
bigmodel serve {model} --port 8000
bigmodel train {yaml} model.type=vit output={folder}-vit"""


def _digits() -> list[tuple[str, bytes]]:
    """Label and PNG of every digit (Alpaydin & Kaynak, 1998, UCI, as scikit-learn has them)."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    data, found = load_digits(), []
    for image, label in zip(data.images, data.target, strict=True):
        out = io.BytesIO()
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(out, "PNG")
        found.append((str(label), out.getvalue()))
    return found


def write(folder: Path) -> str:
    """The demonstration's data. -> what it is"""
    digits = _digits()
    for number, (label, png) in enumerate(digits):
        (folder / "digits" / label).mkdir(parents=True, exist_ok=True)
        (folder / "digits" / label / f"{number:04d}.png").write_bytes(png)
    return f"{len(digits):,} handwritten digits from scikit-learn: {folder / 'digits'}"


def __getattr__(name: str) -> Any:
    """QUESTIONS are made when they are asked for: scikit-learn takes a second to import."""
    if name != "QUESTIONS":
        raise AttributeError(name)
    return [{"image": base64.b64encode(png).decode()} for _, png in _digits()[:ASKED]]


def shown(question: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Question and answer in a line."""
    return f"{answer['label']:>8}  {answer['score']:.3f}  a PNG of {len(question['image'])} characters in base64"
