"""What a report says of any task that answers with one label of a fixed set, from texts or from images.

    analyse   answers and rows -> the report's keys of this kind of task
    render    those keys -> what a person reads

Rows whose label the model does not know can only be answered wrongly. They count, as mistakes and in the loss, and are
named apart, so that they do not hide the mistakes that say something of the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from bigmodel.evaluation import baselines, boosting, importance, metrics
from bigmodel.evaluation.evidence import Evidence
from bigmodel.evaluation.layout import excerpt, heading, near, table, wide
from bigmodel.evaluation.metrics import Counts, Floats
from bigmodel.evaluation.overlap import Overlap
from bigmodel.tasks.base import Answer
from bigmodel.tasks.labels import named

WORST = 10
CONFUSED = 20  # pairs of labels
MATRIX_LABELS = 200  # above that the matrix is left out of the report, and the pairs must do
SHOWN_CLASSES, SHOWN_MATRIX, SHOWN_PAIRS = 20, 10, 10
FEW_ROWS = 30  # below, resampling the rows that happen to be there shows too little of what could have been


# ---- analyse


def analyse(evidence: Evidence) -> dict[str, Any]:
    rows, answers = evidence.rows, evidence.answers
    found, wanted = named(answers), named(rows)
    losses = metrics.log_losses((answer["scores"] for answer in answers), wanted)
    evidence.refuse_broken(losses, "the model answers this row with scores that are no numbers")
    known = list(answers[0]["scores"])
    unknown = _unknown_labels(evidence, known, wanted)
    labels = [*known, *(entry["label"] for entry in unknown)]
    matrix = metrics.confusion(found, wanted, labels)
    return {
        "intervals": {
            "accuracy": list(metrics.accuracy_interval(matrix)),
            "macro_f1": list(metrics.macro_f1_interval(matrix)),
            "loss": list(metrics.mean_interval(losses)),
        },
        "classes": _classes(labels, matrix),
        "confusion": _confusion(labels, matrix),
        "calibration": _calibration(answers, found, wanted),
        "unknown_labels": unknown,
        "mistakes": _mistakes(evidence, found, wanted, losses, set(known)),
        **_beside_training(evidence, found, wanted),
        **importance.of_table(evidence),
    }


def _unknown_labels(evidence: Evidence, known: Sequence[str], wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Labels that the model was never taught, with the place of the first row of each."""
    first: dict[str, int] = {}
    counts = Counter(wanted)
    for i, label in enumerate(wanted):
        first.setdefault(label, i)
    strange = sorted(set(counts) - set(known))
    return [{"label": label, "rows": counts[label], **evidence.where(first[label])} for label in strange]


def _classes(labels: Sequence[str], matrix: Counts) -> list[dict[str, Any]]:
    columns = [column.tolist() for column in metrics.per_class(matrix)]
    return [
        {"label": label, "precision": precision, "recall": recall, "f1": f1, "support": support}
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    ]


def _confusion(labels: Sequence[str], matrix: Counts) -> dict[str, Any]:
    """Rows of the matrix are wanted, columns found; `pairs` are the most frequent cells off the diagonal."""
    wanted, found = np.nonzero(matrix - np.diag(matrix.diagonal()))
    most = np.argsort(-matrix[wanted, found], kind="stable")[:CONFUSED]
    pairs = [
        {"wanted": labels[w], "found": labels[f], "rows": int(matrix[w, f])}
        for w, f in zip(wanted[most], found[most], strict=True)
    ]
    return {"labels": list(labels), "matrix": matrix.tolist() if len(labels) <= MATRIX_LABELS else None, "pairs": pairs}


def _calibration(answers: Sequence[Answer], found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Expected calibration error, and how sure the model is on average: above the accuracy it is overconfident."""
    sure = np.fromiter((answer["score"] for answer in answers), np.float64)
    right = [f == w for f, w in zip(found, wanted, strict=True)]
    mean = sum(answer["score"] for answer in answers) / len(answers)
    return {"error": metrics.calibration_error(sure, right), "mean_confidence": mean}


def _mistakes(
    evidence: Evidence, found: Sequence[str], wanted: Sequence[str], losses: Floats, known: set[str]
) -> dict[str, Any]:
    """How many there are, and those with the highest loss among the rows whose label the model knows."""
    rows, answers = evidence.rows, evidence.answers
    wrong = [i for i, (label, other) in enumerate(zip(wanted, found, strict=True)) if label != other]
    worst = sorted((i for i in wrong if wanted[i] in known), key=lambda i: -losses[i])[:WORST]
    return {
        "rows": len(wrong),
        "worst": [
            {
                **evidence.where(i),
                **({"text": excerpt(rows[i]["text"])} if "text" in rows[i] else {}),
                "wanted": wanted[i],
                "found": found[i],
                "score": answers[i]["score"],
                "loss": float(losses[i]),
            }
            for i in worst
        ],
    }


def _beside_training(evidence: Evidence, found: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """What the training rows add: the baselines learnt from them, and which of the tested rows stand among them."""
    rows = evidence.rows

    content = evidence.task.content
    overlap = Overlap(content(row) for row in rows)
    seen = None
    if evidence.training and "image" in rows[0]:
        seen = baselines.survey(evidence.training, overlap, content, baselines.MAX_IMAGES, held=False)
    elif evidence.training:
        seen = baselines.survey(evidence.training, overlap, content, boosting.most_rows(evidence.predictor))
    if seen is None or not seen.num_rows:
        always = baselines.majority(Counter(wanted), wanted, "the tested rows")
        none = {"reason": "the training rows are not at hand"}
        trees = {"boosting": none} if "features" in rows[0] else {}
        return {"baselines": {"majority": always, "linear": none, **trees}, "also_in_training": None}
    always = baselines.majority(seen.labels, wanted, "the training rows")
    linear: dict[str, Any] = {"reason": "there is none for this kind of input"}
    if "text" in rows[0]:
        evidence.say(f"linear baseline: TF-IDF and a linear SVM on {seen.num_rows:,} training rows")
        linear = baselines.linear(list(seen.rows()), (row["text"] for row in rows), wanted, found)
    elif "image" in rows[0]:
        evidence.say(f"linear baseline: logistic regression on the pixels of {seen.num_rows:,} training images")
        linear = baselines.linear_of_images(seen.rows, (row["image"] for row in rows), wanted, found)
    trees = {}
    if "features" in rows[0] and evidence.predictor is not None:
        evidence.say(f"baseline: {boosting.NAME} on {seen.num_rows:,} training rows")
        fitted = boosting.classifier(evidence.predictor, list(seen.rows()), rows, found)
        trees = {"boosting": fitted | boosting.drawn(seen.num_rows, overlap.num_seen)}
    new = np.flatnonzero(~overlap.found()).tolist()
    right = sum(found[i] == wanted[i] for i in new)
    also = {"rows": len(rows) - len(new), "accuracy_without": right / len(new) if new else None}
    return {"baselines": {"majority": always, "linear": linear, **trees}, "also_in_training": also}


# ---- render


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _scores(report)
    yield from _about_baselines(report["baselines"])
    yield from _notes(report)
    if "importance" in report:
        yield from importance.render(report)
    yield from _class_table(report["classes"])
    yield from _confusion_table(report["confusion"])
    yield from _worst(report["mistakes"], report["rows"])


def _scores(report: Mapping[str, Any]) -> RenderableType:
    """The model and its baselines, one below the other."""
    scores, intervals = report["metrics"], report["intervals"]
    linear, majority = report["baselines"]["linear"], report["baselines"]["majority"]
    lines = [["this model", _score(scores["accuracy"]), _range(intervals["accuracy"]),
              _score(scores["macro_f1"]), _range(intervals["macro_f1"])]]  # fmt: skip
    if "accuracy" in linear:
        interval, f1 = _range(linear["interval"]), _score(linear["macro_f1"])
        lines.append(["linear baseline", _score(linear["accuracy"]), interval, f1, ""])
    trees = report["baselines"].get("boosting", {})
    if "accuracy" in trees:
        interval, f1 = _range(trees["interval"]), _score(trees["macro_f1"])
        lines.append([boosting.NAME, _score(trees["accuracy"]), interval, f1, ""])
    lines.append(["majority", _score(majority["accuracy"]), "", _score(majority["macro_f1"]), ""])
    header = ["", "accuracy", "95 %", "macro-F1", "95 %"]
    if "auc" in scores:
        header.append("AUC")
        areas = {"this model": scores["auc"], boosting.NAME: trees.get("auc")}
        lines = [[*line, "" if (area := areas.get(line[0])) is None else _score(area)] for line in lines]
    return table(header, lines, left={0, 2, 4})


def _about_baselines(baseline: Mapping[str, Any]) -> Iterator[RenderableType]:
    linear, majority = baseline["linear"], baseline["majority"]
    if trees := baseline.get("boosting"):
        yield Text(
            trees["comparison"]["statement"]
            if "comparison" in trees
            else f"There is no {boosting.NAME}: {trees['reason']}."
        )
        yield from map(Text, boosting.drawn_from(trees))
        if said := boosting.advice(trees):
            yield Text(said, style="bold")
    elif "accuracy" in linear:
        yield Text(linear["comparison"]["statement"])
        yield Text(
            f"Linear baseline: {linear['features']}; {linear['training_rows']:,} training rows, "
            f"{linear['seconds']:.1f} s."
        )
    else:
        yield Text(f"There is no linear baseline: {linear['reason']}.")
    yield Text(f"Majority: always '{wide(majority['label'], 40)}', as most of {majority['of']}.")


def _notes(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    scores, calibration = report["metrics"], report["calibration"]
    if report["rows"] < FEW_ROWS:
        yield Text("So few rows say little: the intervals are narrower than they should be.")
    low, high = report["intervals"]["loss"]
    yield Text(f"Loss {scores['loss']:.4f} ({low:.4f} to {high:.4f}).")
    excess = calibration["mean_confidence"] - scores["accuracy"]
    tendency = "" if abs(excess) < 0.005 else " (overconfident)" if excess > 0 else " (too cautious)"
    yield Text(
        f"Calibration error {calibration['error']:.4f}: {calibration['mean_confidence']:.4f} sure on average, "
        f"{scores['accuracy']:.4f} right{tendency}."
    )
    if also := report["also_in_training"]:
        rest = also["accuracy_without"]
        without = f"; accuracy without them {rest:.4f}" if also["rows"] and rest is not None else ""
        yield Text(f"{also['rows']:,} of the tested rows also stand in the training rows{without}.")
    if unknown := report["unknown_labels"]:
        count = sum(entry["rows"] for entry in unknown)
        named = ", ".join(
            f"'{wide(entry['label'], 30)}' ({entry['rows']:,}, first {near(entry['file'])}:{entry['line']})"
            for entry in unknown[:5]
        )
        more = f" and {len(unknown) - 5:,} more labels" if len(unknown) > 5 else ""
        known = report["confusion"]["labels"][: -len(unknown)]
        taught = ", ".join(wide(label, 30) for label in known[:10]) + (" ..." if len(known) > 10 else "")
        yield Text(
            f"Rows with a label that the model does not know: {count:,}. They count as mistakes, and "
            f"{-math.log(metrics.SMALLEST):.1f} each in the loss: {named}{more}. The model knows {taught}."
        )


def _class_table(classes: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """All classes, or the worst of those that occur where there are many."""
    shown = list(classes)
    title = "per class"
    if len(classes) > SHOWN_CLASSES:
        shown = sorted((c for c in classes if c["support"]), key=lambda c: (c["f1"], -c["support"]))[:SHOWN_CLASSES]
        title = f"per class: the {len(shown)} lowest F1 of {len(classes):,} (all are in the report)"
    yield heading(title)
    yield table(
        ["label", "precision", "recall", "F1", "rows"],
        [
            [wide(c["label"], 40), _score(c["precision"]), _score(c["recall"]), _score(c["f1"]), f"{c['support']:,}"]
            for c in shown
        ],
        left={0},
    )


def _confusion_table(confusion: Mapping[str, Any]) -> Iterator[RenderableType]:
    labels, matrix = confusion["labels"], confusion["matrix"]
    if len(labels) <= SHOWN_MATRIX:
        yield heading("confusion: wanted in rows, found in columns")
        names = [wide(label, 12) for label in labels]
        lines = [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, matrix, strict=True)]
        yield table(["", *names], lines, left={0})
    elif confusion["pairs"]:
        yield heading("most often confused")
        lines = [
            [f"{pair['rows']:,}", wide(pair["wanted"], 40), wide(pair["found"], 40)]
            for pair in confusion["pairs"][:SHOWN_PAIRS]
        ]
        yield table(["rows", "wanted", "found"], lines, left={1, 2})


def _worst(mistakes: Mapping[str, Any], num_rows: int) -> Iterator[RenderableType]:
    wrong = f"{mistakes['rows']:,} of {num_rows:,} rows are wrong"
    yield heading(f"worst mistakes ({wrong})" if mistakes["worst"] else wrong)
    for one in mistakes["worst"]:
        yield Text(
            f"{near(one['file'])}:{one['line']}  wanted {wide(one['wanted'], 30)}, found {wide(one['found'], 30)} "
            f"({one['score']:.3f}), loss {one['loss']:.2f}",
            overflow="fold",
        )
        if "text" in one:
            yield Text("    " + one["text"], no_wrap=True, overflow="ellipsis")


def _score(value: float) -> str:
    return f"{value:.4f}"


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
