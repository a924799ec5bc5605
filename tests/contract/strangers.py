"""What somebody without bigmodel does with a model directory: nothing is imported here but transformers.

As a script it reads {"name": {"task": ..., "path": ..., "rows": [...]}} and prints {"name": answers}.
"""

from __future__ import annotations

import io
import json
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any


def classify_texts(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    """Label and score of each text. `truncation` cuts where the model directory says: not the pipeline's default."""
    from transformers import pipeline

    classify = pipeline("text-classification", path, truncation=True, **trust)
    return [dict(classify(row["text"])[0]) for row in rows]


def read_tables(path: str, rows: list[dict[str, Any]], **trust: bool) -> tuple[Any, Any]:
    """Logits of each row, and the config that says what they are of."""
    from transformers import AutoFeatureExtractor, AutoModel

    processor = AutoFeatureExtractor.from_pretrained(path, **trust)
    model = AutoModel.from_pretrained(path, **trust).eval()
    return model(**processor(rows)).logits, model.config


def classify_tables(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    logits, config = read_tables(path, rows, **trust)
    scores, best = logits.softmax(-1).max(-1)
    return [
        {"label": config.id2label[label], "score": score}
        for label, score in zip(best.tolist(), scores.tolist(), strict=True)
    ]


def predict_numbers(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    logits, _ = read_tables(path, rows, **trust)
    return [{"prediction": number} for number in logits[:, 0].tolist()]


def classify_images(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    """Label and score of each image: bytes, or base64."""
    from PIL import Image
    from transformers import pipeline

    classify = pipeline("image-classification", path, **trust)
    files = [image if isinstance(image := row["image"], bytes) else b64decode(image) for row in rows]
    return [dict(classify(Image.open(io.BytesIO(file)).convert("RGB"))[0]) for file in files]


def translate(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    """As generation_config.json says."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **trust)
    model = AutoModelForSeq2SeqLM.from_pretrained(path, **trust)
    asked = tokenizer([row["text"] for row in rows], truncation=True, padding=True, return_tensors="pt")
    written = model.generate(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"])
    return [{"translation": text} for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def write_on(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    """What comes after each text, greedily: all of them together, padded on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **trust)
    model = AutoModelForCausalLM.from_pretrained(path, **trust)
    asked = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    written = model.generate(**asked, max_new_tokens=64)[:, asked["input_ids"].shape[1] :]
    return [{"text": text} for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


USES = {
    "text-generation": write_on,
    "translation": translate,
    "text-classification": classify_texts,
    "image-classification": classify_images,
    "tabular-classification": classify_tables,
    "tabular-regression": predict_numbers,
}


def main() -> None:
    sys.modules["bigmodel"] = None  # type: ignore[assignment]  # as where it is not installed
    requests = json.load(sys.stdin)
    answers = {
        name: USES[asked["task"]](asked["path"], asked["rows"], trust_remote_code=any(Path(asked["path"]).glob("*.py")))
        for name, asked in requests.items()
    }
    assert not any(name.startswith("bigmodel.") for name in sys.modules)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
