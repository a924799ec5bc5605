"""What a report and an explanation say of tables: against scikit-learn, and where the truth is known."""

import json
import random

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error

from bigmodel import pipeline
from bigmodel.errors import DataError
from bigmodel.evaluation import boosting, metrics, regression
from bigmodel.evaluation.boosting import advice, classifier, compare_distances
from bigmodel.evaluation.evidence import Evidence
from bigmodel.experiment import change
from bigmodel.predictor import Predictor
from bigmodel.tasks import tabular_regression
from bigmodel.training.fit import fit


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"]])
def test_the_area_under_the_curve_agrees_with_scikit_learn(labels):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(len(labels)), 200).round(2)
    scores /= scores.sum(1, keepdims=True)
    wanted = [labels[i] for i in rng.integers(len(labels), size=200)]
    theirs = roc_auc_score(wanted, scores[:, 1] if len(labels) == 2 else scores, multi_class="ovr")
    ours = metrics.area_under_curve([dict(zip(labels, row, strict=True)) for row in scores.tolist()], wanted)
    assert ours == pytest.approx(theirs)
    assert metrics.area_under_curve([{"a": 0.5, "b": 0.5}], ["a"]) is None


def test_the_metrics_of_numbers_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal(300)
    found = wanted + rng.standard_normal(300) / 2
    assert metrics.rmse(found, wanted) == pytest.approx(root_mean_squared_error(wanted, found))
    assert metrics.mae(found, wanted) == pytest.approx(mean_absolute_error(wanted, found))
    assert metrics.r2(found, wanted) == pytest.approx(r2_score(wanted, found))
    for interval, value in [(metrics.rmse_interval, metrics.rmse), (metrics.r2_interval, metrics.r2)]:
        low, high = interval(found, wanted)
        assert low < value(found, wanted) < high


def test_rows_that_want_one_number_have_no_spread_to_explain():
    wanted, found = np.full(30, 0.1), np.full(30, 0.2)
    assert metrics.r2(found, wanted) == 0 and metrics.r2(wanted, wanted) == 1
    assert metrics.r2_interval(found, wanted) == (0, 0)
    wanted[0] = 0.3  # of 1,000 resamples many are without it
    assert min(metrics.r2_interval(found, wanted)) > -1e3


def test_one_number_in_all_training_rows_is_refused():
    rows = [{"features": json.dumps({"a": i}), "label": 0.1} for i in range(30)]
    data = {"train": "unused", "label": "y"}
    experiment = change({"task": "tabular-regression", "data": data, "model": {"type": "tabular_mlp"}}, ())
    with pytest.raises(DataError, match="column 'y': it is 0.1 in all training rows"):
        tabular_regression.fit(lambda: rows, experiment)


def test_the_better_of_two_is_named():
    wanted = np.arange(100.0)
    comparison = compare_distances(wanted + 1, wanted + 0.1, wanted)
    assert comparison["better"] == "gradient boosting" and comparison["beyond_noise"]
    assert "is the better choice" in advice({"comparison": comparison, "seconds": 1.0})
    assert not advice({"comparison": compare_distances(wanted, wanted + 1, wanted), "seconds": 1.0})


@pytest.fixture(scope="module", params=["tabular-classification", "tabular-regression"])
def taught(request, tmp_path_factory):
    """A run on 300 rows where `a` and `c` decide, `b` does not, and the label of a few is missing from `c`."""
    folder, rng = tmp_path_factory.mktemp("table"), random.Random(0)
    lines = []
    for _ in range(300):
        a, b, c = rng.uniform(0, 10), rng.uniform(0, 10), rng.choice(["x", "y", ""])
        y = a + 5 * (c == "x")
        lines.append(f"{a},{b},{c},{y if request.param == 'tabular-regression' else 'high' if y > 6 else 'low'}")
    (folder / "rows.csv").write_text("\n".join(["a,b,c,y", *lines]))
    experiment = change(
        {
            "task": request.param,
            "data": {"train": str(folder / "rows.csv"), "label": "y", "split": {"valid": 0.1, "test": 0.2}},
            "model": {"type": "tabular_mlp", "hidden_size": 32, "embedding_size": 8},
            "optim": {"lr": 5e-3},
            "train": {"epochs": 15, "batch_size": 32, "threads": 1, "precision": "fp32"},
            "output": str(folder / "run"),
        },
        (),
    )
    run = fit(experiment)
    return run, pipeline.test(experiment, run), folder


def test_what_decides_is_worth_most_and_gradient_boosting_stands_beside(taught):
    _, report, _ = taught
    worth = {one["column"]: one["drop"] for one in report["importance"]["columns"]}
    assert min(worth["a"], worth["c"]) > 3 * abs(worth["b"])
    assert report["baselines"]["boosting"]["comparison"]["statement"]


def test_the_rows_of_a_file_are_explained_and_the_weights_sum_to_what_they_explain(taught, capsys):
    run, _, folder = taught
    (folder / "new.csv").write_text("a,b,c\n9,1,x\n,5,never seen\n")
    pipeline.predict(run.model, [str(folder / "new.csv")], folder / "why.jsonl", explain=True)
    pipeline.predict(run.model, [str(folder / "new.csv")], folder / "answers.jsonl", explain=False, changes=[
        "data.max_bad=1"])  # fmt: skip
    why = [json.loads(line) for line in (folder / "why.jsonl").read_text().splitlines()]
    assert [one["line"] for one in why] == [2, 3]
    for one in why:
        total = sum(column["weight"] for column in one["columns"])
        assert total == pytest.approx(one["value"] - one["value_of_typical"], abs=0.1)
    weights = {column["column"]: abs(column["weight"]) for column in why[0]["columns"]}
    assert weights["a"] > weights["b"]
    pipeline.predict(run.model, [str(folder / "new.csv")], explain=True)
    assert "of a typical row" in capsys.readouterr().out


def test_a_row_that_cannot_be_explained_is_named(taught):
    run, _, folder = taught
    (folder / "bad.csv").write_text("a,b,c\n9,1,x\nmany,5,y\n")
    with pytest.raises(DataError, match=r"bad\.csv:3: column 'a' holds numbers; found 'many'"):
        pipeline.predict(run.model, [str(folder / "bad.csv")], explain=True)


def test_gradient_boosting_bears_a_label_of_one_row_among_many(taught):
    predictor = Predictor.load(taught[0].model)
    if predictor.name != "tabular-classification":
        pytest.skip("a regression has no labels")
    rows = [
        {"features": json.dumps({"a": i % 10, "b": 1, "c": "x"}), "label": "u" if i % 2 else "v"} for i in range(10_001)
    ]
    rows[0]["label"] = "rare"
    assert classifier(predictor, rows, rows[:20], ["u"] * 20)["accuracy"] > 0.9


def test_the_mean_and_what_was_trained_on_are_of_all_training_rows(taught, monkeypatch):
    predictor = Predictor.load(taught[0].model)
    if predictor.name != "tabular-regression":
        pytest.skip("a classification has no mean")
    monkeypatch.setattr(boosting, "CELLS", 3 * 40)  # it is fitted on 40 rows of three columns
    known, rows = (
        [{"features": json.dumps({"a": i % 10, "b": i, "c": "x"}), "label": float(i)} for i in numbers]
        for numbers in (range(200), range(180, 230))
    )
    found = regression.analyse(
        Evidence(predictor.task, rows, lambda i: ("test.csv", i + 2), predictor.predict(rows), lambda: known,
                 lambda line: None, predictor)
    )  # fmt: skip
    assert found["also_in_training"] == {"rows": 20}
    assert found["baselines"]["mean"]["value"] == 99.5
    assert found["baselines"]["boosting"]["drawn_from"] == 200


def test_a_request_has_the_models_own_columns(taught):
    run, _, _ = taught
    predictor = Predictor.load(run.model)
    request = predictor.task.request(predictor.processor)
    schema = request.model_json_schema()
    assert set(schema["properties"]) == {"a", "b", "c"} and schema["required"] == ["a", "b"]
    assert set(schema["example"]) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="d\n.*Extra inputs"):
        request.model_validate({"a": 1, "b": 2, "d": 3})
