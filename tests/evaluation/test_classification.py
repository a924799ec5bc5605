"""What a report says of answers: cases worked out by hand, and scikit-learn as the oracle."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as sk

from bigmodel import tasks
from bigmodel.errors import CheckpointError
from bigmodel.evaluation.classification import CONFUSED, MATRIX_LABELS, WORST, analyse
from bigmodel.evaluation.evidence import Evidence

TASK = tasks.get("text-classification")


def answer(scores):
    label = max(scores, key=scores.get)
    return {"label": label, "score": scores[label], "scores": scores}


def evidence(rows, answers, training=None, say=lambda line: None):
    return Evidence(TASK, rows, lambda i: ("test.csv", i + 2), answers, training, say)


# wanted, p(good), p(bad), p(so so)
CASES = [
    ("good", 0.7, 0.2, 0.1),
    ("good", 0.1, 0.8, 0.1),  # the worst
    ("bad", 0.3, 0.6, 0.1),
    ("bad", 0.5, 0.2, 0.3),
    ("so so", 0.6, 0.2, 0.2),
    ("good", 0.4, 0.3, 0.3),
]
ROWS = [{"text": f"review {i}", "label": case[0]} for i, case in enumerate(CASES)]
ANSWERS = [answer(dict(zip(("good", "bad", "so so"), case[1:], strict=True))) for case in CASES]


def test_a_small_case_is_as_worked_out_by_hand():
    report = analyse(evidence(ROWS, ANSWERS))
    assert report["confusion"]["labels"] == ["good", "bad", "so so"]
    assert report["confusion"]["matrix"] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    pairs = report["confusion"]["pairs"]
    assert {(pair["wanted"], pair["found"]) for pair in pairs} == {("good", "bad"), ("bad", "good"), ("so so", "good")}
    assert all(pair["rows"] == 1 for pair in pairs)
    good, bad, so_so = report["classes"]
    assert good == {"label": "good", "precision": 2 / 4, "recall": 2 / 3, "f1": pytest.approx(4 / 7), "support": 3}
    assert bad == {"label": "bad", "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2}
    assert so_so == {"label": "so so", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert report["calibration"]["mean_confidence"] == pytest.approx(3.6 / 6)
    assert report["unknown_labels"] == []
    assert report["also_in_training"] is None


def test_the_worst_mistakes_are_those_with_the_highest_loss():
    mistakes = analyse(evidence(ROWS, ANSWERS))["mistakes"]
    assert mistakes["rows"] == 3
    first, second, third = mistakes["worst"]
    assert first == {
        "file": "test.csv",
        "line": 3,
        "text": "review 1",
        "wanted": "good",
        "found": "bad",
        "score": 0.8,
        "loss": pytest.approx(-math.log(0.1)),
    }
    # two of equal loss stay in the order of the rows
    assert [second["line"], third["line"]] == [5, 6]
    assert second["loss"] == third["loss"] == pytest.approx(-math.log(0.2))


def test_no_more_than_the_worst_mistakes_are_kept_and_their_texts_are_shortened():
    rows = [{"text": "很长的文字" * 200, "label": "good"}] * 50
    mistakes = analyse(evidence(rows, [answer({"good": 0.1, "bad": 0.9})] * 50))["mistakes"]
    assert (mistakes["rows"], len(mistakes["worst"])) == (50, WORST)
    assert len(mistakes["worst"][0]["text"]) == 200 and mistakes["worst"][0]["text"].endswith("…")


def random_answers(n, labels, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(len(labels), 0.5), size=n)
    wanted = [labels[rng.choice(len(labels), p=row)] for row in p]
    rows = [{"text": f"{i}", "label": label} for i, label in enumerate(wanted)]
    return rows, [answer(dict(zip(labels, row, strict=True))) for row in p.tolist()]


def test_classes_and_confusion_agree_with_scikit_learn():
    labels = ["a", "b", "c", "d"]
    rows, answers = random_answers(400, labels)
    wanted, found = [row["label"] for row in rows], [a["label"] for a in answers]
    report = analyse(evidence(rows, answers))
    assert report["confusion"]["matrix"] == sk.confusion_matrix(wanted, found, labels=labels).tolist()
    theirs = sk.classification_report(wanted, found, labels=labels, output_dict=True)
    for entry in report["classes"]:
        oracle = theirs[entry["label"]]
        assert entry["f1"] == pytest.approx(oracle["f1-score"])
        for name in ("precision", "recall", "support"):
            assert entry[name] == pytest.approx(oracle[name])


def test_the_intervals_hold_the_scores():
    rows, answers = random_answers(400, ["a", "b", "c"])
    report, scores = analyse(evidence(rows, answers)), TASK.score(answers, rows)
    for name, (low, high) in report["intervals"].items():
        assert low < scores[name] < high, name
    assert report["intervals"]["accuracy"][1] - report["intervals"]["accuracy"][0] == pytest.approx(
        2 * 1.96 * (scores["accuracy"] * (1 - scores["accuracy"]) / 400) ** 0.5, rel=0.1
    )


def test_answers_as_sure_as_they_are_right_are_called_calibrated():
    rows, answers = random_answers(20_000, ["a", "b", "c"])
    honest = analyse(evidence(rows, answers))["calibration"]
    bold = [{**a, "score": a["score"] ** 0.25} for a in answers]
    assert honest["error"] < 0.02 < 0.15 < analyse(evidence(rows, bold))["calibration"]["error"]


def test_labels_that_the_model_does_not_know_count_as_mistakes_and_are_named():
    strange = [{"text": "x", "label": "late"}, {"text": "y", "label": "early"}, {"text": "z", "label": "late"}]
    report = analyse(evidence(ROWS + strange, ANSWERS + [ANSWERS[0]] * 3))
    assert report["unknown_labels"] == [
        {"label": "early", "rows": 1, "file": "test.csv", "line": 9},
        {"label": "late", "rows": 2, "file": "test.csv", "line": 8},
    ]
    assert report["confusion"]["labels"] == ["good", "bad", "so so", "early", "late"]
    assert report["confusion"]["matrix"][4] == [2, 0, 0, 0, 0]
    assert report["mistakes"]["rows"] == 3 + 3
    assert {one["wanted"] for one in report["mistakes"]["worst"]} == {"good", "bad", "so so"}


def test_every_row_may_have_a_label_that_the_model_does_not_know():
    rows = [{"text": "x", "label": "late"}] * 2
    report = analyse(evidence(rows, ANSWERS[:2]))
    assert report["mistakes"] == {"rows": 2, "worst": []}
    assert report["intervals"]["accuracy"] == [0.0, pytest.approx(0.65762, abs=1e-5)]


def test_of_very_many_labels_the_report_keeps_the_pairs_that_are_confused():
    labels = [f"label {i}" for i in range(MATRIX_LABELS + 1)]
    rows, answers = random_answers(500, labels)
    confusion = analyse(evidence(rows, answers))["confusion"]
    assert confusion["matrix"] is None and len(confusion["labels"]) == MATRIX_LABELS + 1
    counts = [pair["rows"] for pair in confusion["pairs"]]
    assert len(counts) == CONFUSED and counts == sorted(counts, reverse=True)


def test_one_row_is_a_test():
    report = analyse(evidence(ROWS[:1], ANSWERS[:1], training=lambda: iter(ROWS)))
    assert report["intervals"]["accuracy"] == [pytest.approx(0.20655, abs=1e-5), 1.0]
    json.dumps(report, allow_nan=False)


def test_rows_that_also_stand_in_the_training_rows_are_counted_and_can_be_left_out():
    training = [{"text": "review 1", "label": "good"}, {"text": "review 0", "label": "bad"}, *ROWS[1:3]]
    report = analyse(evidence(ROWS, ANSWERS, training=lambda: iter(training)))
    assert report["also_in_training"] == {"rows": 3, "accuracy_without": 1 / 3}
    report = analyse(evidence(ROWS[:1], ANSWERS[:1], training=lambda: iter(ROWS)))
    assert report["also_in_training"] == {"rows": 1, "accuracy_without": None}


@pytest.mark.parametrize("training", [None, lambda: iter([])])
def test_without_training_rows_the_report_says_why_there_is_no_linear_baseline(training):
    baselines = analyse(evidence(ROWS, ANSWERS, training=training))["baselines"]
    assert baselines["linear"] == {"reason": "the training rows are not at hand"}
    majority = baselines["majority"]
    assert (majority["label"], majority["of"], majority["accuracy"]) == ("good", "the tested rows", 0.5)


def test_scores_that_are_no_numbers_are_an_error_with_the_row():
    broken = {"label": "good", "score": math.nan, "scores": {"good": math.nan, "bad": math.nan, "so so": math.nan}}
    with pytest.raises(CheckpointError, match="test.csv:4: .*scores that are no numbers"):
        analyse(evidence(ROWS, [*ANSWERS[:2], broken, *ANSWERS[3:]]))
