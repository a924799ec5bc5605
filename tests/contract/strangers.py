"""What somebody without bigmodel does with a model directory: nothing is imported here but transformers.

As a script it reads {"name": {"task": ..., "path": ..., "rows": [...]}} and prints {"name": answers}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def classify_texts(path: str, rows: list[dict[str, Any]], **trust: bool) -> list[dict[str, Any]]:
    """Label and score of each text. `truncation` cuts where the model directory says: not the pipeline's default."""
    from transformers import pipeline

    classify = pipeline("text-classification", path, truncation=True, **trust)
    return [dict(classify(row["text"])[0]) for row in rows]


USES = {"text-classification": classify_texts}


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
