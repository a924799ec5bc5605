"""The report of a real model: rows in, numbers out, and one clear sentence where there is nothing to judge."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from bigmodel import models, pipeline, tasks
from bigmodel.data import arrow
from bigmodel.data.clean import Placed
from bigmodel.data.record import Bad
from bigmodel.errors import CheckpointError, DataError
from bigmodel.evaluation import evaluate as judge
from bigmodel.evaluation.evaluate import evaluate
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor


def place(i):
    return "test.csv", i + 2


@pytest.fixture(scope="module")
def rows(review_rows):
    return review_rows(150, seed=11)


@pytest.fixture(scope="module")
def report(teach, rows, review_rows):
    return evaluate(teach("textcnn"), rows, place, training=lambda: iter(review_rows(400)))


def test_the_report_is_json_and_holds_all_that_a_test_says(report, rows):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["task"] == "text-classification" and report["rows"] == len(rows)
    assert set(report["metrics"]) == {"loss", "accuracy", "macro_f1"} == set(report["intervals"])
    assert set(report) == {
        "task", "rows", "metrics", "intervals", "classes", "confusion", "calibration", "unknown_labels", "mistakes",
        "baselines", "also_in_training", "truncated", "speed",
    }  # fmt: skip


def test_the_metrics_are_those_of_the_predictors_own_answers(report, teach, rows):
    predictor = teach("textcnn")
    found = [answer["label"] for answer in predictor.predict([{"text": row["text"]} for row in rows])]
    wanted = [row["label"] for row in rows]
    assert report["metrics"]["accuracy"] == pytest.approx(sk.accuracy_score(wanted, found))
    assert report["metrics"]["macro_f1"] == pytest.approx(sk.f1_score(wanted, found, average="macro"))
    assert report["confusion"]["matrix"] == sk.confusion_matrix(wanted, found).tolist()
    assert report["metrics"] == predictor.task.score(predictor.predict(rows), rows)


def test_the_baselines_learnt_from_the_training_rows(report):
    baselines = report["baselines"]
    assert baselines["linear"]["training_rows"] == 400 and baselines["linear"]["accuracy"] > 0.9
    assert "word" in baselines["linear"]["features"]
    assert baselines["majority"]["of"] == "the training rows" and baselines["majority"]["accuracy"] < 0.7
    assert baselines["linear"]["comparison"]["statement"]


def test_every_worst_mistake_points_at_its_row(report, rows):
    for mistake in report["mistakes"]["worst"]:
        row = rows[mistake["line"] - 2]
        assert (mistake["text"], mistake["wanted"]) == (row["text"], row["label"]) and mistake["found"] != row["label"]


def test_the_speed_is_that_of_these_rows(report, teach, rows):
    speed = report["speed"]
    num_tokens = sum(len(row["text"].split()) for row in rows)
    assert speed["rows_per_s"] == pytest.approx(len(rows) / speed["seconds"], rel=0.02)
    assert speed["tokens_per_s"] / speed["rows_per_s"] == pytest.approx(num_tokens / len(rows), rel=0.01)
    assert (speed["device"], speed["precision"], speed["threads"]) == ("cpu", "fp32", torch.get_num_threads())


def test_a_second_report_differs_in_nothing_but_time(report, teach, rows, review_rows):
    again = evaluate(teach("textcnn"), rows, place, training=lambda: iter(review_rows(400)))
    for one in (again, report):
        one = json.loads(json.dumps(one))
        del one["speed"], one["baselines"]["linear"]["seconds"]
    without = [
        {key: value for key, value in one.items() if key not in ("speed", "baselines")} for one in (again, report)
    ]
    assert without[0] == without[1]
    assert again["baselines"]["linear"]["comparison"] == report["baselines"]["linear"]["comparison"]


def test_prepared_rows_are_tested_as_they_lie_on_disk(teach, rows, report, tmp_path):
    table = pa.Table.from_pylist([{**row, "source": "a.csv", "line": i + 2} for i, row in enumerate(rows)])
    arrow.write(tmp_path / "test-00000.arrow", table)
    stored = arrow.Rows([tmp_path / "test-00000.arrow"])
    found = evaluate(teach("textcnn"), stored, stored.place)
    assert found["metrics"] == report["metrics"]
    assert all(one["file"] == "a.csv" for one in found["mistakes"]["worst"])


@pytest.fixture(scope="module")
def of_images():
    """A predictor of images, and 70 of them: 20 are a batch."""
    images = np.random.default_rng(0).integers(0, 256, (70, 9, 9, 3), dtype=np.uint8)
    rows = [{"image": png(pixels), "label": "ab"[n % 2]} for n, pixels in enumerate(images)]
    asked = {"task": "image-classification", "data": {"train": "-", "images": {"size": 224}}}
    experiment = Experiment.model_validate(asked | {"model": {"type": "cnn", "hidden_sizes": [4], "depths": [1]}})
    task = tasks.get(experiment.task)
    processor, learnt = task.fit(lambda: iter(rows), experiment)
    torch.manual_seed(1)
    return Predictor(
        experiment.task, models.build(experiment.model, learnt, experiment.task).eval(), processor, {}
    ), rows


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Sliced(list):
    """Rows that know how many of them were asked for together."""

    most = 0

    def __getitem__(self, i):
        if isinstance(i, slice):
            self.most = max(self.most, len(range(*i.indices(len(self)))))
        return super().__getitem__(i)


@pytest.mark.parametrize("at_once", [65_536, 32])
def test_images_are_tested_a_batch_at_a_time_with_the_bits_of_all_together(of_images, monkeypatch, at_once):
    monkeypatch.setattr(judge, "AT_ONCE", at_once)
    predictor, rows = of_images
    sliced = Sliced(rows)
    answers, _ = judge._answer(predictor, sliced)
    spans = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    assert list(answers) == [answer for span in spans for answer in predictor.judge_samples(predictor.encode(span))]
    assert sliced.most == 20


def test_images_are_answered_a_batch_at_a_time_with_the_bits_of_all_together(of_images):
    predictor, rows = of_images
    items = [Placed(row, "pets", n) for n, row in enumerate(rows, 1)]
    items[30:30] = [Bad("pets/bad.png", 0, "image", "damaged", "")]
    out, written = io.StringIO(), []

    def asked_for():
        for item in items:
            written.append(len(out.getvalue().splitlines()))
            yield item

    assert pipeline._answer(asked_for(), predictor, out) == (71, 1)
    assert max(number - before for number, before in enumerate(written)) <= 21
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    kept = [{key: answer[key] for key in ("label", "score", "scores")} for answer in answers if "label" in answer]
    assert kept == predictor.predict([{"image": row["image"]} for row in rows])


def test_it_says_what_takes_its_time(teach, rows, review_rows):
    lines = []
    evaluate(teach("textcnn"), rows[:5], place, training=lambda: iter(review_rows(400)), say=lines.append)
    assert any("400 training rows" in line for line in lines)


def test_one_row_is_enough(teach, rows):
    found = evaluate(teach("lstm"), rows[:1], place)
    assert found["rows"] == 1 and found["baselines"]["linear"]["reason"] == "the training rows are not at hand"


def test_unknown_labels_are_mistakes_and_not_a_crash(teach, rows):
    strange = [{"text": "a good lamp", "label": "fair"}, *rows[:9]]
    found = evaluate(teach("textcnn"), strange, place)
    assert found["unknown_labels"] == [{"label": "fair", "rows": 1, "file": "test.csv", "line": 2}]
    assert found["metrics"]["accuracy"] <= 0.9
    assert found["rows"] == 10


def test_texts_that_were_read_in_part_are_counted(teach, rows):
    long = {"text": "lamp " * 300, "label": "good"}
    found = evaluate(teach("textcnn"), [long, *rows[:9], {**long, "text": "lamp " * 280}], place)
    assert found["truncated"] == {"rows": 2, "longest": 300, "read": 256}
    assert evaluate(teach("textcnn"), rows[:3], place)["truncated"]["rows"] == 0


def test_no_rows_is_one_clear_sentence(teach):
    with pytest.raises(DataError, match="no rows to test on.*data.split.test"):
        evaluate(teach("lstm"), [], place)


@pytest.mark.parametrize("row", [{"text": "a good lamp"}, {"text": "a good lamp", "label": None}])
def test_a_row_without_a_label_is_named_with_its_line(teach, rows, row):
    with pytest.raises(DataError, match=r"test.csv:4: the row has no label"):
        evaluate(teach("lstm"), [*rows[:2], row], place)


def test_damaged_weights_are_an_error_and_no_report(teach, rows, monkeypatch):
    predictor = teach("lstm")
    before = predictor.model.classifier.bias.detach().clone()
    with torch.no_grad():
        predictor.model.classifier.bias.fill_(float("nan"))
    try:
        with pytest.raises(CheckpointError, match="scores that are no numbers"):
            evaluate(predictor, rows[:3], place)
    finally:
        with torch.no_grad():
            predictor.model.classifier.bias.copy_(before)
