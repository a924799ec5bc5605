"""The summary a person reads: on a terminal, in a log, in any alphabet, with few labels or many."""

import copy
import io
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from bigmodel import tasks
from bigmodel.evaluation import report as reports
from bigmodel.evaluation.classification import SHOWN_CLASSES, analyse
from bigmodel.evaluation.evidence import Evidence

TRAINING = {
    "rows": 9516,
    "steps": 298,
    "seconds": 117.1,
    "samples_per_s": 162.4,
    "best_step": 149,
    "parameters": 2_463_334,
    "precision": "bf16",
}
SPEED = {
    "seconds": 3.02,
    "rows_per_s": 818.0,
    "tokens_per_s": 20339.4,
    "device": "cpu",
    "precision": "fp32",
    "threads": 2,
}


def made(labels, texts, wanted, found, learnt_from=None, **more):
    """A report of answers made by hand; every answer is 0.8 sure."""
    task, rest = tasks.get("text-classification"), 0.2 / (len(labels) - 1)
    rows = [{"text": text, "label": label} for text, label in zip(texts, wanted, strict=True)]
    answers = [
        {"label": label, "score": 0.8, "scores": {name: 0.8 if name == label else rest for name in labels}}
        for label in found
    ]
    evidence = Evidence(task, rows, lambda i: ("/data/评论.csv", i + 2), answers, learnt_from, lambda line: None)
    report = {"task": "text-classification", "rows": len(rows), "metrics": task.score(answers, rows)}
    report |= analyse(evidence) | {"truncated": {"rows": 0, "longest": 0, "read": 0}, "speed": SPEED}
    return report | more


@pytest.fixture
def report():
    texts = ["很好吃", "味道不错", "难吃", "太慢了，等了两个小时，菜都凉了" * 10]
    wanted, found = ["好", "好", "坏", "坏"], ["好", "坏", "坏", "好"]
    training = [{"text": text, "label": label} for text, label in zip(texts, wanted, strict=True)]
    return made(["坏", "好"], texts, wanted, found, lambda: iter(training), split="test", training=TRAINING)


def lines(report, width=80, **options):
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, **options).print(reports.summary(report))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_summary_says_what_the_report_holds(report):
    text = "\n".join(lines(report, width=200))
    for said in (
        "text-classification, 4 rows of the test",
        "this model         0.5000  0.150 to 0.850    0.5000",
        "linear baseline",
        "character 1- and 2-grams, linear SVM; 4 training rows",
        "majority",
        report["baselines"]["linear"]["comparison"]["statement"],
        "Calibration error 0.3000: 0.8000 sure on average, 0.5000 right (overconfident)",
        "4 of the tested rows also stand in the training rows",
        "2,463,334 parameters, 9,516 rows, 298 steps, best after 149, 117.1 s, 162 samples/s, bf16",
        "818 rows/s, 20,339 tokens/s, 3.02 s (cpu, 2 threads, fp32)",
        "/data/评论.csv:3  wanted 好, found 坏 (0.800), loss 1.61",
        "worst mistakes (2 of 4 rows are wrong)",
    ):
        assert said in text, said


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("terminal", [False, True])
def test_wide_characters_stay_within_the_width(report, width, terminal):
    found = lines(report, width, force_terminal=terminal, color_system=None)
    assert max(cell_len(line) for line in found) <= width


def test_columns_of_wide_labels_end_at_the_same_cell(report):
    found = lines(report)
    start = found.index("confusion: wanted in rows, found in columns")
    assert [cell_len(line) for line in found[start + 1 : start + 4]] == [10, 10, 10]
    assert found[start + 2].split() == ["坏", "1", "1"]


def test_show_prints_plain_lines_where_there_is_no_terminal(report, capsys):
    reports.show(report)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "this model" in out and not any(line.endswith(" ") for line in out.splitlines())


def test_a_terminal_gets_bold_headings(report):
    assert any("\x1b[1mper class" in line for line in lines(report, force_terminal=True, color_system="standard"))


def test_show_survives_an_output_that_knows_no_chinese():
    code = (
        "from bigmodel.evaluation.report import show\n"
        "import json, sys\n"
        "show(json.load(open(sys.argv[1], encoding='utf-8')))\n"
    )
    import json
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(made(["坏", "好"], ["吃", "喝"], ["坏", "好"], ["好", "好"]), file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-c", code, file.name],
            capture_output=True,
            env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"},
            check=True,
        )
    assert b"wanted ?, found ?" in done.stdout


def test_many_classes_are_cut_to_the_worst_and_the_matrix_gives_way_to_pairs():
    labels = [f"label {i:03d}" for i in range(60)]
    wanted = labels * 2
    found = labels + labels[1:] + labels[:1]  # each label is right once and taken for the next one once
    found[labels.index("label 007")] = "label 008"  # but this one is never right
    text = lines(made(labels, [f"t{i}" for i in range(120)], wanted, found))
    start = text.index(f"per class: the {SHOWN_CLASSES} lowest F1 of 60 (all are in the report)")
    assert text[start + 2].split()[:2] == ["label", "007"]
    assert text[start + 2 + SHOWN_CLASSES] == ""
    pairs = text.index("most often confused")
    assert text[pairs + 2].split() == ["2", "label", "007", "label", "008"]
    assert not any(line.startswith("confusion") for line in text)


def test_labels_that_the_model_does_not_know_are_named_with_their_place(report):
    strange = made(["0", "1"], ["a", "b", "c"], ["0", "yes", "yes"], ["0", "0", "1"])
    text = " ".join(lines(strange))
    assert "Rows with a label that the model does not know: 2" in text
    assert "'yes' (2, first /data/评论.csv:3). The model knows 0, 1." in text


def test_a_report_without_training_or_linear_baseline_is_shown_too():
    text = "\n".join(lines(made(["0", "1"], ["a"], ["0"], ["0"])))
    assert "There is no linear baseline: the training rows are not at hand." in text
    assert "text-classification, 1 row\n" in text
    assert "training   " not in text


@pytest.mark.parametrize(("num_rows", "warned"), [(29, True), (30, False)])
def test_a_summary_of_few_rows_warns_of_its_intervals(num_rows, warned):
    text = "\n".join(lines(made(["0", "1"], ["a"] * num_rows, ["0"] * num_rows, ["0"] * num_rows)))
    assert ("So few rows say little" in text) == warned
    assert f"\n0 of {num_rows} rows are wrong\n" in text


def test_validation_rows_are_called_what_they_are(report):
    assert "the model was chosen by them" in "\n".join(lines(report | {"split": "valid"}, width=200))


def test_rows_that_were_read_in_part_are_told(report):
    text = " ".join(lines(report | {"truncated": {"rows": 2, "longest": 463, "read": 256}}, width=200))
    assert "2 of 4 rows were read in part: the model reads 256 tokens, the longest row has 463" in text


def test_what_is_not_known_of_the_training_is_left_out(report):
    text = "\n".join(lines(report | {"training": {"steps": 10, "parameters": None}}))
    assert "training   10 steps\n" in text + "\n"


def test_texts_and_labels_cannot_steer_the_terminal_or_be_taken_for_markup():
    evil = "a\x1b[31m\x07b\u202ec [bold]d[/bold] :smile:"
    text = "\n".join(lines(made([evil, "x"], [evil], ["x"], [evil]), width=200))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "[bold]d[/bold] :smile:" in text


def test_showing_changes_nothing_in_the_report(report):
    before = copy.deepcopy(report)
    lines(report)
    assert report == before
