"""What a report says of translations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from bigmodel.evaluation import bleu
from bigmodel.evaluation.evidence import Evidence


def analyse(evidence: Evidence) -> dict[str, Any]:
    return {"signatures": bleu.signatures()}


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    for name, value in report["metrics"].items():
        yield Text(f"{name} {value:.4f}")
