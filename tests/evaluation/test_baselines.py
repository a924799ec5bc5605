"""The baselines: the published figures on real data, and small cases by hand."""

import csv
import hashlib
import io
from collections import Counter

import numpy as np
import pytest

from bigmodel.evaluation import baselines
from bigmodel.evaluation.baselines import compare, fit_and_answer, linear, linear_of_images, majority, survey
from bigmodel.evaluation.metrics import accuracy, macro_f1
from bigmodel.evaluation.overlap import Overlap

# ---- real data


def waimai(folder):
    with open(folder / "zh_waimai_10k" / "waimai_10k.csv", encoding="utf-8", newline="") as file:
        rows = [{"text": row["review"].strip(), "label": row["label"]} for row in csv.DictReader(file)]
    held_out = [int(hashlib.md5(row["text"].encode()).hexdigest(), 16) % 5 == 0 for row in rows]
    return (
        [row for row, out in zip(rows, held_out, strict=True) if not out],
        [row for row, out in zip(rows, held_out, strict=True) if out],
    )


def lines(path, separator, text_first):
    with open(path, encoding="utf-8", newline="\n") as file:
        parts = [line.rstrip("\n").split(separator, 1) for line in file if line.strip()]
    return [{"text": a, "label": b} if text_first else {"text": b, "label": a} for a, b in parts]


def thucnews(folder):
    return [lines(folder / "zh_thucnews_titles" / name, "\t", True) for name in ("train_45k.txt", "test.txt")]


def sst2(folder):
    return [lines(folder / "en_sst2" / f"stsa.binary.{name}", " ", False) for name in ("train", "test")]


PUBLISHED = [
    pytest.param(waimai, 2471, 0.9053, 0.8885, "character", id="waimai_10k"),
    pytest.param(sst2, 1821, 0.8127, 0.8127, "word", id="sst2"),
    pytest.param(thucnews, 10_000, 0.9058, 0.9057, "character", id="thucnews", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("read", "num_rows", "published_accuracy", "f1", "features"), PUBLISHED)
def test_the_linear_baseline_is_the_published_one(data_folder, read, num_rows, published_accuracy, f1, features):
    training, rows = read(data_folder)
    assert len(rows) == num_rows
    texts, wanted = [row["text"] for row in rows], [row["label"] for row in rows]
    found = linear(training, texts, wanted, wanted)
    assert found["accuracy"] == pytest.approx(published_accuracy, abs=0.001)  # 0.0000 off with scikit-learn 1.9
    assert found["macro_f1"] == pytest.approx(f1, abs=0.001)
    assert features in found["features"]
    low, high = found["interval"]
    assert low < published_accuracy < high


def test_the_majority_baseline_of_waimai_is_the_published_one(data_folder):
    training, rows = waimai(data_folder)
    counts = Counter(row["label"] for row in training)
    found = majority(counts, [row["label"] for row in rows], "the training rows")
    assert found["label"] == "0" and found["accuracy"] == pytest.approx(0.6795, abs=5e-5)


# ---- cases by hand


def test_the_majority_is_that_of_the_counted_rows_not_of_the_tested_ones():
    found = majority(Counter({"bad": 3, "good": 2}), ["good", "good", "bad", "good"], "the training rows")
    assert (found["label"], found["accuracy"], found["of"]) == ("bad", 0.25, "the training rows")
    assert found["macro_f1"] == macro_f1(["bad"] * 4, ["good", "good", "bad", "good"])


def test_of_equally_frequent_labels_the_first_of_the_alphabet_is_the_majority():
    assert majority(Counter({"b": 2, "a": 2}), ["a"], "the training rows")["label"] == "a"


def cases(only_model, only_linear, both, neither):
    """wanted, the model's labels, the baseline's."""
    found = [("1", "0")] * only_model + [("0", "1")] * only_linear + [("1", "1")] * both + [("0", "0")] * neither
    return [list(column) for column in zip(*((m, b, "1") for m, b in found), strict=True)]


@pytest.mark.parametrize(
    ("counts", "better", "beyond", "says"),
    [
        ((9, 1, 80, 10), "model", True, "The model is better than the linear baseline by 8.00 points, beyond noise"),
        ((1, 9, 80, 10), "linear", True, "The linear baseline is better than the model by 8.00 points, beyond noise"),
        ((6, 4, 80, 10), "model", False, "by 2.00 points, within noise"),
        ((3, 3, 80, 14), "neither", False, "right equally often"),
        ((0, 0, 1, 0), "neither", False, "right equally often"),
    ],
)
def test_model_and_baseline_are_compared_on_the_rows_that_only_one_has_right(counts, better, beyond, says):
    model, baseline, wanted = cases(*counts)
    found = compare(model, baseline, wanted)
    assert (found["only_model_right"], found["only_linear_right"]) == counts[:2]
    assert (found["better"], found["beyond_noise"]) == (better, beyond)
    assert found["difference"] == pytest.approx(accuracy(model, wanted) - accuracy(baseline, wanted))
    assert says in found["statement"]


def test_mcnemars_p_of_nine_against_one_is_that_of_ten_coin_throws():
    model, baseline, wanted = cases(9, 1, 0, 0)
    assert compare(model, baseline, wanted)["p"] == pytest.approx(2 * (1 + 10) / 2**10)


def test_a_mistake_of_both_counts_for_neither_even_where_they_differ():
    found = compare(["a", "b"], ["b", "a"], ["c", "c"])
    assert (found["only_model_right"], found["only_linear_right"], found["p"]) == (0, 0, 1.0)


def test_a_few_training_rows_are_enough_for_a_baseline(review_rows):
    rows = review_rows(60, seed=1)
    found = fit_and_answer(rows, [row["text"] for row in rows], "word")
    assert accuracy(found, [row["label"] for row in rows]) > 0.95


def test_answers_are_labels_as_the_rows_have_them(review_rows):
    found = fit_and_answer([{"text": "a b cc", "label": "1"}, {"text": "dd", "label": "0"}] * 2, ["dd", "cc"], "word")
    assert found == ["0", "1"] and all(type(label) is str for label in found)


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "good food", "label": "1"}, {"text": "fine wine", "label": "1"}],  # one label
        [{"text": "! ?", "label": "1"}, {"text": "a b", "label": "0"}],  # not one word of two letters
    ],
)
def test_where_nothing_can_be_fitted_the_report_says_so(rows):
    found = linear(rows, ["good"], ["1"], ["1"])
    assert list(found) == ["reason"] and "scikit-learn" in found["reason"]


def noisy(label: str, rng, grey: bool) -> bytes:
    """Noise, brighter in the half that the label names."""
    from PIL import Image

    pixels = rng.integers(0, 200, (60, 40) if grey else (60, 40, 3), dtype=np.uint8)
    pixels[slice(0, 30) if label == "top" else slice(30, 60)] += 50
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(("grey", "what"), [(True, "22 by 34 grey"), (False, "13 by 19 coloured")])
def test_images_have_a_linear_baseline_on_small_copies(grey, what):
    rng = np.random.default_rng(0)
    rows = [{"label": label, "image": noisy(label, rng, grey)} for label in ("top", "bottom") * 40]
    wanted = [row["label"] for row in rows[60:]]
    found = linear_of_images(lambda: rows[:60], [row["image"] for row in rows[60:]], wanted, ["top"] * 20)
    assert found["accuracy"] > 0.9 and found["features"] == f"{what} pixels, logistic regression"
    assert found["comparison"]["better"] == "linear" and found["training_rows"] == 60
    assert linear_of_images(lambda: rows[:1], [], [], []) == {"reason": "the training rows have one label only"}


def test_a_survey_of_many_rows_keeps_each_with_the_same_chance(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_ROWS", 200)
    rows = [{"text": str(i), "label": str(i % 2)} for i in range(2000)]
    overlap = Overlap(["5", "none", "1999", "5"])
    seen = survey(lambda: iter(rows), overlap, lambda row: row["text"])
    assert seen.labels == {"0": 1000, "1": 1000} and overlap.num_seen == 2000
    assert overlap.found().tolist() == [True, False, True, True]
    numbers = [int(row["text"]) for row in seen.rows()]
    assert len(set(numbers)) == seen.num_rows == 200 and 850 < sum(numbers) / 200 < 1150
    again = survey(lambda: iter(rows), Overlap([]), lambda row: row["text"])
    assert again.rows() == seen.rows()
    not_held = survey(lambda: iter(rows), Overlap([]), lambda row: row["text"], held=False)
    assert [int(row["text"]) for row in not_held.rows()] == sorted(numbers) and not_held.num_rows == 200


def test_a_survey_of_few_rows_keeps_them_all_in_order():
    rows = [{"text": str(i), "label": "x"} for i in range(50)]
    for held in (True, False):
        assert list(survey(lambda: iter(rows), Overlap([]), lambda row: row["text"], held=held).rows()) == rows
