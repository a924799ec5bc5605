"""Tables: what is inferred of a column, what a row becomes, which rows and files are refused."""

import json
import time
from datetime import datetime

import numpy as np
import pytest

from bigmodel import pipeline
from bigmodel.data import arrow
from bigmodel.data.clean import clean, read_options
from bigmodel.errors import ConfigError, DataError
from bigmodel.experiment import DataConfig, TableConfig, change
from bigmodel.models.table_processor import TableProcessor
from bigmodel.tasks import table, tabular_classification
from bigmodel.tasks.base import Refused
from bigmodel.tasks.columns import learn
from bigmodel.training.fit import fit

COLUMNS = {  # name -> values, and the kind that they are of; None is not read
    "words": (["a", "b", "a", ""] * 50, "category"),
    "numbers": ([1, "2.5", None, "1e3"] * 50, "number"),
    "truths": (["yes", "no", "Yes", "NA"] * 50, "boolean"),
    "days": (["2024-03-31", "1999-01-01T12:00:00+02:00", "?", "2000-02-29"] * 50, "date"),
    "names": ([f"name {i}" for i in range(200)], None),
    "constant": (["x"] * 200, None),
    "empty": ([""] * 200, None),
}


def records() -> list[dict]:
    return [{name: values[i] for name, (values, _) in COLUMNS.items()} for i in range(200)]


def test_the_kind_of_a_column_is_inferred_and_what_is_not_read_says_why():
    found = learn(records(), TableConfig())
    assert {column["name"]: column["kind"] for column in found.columns} == {
        name: kind for name, (_, kind) in COLUMNS.items() if kind
    }
    assert {name: why.split(":")[0] for name, why in found.ignored.items()} == {
        "names": "looks like free text",
        "constant": "is the same in all training rows",
        "empty": "is empty",
    }


def test_a_kind_that_is_named_wins_and_a_name_that_is_none_is_refused():
    found = learn(records(), TableConfig(types={"numbers": "category"}))
    assert next(c for c in found.columns if c["name"] == "numbers")["categories"] == ["1", "1e3", "2.5"]
    with pytest.raises(ConfigError, match="names 'number', but there is no such column. Did you mean 'numbers'"):
        learn(records(), TableConfig(types={"number": "category"}))
    with pytest.raises(DataError, match="column 'words' holds numbers; found 'a'.*says that it is a number"):
        learn(records(), TableConfig(types={"words": "number"}))


def test_a_column_of_numbers_with_a_few_words_asks_what_they_are():
    rows = [{"age": str(i)} for i in range(200)] + [{"age": "unknown"}]
    with pytest.raises(DataError, match=r"holds numbers but for 1 of 201 values, such as 'unknown'.*table.missing"):
        learn(rows, TableConfig())
    assert learn(rows, TableConfig(missing=["unknown"])).columns[0]["kind"] == "number"


def test_a_small_column_of_numbers_or_dates_is_no_category_for_one_word():
    for plain, kind in ((str, "number"), (lambda i: f"2024-01-{1 + i % 28:02}", "date")):
        rows = [{"x": plain(i)} for i in range(28)] + [{"x": "unknown"}]
        with pytest.raises(DataError, match=f"holds {kind}s but for 1 of 29 values, such as 'unknown'"):
            learn(rows, TableConfig())


@pytest.mark.parametrize("form", ["{},234.5", "{} kg", "{}%", "$ {}", "-{} 000"])
def test_numbers_that_are_not_written_plainly_are_neither_categories_nor_free_text(form):
    with pytest.raises(DataError, match="holds numbers with a sign or unit, such as .*types={x: category}"):
        learn([{"x": form.format(i)} for i in range(1, 200)], TableConfig())
    few = learn([{"x": form.format(i % 3)} for i in range(200)], TableConfig())
    named = learn([{"x": form.format(i)} for i in range(200)], TableConfig(types={"x": "category"}))
    assert {few.columns[0]["kind"], named.columns[0]["kind"]} == {"category"}


@pytest.mark.parametrize("form", ["C{}", "{}{letter}B", "1_{}", "10.{}.2.1"])
def test_names_that_have_digits_are_no_numbers(form):
    rows = [{"x": form.format(i % 50, letter="ABCDE"[i % 5])} for i in range(500)]
    assert [column["kind"] for column in learn(rows, TableConfig()).columns] == ["category"]


DATES = {  # as strptime has it -> values of the training rows
    "%d/%m/%Y": ["31/12/2020", "01/02/2021", "3/4/1999"],
    "%m/%d/%Y": ["12/31/2020", "01/02/2021", "3/4/1999"],
    "%d.%m.%Y": ["31.12.2020", "01.02.2021"],
    "%d-%m-%Y": ["31-12-2020", "01-02-2021"],
    "%Y/%m/%d": ["2020/12/31", "2021/02/01", "2021/03/04"],
    "%Y.%m.%d": ["2020.12.31", "2021.02.01"],
    "%d/%m/%Y %H:%M": ["31/12/2020 23:59", "01/02/2021 00:00"],
    "%m/%d/%YT%H:%M:%S": ["12/31/2020T23:59:59", "01/02/2021T00:00:00"],
}


@pytest.mark.parametrize("form", DATES)
def test_dates_are_read_as_all_training_rows_can_be_read(form, tmp_path):
    processor = learn([{"since": value} for value in DATES[form]], TableConfig())
    processor.save_pretrained(tmp_path)
    processor = TableProcessor.from_pretrained(tmp_path)
    (column,) = processor.columns
    assert (column["kind"], column["format"]) == ("date", form)
    plain = learn([{"since": datetime.strptime(value, form).isoformat()} for value in DATES[form]], TableConfig())
    assert column["parts"] == plain.columns[0]["parts"], "what the same dates teach in ISO"
    for wrong in ("2020-12-31", "31/31/2020", "yesterday"):
        with pytest.raises(ValueError, match=rf"'since' holds dates such as .* \({form}\); found '{wrong}'"):
            processor.encode([{"since": wrong}])


def test_dates_whose_day_and_month_cannot_be_told_apart_ask_for_their_form():
    rows = [{"since": f"{1 + i % 12:02}/{1 + i % 7:02}/2020"} for i in range(80)]
    with pytest.raises(DataError, match=r"no row tells day from month.*dates=\{since: '%d/%m/%Y'\} or '%m/%d/%Y'"):
        learn(rows, TableConfig())
    with pytest.raises(DataError, match="no row tells day from month"):
        learn(rows, TableConfig(types={"since": "date"}))
    (column,) = learn(rows, TableConfig(dates={"since": "%m/%d/%Y"})).columns
    assert column["format"] == "%m/%d/%Y" and column["example"] == "01/01/2020"
    assert learn(rows, TableConfig(types={"since": "category"})).columns[0]["kind"] == "category"


def test_a_column_of_one_date_asks_nobody_how_it_is_written():
    rows = [{"since": f"{1 + i}/13/2020", "exported": "01/02/2024"} for i in range(12)]
    assert learn(rows, TableConfig()).ignored == {"exported": "is the same in all training rows"}


def test_a_column_of_dates_with_a_word_or_of_several_forms_is_said():
    rows = [{"since": f"{1 + i % 28}/01/20{i // 28:02}"} for i in range(80)]
    for other in ("unknown", "2020-01-31", "1/31/2020"):
        with pytest.raises(DataError, match=f"holds dates but for 1 of 81 values, such as '{other}'"):
            learn([*rows, {"since": other}], TableConfig())


def test_dates_of_any_form_can_be_named_and_others_are_refused():
    rows = [{"since": f"{1 + i % 28} Mar 20"} for i in range(28)]
    (column,) = learn(rows, TableConfig(dates={"since": "%d %b %y"})).columns
    assert column["kind"] == "date"
    with pytest.raises(DataError, match="found '1 Mar 20'. data.table.dates says that it is a date"):
        learn(rows, TableConfig(dates={"since": "%d/%m/%Y"}))
    with pytest.raises(ConfigError, match="data.table.dates names 'sinse', but .* Did you mean 'since'"):
        learn(rows, TableConfig(dates={"sinse": "%d/%m/%Y"}))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("{dates: {since: '%d/%m'}}", "'%d/%m' of 'since' does not tell day, month and year"),
        ("{dates: {since: '%d.%m.%Y - %d.%m.%Y'}}", "of 'since' does not tell day, month and year"),
        ("{dates: {since: '%d/%m/%Y'}, types: {since: number}}", "of which types says that it is: number"),
    ],
)
def test_a_form_that_is_none_is_refused_with_its_line(made, table, words):
    with pytest.raises(ConfigError, match=words):
        made(f"data.table={table}")


def test_a_request_is_read_as_the_training_rows_were():
    processor = learn([{"since": value} for value in DATES["%d/%m/%Y"]], TableConfig())
    request = table.request(processor)
    assert "such as 31/03/2024 (%d/%m/%Y)" in request.model_json_schema()["properties"]["since"]["description"]
    row = table.asked(dict(request.model_validate({"since": "13/01/2020"})), processor)
    assert json.loads(row["features"]) == {"since": "13/01/2020"}
    with pytest.raises(Refused, match=r"'since' holds dates such as 31/03/2024 \(%d/%m/%Y\); found '2020-01-13'"):
        table.asked(dict(request.model_validate({"since": "2020-01-13"})), processor)


def test_truths_are_read_however_they_are_written():
    values = ["yes", "FALSE", 1, "t", True, "N", 0.0, "y", "0", None]
    processor = learn([{"x": value} for value in values], TableConfig())
    assert processor.columns[0]["kind"] == "boolean"
    ids = processor.encode([{"x": value} for value in values])[1][:, 0].tolist()
    assert ids == [2, 3, 2, 2, 2, 3, 3, 2, 3, 1]


@pytest.mark.parametrize("word", ["NAN", "Nan", "-nan", "+NaN"])
def test_nan_is_missing_however_it_is_spelt(word, made, tmp_path):
    assert (
        learn([{"x": i, "y": "a"} for i in range(30)] + [{"x": word, "y": "b"}], TableConfig()).columns[0]
        == (learn([{"x": i, "y": "a"} for i in range(30)] + [{"x": "", "y": "b"}], TableConfig()).columns[0])
    )
    rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([*rows, *(f"{word},x,high" for _ in range(8))]))
    run = fit(made("data.table.types={a: number}"))
    (tmp_path / "asked.csv").write_text(f"a,b\n{word},x\n,x\n20,x\n")
    pipeline.predict(run.model, [str(tmp_path / "asked.csv")], tmp_path / "answers.jsonl")
    answers = [json.loads(line)["scores"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    of_nan, of_nothing, of_median = answers
    assert of_nan == of_nothing != of_median


def test_a_category_is_the_same_as_number_and_as_word():
    processor = learn([{"x": value} for value in ["3.0", "4.0", "4.5"]], TableConfig(types={"x": "category"}))
    codes = [processor.encode([{"x": value}])[1].item() for value in (3, 3.0, "3", "3.0", " 3")]
    assert len(set(codes)) == 1 and codes[0] > 1


def test_a_record_is_the_same_in_another_order_and_spelling():
    same = [{"a": 1, "b": "x", "c": None}, {"b": "x", "c": None, "a": 1.0}, {"c": None, "a": "1", "b": "x"}]
    assert len({table.content({"features": json.dumps(record)}) for record in same}) == 1
    other = [{"a": 1}, {"a": None}, {"a": ""}, {"a": 1.5}, {"b": 1}]
    assert len({table.content({"features": json.dumps(record)}) for record in other}) == 5


def test_a_truth_is_no_number():
    processor = learn([{"x": i} for i in range(9)], TableConfig())
    with pytest.raises(ValueError, match="column 'x' holds numbers; found True"):
        processor.encode([{"x": True}])


def test_numbers_however_skewed_become_standard_normal_and_keep_their_order():
    rng = np.random.default_rng(0)
    values = np.exp(3 * rng.standard_normal(5000))
    processor = learn([{"x": value} for value in values.tolist()], TableConfig())
    numbers, _ = processor.encode([{"x": value} for value in values.tolist()])
    assert numbers.mean() == pytest.approx(0, abs=0.01) and numbers.std() == pytest.approx(1, abs=0.01)
    assert (np.diff(numbers[np.argsort(values), 0]) >= 0).all()
    outside, _ = processor.encode([{"x": -1e9}, {"x": 1e9}])
    assert outside[0] == numbers.min() and outside[1] == numbers.max()


def test_missing_values_and_unseen_categories_have_codes_of_their_own(tmp_path):
    processor = learn(records(), TableConfig())
    processor.save_pretrained(tmp_path)
    processor = TableProcessor.from_pretrained(tmp_path)
    row = {"words": "never seen", "numbers": "?", "truths": None, "days": "2024-03-31"}
    numbers, codes = processor.encode([row])
    assert np.isnan(numbers[0, 0]) and np.isfinite(numbers[0, 1:]).all()
    assert codes.tolist() == [[0, 1]]
    for wrong in ({"numbers": "many"}, {"days": "31.3.2024"}, {"truths": "maybe"}):
        with pytest.raises(ValueError, match=f"column '{next(iter(wrong))}' holds .*; found"):
            processor.encode([row | wrong])


def test_a_column_that_was_never_empty_must_be_there():
    processor = learn([{"x": i} for i in range(9)], TableConfig())
    with pytest.raises(ValueError, match="column 'x' is not there"):
        processor.encode([{"y": 1}])
    assert processor.encode([{"x": None}])[0][0, 0] == processor.encode([{"x": 4}])[0][0, 0], "the median"
    processor = learn([{"x": "ab"[i % 2]} for i in range(9)], TableConfig())
    assert processor.encode([{"x": None}])[1].item() == 0, "the code of what is missing was never trained"


@pytest.fixture
def made(tmp_path):
    """made("key=value", ...): an experiment on 80 rows, where `a` decides; the test file ends labels in a dot."""
    rows = [f"{i % 40},{'x' if i % 3 else 'y'},{'high' if i % 40 > 20 else 'low'}" for i in range(80)]
    (tmp_path / "train.csv").write_text("\n".join(["a,b,y", *rows]))
    (tmp_path / "test.csv").write_text("\n".join(["a,b,y", *(f"{row}." for row in rows)]))
    return lambda *changes: change(
        {
            "task": "tabular-classification",
            "data": {"train": str(tmp_path / "train.csv"), "label": "y", "split": {"valid": 0.2, "test": 0}},
            "model": {"type": "tabular_mlp", "hidden_size": 8, "embedding_size": 4},
            "train": {"epochs": 2, "batch_size": 16, "threads": 1, "precision": "fp32"},
            "output": str(tmp_path / "run"),
        },
        changes,
    )


def test_labels_of_another_file_that_end_in_a_dot_are_refused_with_what_to_do(made, tmp_path):
    test = f"data.test={tmp_path / 'test.csv'}"
    with pytest.raises(DataError, match=r"label 'low\.' does not occur.*data.relabel=\{'low\.': 'low'\}"):
        fit(made(test))
    run = fit(made(test, "data.relabel={low.: low, high.: high}"))
    assert pipeline.test(made(test, "data.relabel={low.: low, high.: high}"), run)["rows"] == 80


def test_the_label_is_never_a_feature_and_rows_that_cannot_be_read_are_answered_with_the_reason(made, tmp_path):
    run = fit(made("data.max_bad=1"))
    (tmp_path / "with.csv").write_text("y,b,a\nhigh,x,3\nlow,y,many\n")
    (tmp_path / "without.csv").write_text("a,b\n3,x\n")
    pipeline.predict(run.model, [str(tmp_path / "with.csv")], tmp_path / "with.jsonl")
    pipeline.predict(run.model, [str(tmp_path / "without.csv")], tmp_path / "without.jsonl")
    first, second = (json.loads(line) for line in (tmp_path / "with.jsonl").read_text().splitlines())
    alone = json.loads((tmp_path / "without.jsonl").read_text())
    assert first["scores"] == alone["scores"]
    assert second["line"] == 3 and second["error"] == "column 'a' holds numbers; found 'many'"
    (tmp_path / "wrong.csv").write_text("c,d\n" + "3,x\n" * 9)
    with pytest.raises(DataError, match=r"wrong.csv: no column 'a', which the model reads, nor b. Columns: c, d"):
        pipeline.predict(run.model, [str(tmp_path / "wrong.csv")])
    (tmp_path / "none.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"none.csv: holds no row"):
        pipeline.predict(run.model, [str(tmp_path / "none.csv")], tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_misspelt_column_to_ignore_is_refused(made):
    with pytest.raises(DataError, match="ignores 'aa', but there is no such column. Did you mean 'a'"):
        fit(made("data.table.types={aa: ignore}"))


def test_two_columns_of_one_name_are_refused(made, tmp_path):
    (tmp_path / "train.csv").write_text("a,b,a,y\n1,2,3,u\n2,3,4,v\n")
    with pytest.raises(DataError, match=r"train.csv: 2 columns are called 'a'. Give each a name of its own"):
        fit(made())


def test_ten_thousand_columns_are_compared_by_their_names_in_no_time(tmp_path):
    """Each with all others took 30 times as long."""
    names = [f"column {i}" for i in range(10_000)]
    (tmp_path / "wide.csv").write_text("\n".join(",".join(line) for line in (names, ["1"] * len(names))))
    data = DataConfig(train="-", label=names[0])
    began = time.process_time()
    wanted = tabular_classification.columns(data)
    (row,) = clean(str(tmp_path / "wide.csv"), tabular_classification, wanted, read_options(data))
    assert len(json.loads(row.row["features"])) == 9_999 and time.process_time() - began < 0.3


def test_large_targets_are_learnt_as_exactly_as_small_ones(made, tmp_path):
    """An instant in microseconds: fp32 could not tell the rows apart. What cannot be squared at all is refused."""
    scores = {}
    for name, offset, unit in (("small", 0, 1), ("large", 10**15, 1), ("huge", 0, 10.0**200)):
        rows = [f"{i % 40},{'x' if i % 3 else 'y'},{offset + unit * (i % 40)}" for i in range(80)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,y", *rows]))
        file, task = tmp_path / f"{name}.csv", "task=tabular-regression"
        experiment = made(task, f"data.train={file}", f"data.valid={file}", "data.split={valid: 0, test: 0}",
                          f"output={tmp_path / name}")  # fmt: skip
        if name == "huge":
            with pytest.raises(
                DataError, match=r"column 'y': its numbers, such as 3.9e\+201, are too large to be squared"
            ):
                fit(experiment)
        else:
            scores[name] = pipeline.test(experiment, fit(experiment))["metrics"]["rmse"]
    assert scores["large"] == pytest.approx(scores["small"], abs=0.2)


def test_titanic_is_read_with_its_quoted_names_and_missing_values(data_folder, tmp_path):
    report = pipeline.test(
        experiment := change(
            {
                "task": "tabular-classification",
                "data": {"train": str(data_folder / "tab_titanic" / "titanic.csv"), "label": "Survived",
                         "table": {"types": {"PassengerId": "ignore"}}, "split": {"valid": 0.1, "test": 0.2}},
                "optim": {"lr": 2e-3},
                "train": {"epochs": 8, "batch_size": 32, "threads": 1, "precision": "fp32"},
                "output": str(tmp_path / "run"),
            },
            (),
        ),
        fit(experiment),
    )  # fmt: skip
    assert report["metrics"]["accuracy"] > 0.72
    assert "boosting" in report["baselines"] and "Name" in {one["column"] for one in report["columns"]["ignored"]}


def test_a_batch_is_picked_from_several_part_files_as_from_one_and_none_is_held(tmp_path):
    rng = np.random.default_rng(0)
    samples = [
        {"numbers": rng.standard_normal(3).astype(np.float32), "categories": np.array([i], np.int32), "labels": i % 2}
        for i in range(100)
    ]
    cuts = {"one": [0, 100], "many": [0, 10, 11, 60, 100]}
    of = {}
    for name, ends in cuts.items():
        paths = [tmp_path / f"{name}-{start:05d}.arrow" for start in ends[:-1]]
        for path, start, end in zip(paths, ends, ends[1:], strict=False):
            arrow.write(path, arrow.sample_table(samples[start:end], [4] * (end - start)))
        of[name] = table.examples(arrow.Samples(paths), None)
    ids = rng.permutation(100)[:37]
    for sample, also, i in zip(of["one"].take(ids), of["many"].take(ids), ids, strict=True):
        assert sample["categories"] == also["categories"] == [i] and (sample["numbers"] == also["numbers"]).all()
    assert len(of["many"]) == 100 and of["many"].lengths[ids].tolist() == [4] * 37
    held = [part for parts in of["many"]._fields.values() for part in parts]
    assert len(held) == 12 and not any(part.flags.owndata or part.flags.writeable for part in held)
