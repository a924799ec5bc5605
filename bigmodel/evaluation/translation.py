"""What a report says of translations: scores with intervals, by length, beside baselines that understand nothing, and
the rows that went worst.

    analyse   answers and rows -> the report's keys of this kind of task
    render    those keys -> what a person reads
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from bigmodel.evaluation import bleu
from bigmodel.evaluation.evidence import Evidence
from bigmodel.evaluation.layout import excerpt, heading, near, table
from bigmodel.evaluation.metrics import bootstrap_interval
from bigmodel.tasks.base import Row

WORST, EXAMPLES = 10, 5
LENGTHS = (1, 8, 16, 32, 64)  # words of the source with which a group begins
MAX_ROWS = 100_000  # training rows among which the nearest is sought
NAMES = {"bleu": "BLEU", "chrf": "chrF", "bleu_lower_tokens": "BLEU, lower-cased tokens"}


# ---- analyse


def analyse(evidence: Evidence) -> dict[str, Any]:
    rows, answers = evidence.rows, evidence.answers
    found, wanted = [answer["translation"] for answer in answers], [row["target"] for row in rows]
    how = bleu.counting(wanted)
    losses = np.array([answer["loss"] for answer in answers])
    counts = np.array([answer["target_tokens"] for answer in answers])
    each = [bleu.chrf().sentence_score(f, [w]).score for f, w in zip(found, wanted, strict=True)]
    return {
        "signatures": bleu.signatures(how),
        "intervals": {
            "loss": list(bootstrap_interval(lambda drawn: drawn @ losses / (drawn @ counts), [1] * len(rows))),
            **bleu.intervals(found, wanted, how),
        },
        "lengths": _by_length(rows, found, wanted, how),
        "baselines": _baselines(evidence, wanted, how),
        "worst": [
            _shown(evidence, i, chrf=each[i], loss=float(losses[i] / counts[i]))
            for i in sorted(range(len(rows)), key=lambda i: (each[i], i))[:WORST]
        ],
        "examples": [_shown(evidence, i, chrf=each[i]) for i in range(min(EXAMPLES, len(rows)))],
        "also_in_training": _also_in_training(evidence),
    }


def _shown(evidence: Evidence, i: int, **numbers: float) -> dict[str, Any]:
    row = evidence.rows[i]
    texts = {"source": row["source"], "wanted": row["target"], "found": evidence.answers[i]["translation"]}
    return evidence.where(i) | {name: excerpt(text) for name, text in texts.items()} | numbers


def _by_length(
    rows: Sequence[Row], found: Sequence[str], wanted: Sequence[str], how: bleu.Counting
) -> list[dict[str, Any]]:
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        words = len(row["source"].split())
        groups.setdefault(max(start for start in LENGTHS if start <= max(words, 1)), []).append(i)
    return [
        {
            "words_from": start,
            "rows": len(group),
            **bleu.scores([found[i] for i in group], [wanted[i] for i in group], how),
        }
        for start, group in sorted(groups.items())
    ]


def _baselines(evidence: Evidence, wanted: Sequence[str], how: bleu.Counting) -> dict[str, Any]:
    sources = [row["source"] for row in evidence.rows]
    baselines: dict[str, Any] = {"copy": bleu.scores(sources, wanted, how)}
    if evidence.training is None:
        return baselines | {"nearest": {"reason": "the training rows are not at hand"}}
    known = [row for _, row in zip(range(MAX_ROWS), evidence.training(), strict=False)]
    if not known:
        return baselines | {"nearest": {"reason": "there are no training rows"}}
    evidence.say(f"nearest of {len(known):,} training rows, by TF-IDF of words")
    return baselines | {"nearest": bleu.scores(nearest(known, sources), wanted, how) | {"training_rows": len(known)}}


def nearest(known: Sequence[Row], sources: Sequence[str]) -> list[str]:
    """For each source the translation of the training row whose source is most like it, by the cosine of TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True)
    try:
        table = vectorizer.fit_transform([row["source"] for row in known])
    except ValueError:  # not one word in them
        return [known[0]["target"]] * len(sources)
    found: list[str] = []
    for start in range(0, len(sources), 256):
        likeness = vectorizer.transform(sources[start : start + 256]) @ table.T
        found += [known[int(i)]["target"] for i in np.asarray(likeness.argmax(axis=1)).ravel()]
    return found


def _also_in_training(evidence: Evidence) -> int | None:
    """How many of the tested sources were trained on."""
    if evidence.training is None:
        return None
    sources = {row["source"] for row in evidence.rows}
    known = sources & {row["source"] for row in evidence.training()}
    return sum(row["source"] in known for row in evidence.rows)


# ---- render


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    scores, intervals, baselines = report["metrics"], report["intervals"], report["baselines"]
    columns = list(NAMES)
    lines = [["this model", *(cell for name in columns for cell in (_score(scores[name]), _range(intervals[name])))]]
    for name, told in (("nearest training row", baselines["nearest"]), ("the source, copied", baselines["copy"])):
        if "bleu" in told:
            lines.append([name, *(cell for column in columns for cell in (_score(told[column]), ""))])
    head = [cell for name in columns for cell in (NAMES[name], "95 %")]
    yield table(["", *head], lines, left={0, 2, 4, 6})
    low, high = intervals["loss"]
    yield Text(f"Loss {scores['loss']:.4f} nats a target token ({low:.4f} to {high:.4f}).")
    yield Text(f"Counted by sacrebleu: {report['signatures']['bleu']}; {report['signatures']['chrf']}.")
    if report["also_in_training"]:
        yield Text(f"{report['also_in_training']:,} of the tested sources also stand in the training rows.")
    yield heading("by words of the source")
    groups = [
        [f"{group['words_from']} or more", f"{group['rows']:,}", _score(group["bleu"]), _score(group["chrf"])]
        for group in report["lengths"]
    ]
    yield table(["words", "rows", "BLEU", "chrF"], groups, left={0})
    yield from _rows("examples", report["examples"])
    yield from _rows("farthest from what was wanted", report["worst"])


def _rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    yield heading(title)
    for row in rows:
        yield Text(f"{near(row['file'])}:{row['line']}  chrF {row['chrf']:.1f}")
        for name in ("source", "wanted", "found"):
            yield Text(f"    {name:<7} {row[name]}", no_wrap=True, overflow="ellipsis")


def _score(value: float) -> str:
    return f"{value:.2f}"


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"
