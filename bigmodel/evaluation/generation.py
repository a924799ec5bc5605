"""What a report says of a language model: how well it predicts texts it has not seen, beside counts of n-grams.

    analyse   answers and rows -> the report's keys of this kind of task
    render    those keys -> what a person reads

The interval is a bootstrap over the rows, blocks of some thousand characters: those of one text are alike, so it is
narrower than it would be over other texts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from bigmodel.evaluation import ngrams
from bigmodel.evaluation.evidence import Evidence
from bigmodel.evaluation.layout import excerpt, heading, near, table
from bigmodel.evaluation.metrics import Floats, bootstrap_interval

WORST, SAMPLES = 10, 3
PROMPT = 80
"""Characters of a tested row that a sample goes on from."""
SAMPLED = {"max_new_tokens": 120, "temperature": 0.8, "top_p": 0.95}


def analyse(evidence: Evidence) -> dict[str, Any]:
    nats, tokens, num_bytes = (
        np.array([answer[name] for answer in evidence.answers], np.float64)
        for name in ("nats", "num_targets", "num_bytes")
    )
    evidence.refuse_broken(nats, "the model's loss on this row is no number")
    return {
        "intervals": {
            "loss": _ratio_interval(nats, tokens),
            "bits_per_byte": _ratio_interval(nats / math.log(2), num_bytes),
        },
        "tokens": int(tokens.sum()),
        "bytes": int(num_bytes.sum()),
        "baselines": {"ngrams": _ngrams(evidence)},
        "samples": _samples(evidence),
        "worst": _worst(evidence, nats, tokens),
    }


def _ratio_interval(over: Floats, under: Floats) -> list[float]:
    """95 % of sum(over) / sum(under), over rows drawn anew."""
    return list(
        bootstrap_interval(lambda drawn: drawn @ over / np.maximum(drawn @ under, 1), np.ones(len(over), np.int64))
    )


def _ngrams(evidence: Evidence) -> dict[str, Any]:
    if evidence.training is None:
        return {"reason": "the training rows are not at hand"}
    evidence.say(f"baseline: character {ngrams.ORDER}-grams")
    start = time.perf_counter()
    texts = [row["text"] for row in evidence.rows]
    nats, count, counted = ngrams.nats((row["text"] for row in evidence.training()), texts)
    return {
        "order": ngrams.ORDER,
        "training_characters": counted,
        "nats_per_character": nats / max(count, 1),
        "bits_per_byte": nats / math.log(2) / max(sum(len(text.encode()) for text in texts), 1),
        "seconds": round(time.perf_counter() - start, 2),
    }


def _samples(evidence: Evidence) -> list[dict[str, Any]]:
    """What the model writes after the beginnings of some rows, at temperature 0.8 with seeds 0, 1, 2."""
    if evidence.predictor is None:
        return []
    step = max(1, len(evidence.rows) // SAMPLES)
    chosen = list(range(0, len(evidence.rows), step))[:SAMPLES]
    prompts = [evidence.rows[i]["text"][:PROMPT] for i in chosen]
    answers = evidence.predictor.predict([{"text": text, "seed": i, **SAMPLED} for i, text in enumerate(prompts)])
    return [
        {**evidence.where(i), "prompt": prompt, "text": answer["text"]}
        for i, prompt, answer in zip(chosen, prompts, answers, strict=True)
    ]


def _worst(evidence: Evidence, nats: Floats, tokens: Floats) -> list[dict[str, Any]]:
    each = nats / np.maximum(tokens, 1)
    return [
        {**evidence.where(i), "loss": float(each[i]), "text": excerpt(evidence.rows[i]["text"])}
        for i in np.argsort(-each, kind="stable")[:WORST].tolist()
    ]


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    metrics, intervals, baseline = report["metrics"], report["intervals"], report["baselines"]["ngrams"]
    low, high = intervals["bits_per_byte"]
    lines = [["this model", f"{metrics['bits_per_byte']:.4f}", f"{low:.4f} to {high:.4f}"]]
    if "bits_per_byte" in baseline:
        lines.append([f"character {baseline['order']}-grams", f"{baseline['bits_per_byte']:.4f}", ""])
    yield table(["", "bits a byte", "95 %"], lines, left={0, 2})
    low, high = intervals["loss"]
    yield Text(
        f"Loss {metrics['loss']:.4f} nats a token ({low:.4f} to {high:.4f}), perplexity {metrics['perplexity']:,.2f}; "
        f"{report['tokens']:,} tokens, {report['bytes']:,} bytes."
    )
    if "reason" in baseline:
        yield Text(f"There is no baseline: {baseline['reason']}.")
    else:
        yield Text(
            f"Character {baseline['order']}-grams, interpolated by Witten and Bell: "
            f"{baseline['nats_per_character']:.4f} nats a character, from {baseline['training_characters']:,} "
            f"characters of the training rows in {baseline['seconds']:.1f} s."
        )
    yield heading("what it writes, at temperature 0.8")
    for sample in report["samples"]:
        yield Text(f"{near(sample['file'])}:{sample['line']}  {excerpt(sample['prompt'])}")
        yield Text(f"    {excerpt(sample['text'])}")
    yield heading("hardest to predict")
    yield table(
        ["loss", "where", "text"],
        [[f"{row['loss']:.3f}", f"{near(row['file'])}:{row['line']}", row["text"]] for row in report["worst"]],
        left={1, 2},
    )
