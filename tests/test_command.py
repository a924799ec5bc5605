"""The command as a person types it: in a process of its own, judged by what it prints and how it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigmodel import pipeline
from bigmodel.errors import ConfigError
from bigmodel.experiment import load

VERBS = ["train", "evaluate", "predict", "serve", "demo", "runs", "show", "diff", "reproduce"]
HEAVY = ["torch", "ray", "transformers", "numpy", "pyarrow", "sklearn", "captum"]
PROBE = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", [name for name in {HEAVY} if name in sys.modules]))
sys.argv = ["bigmodel", *sys.argv[1:]]
from bigmodel.__main__ import main
main()
"""


def bigmodel(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigmodel", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=env)


def message(done: subprocess.CompletedProcess[str]) -> str:
    """What a mistake is answered with: on standard error, without a traceback, with exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS), ["--version"], []])
def test_help_answers_without_importing_anything_heavy(arguments):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert "loaded: []" in done.stdout, done.stdout + done.stderr
    assert done.returncode == (0 if arguments else 2)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("data.train=nowhere.csv", "nowhere.csv: no such file"),
        ("train.workers=1..2", "train.workers is 1..2: trials share the cluster"),
        ("optim.lr=log:2..1", "command line: tune.space: optim.lr: 'log:2..1' is no range"),
        ("optim.lrr=log:1..2", "optim has no field 'lrr'. Did you mean 'lr'?"),
        ("tune.space.optim.lrr=log:1..2", "optim has no field 'lrr'. Did you mean 'lr'?"),
        ("data.label=text", "data.text and data.label are the same column"),
    ],
)
def test_what_is_wrong_of_a_search_is_told_before_ray_starts(change, expected, tmp_path, reviews):
    reviews(tmp_path / "reviews.csv", 20)
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: text, label: label}\n"
    )
    command = [sys.executable, "-c", PROBE, "tune", "reviews.yaml", change]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert expected in message(done)
    assert "'ray'" not in done.stdout, "the process has not even imported it"


def test_all_wrong_ranges_are_said_at_once_with_their_lines(tmp_path, reviews):
    reviews(tmp_path / "reviews.csv", 20)
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: text, label: label}\ntune:\n  space:\n"
        "    optim.lr: log:2..1\n    train.epochs: int:1..2\n    optim.lrr: log:1..2\n    model.hiden_size: [4, 8]\n"
    )
    lines = message(bigmodel("tune", "reviews.yaml", "optim.eps=log:0..1", folder=tmp_path)).splitlines()
    assert len(lines) == 4, lines
    assert "reviews.yaml:5: tune.space: optim.lr: 'log:2..1' is no range" in lines[0]
    assert "reviews.yaml:7: tune.space: optim.lrr: optim has no field 'lrr'. Did you mean 'lr'?" in lines[1]
    assert "reviews.yaml:8: tune.space: model.hiden_size: model has no field 'hiden_size'" in lines[2]
    assert "command line: tune.space: optim.eps: 'log:0..1': log wants numbers above 0" in lines[3]


def test_another_search_in_the_folder_is_told_before_ray_starts(tmp_path, reviews, monkeypatch):
    from tune_jobs.journal import Journal
    from tune_jobs.search import take_up
    from tune_jobs.tune import refuse_at_once

    monkeypatch.chdir(tmp_path)
    reviews(tmp_path / "reviews.csv", 20)
    file, folder = Path("reviews.yaml"), tmp_path / "run-tune"
    file.write_text("task: text-classification\ndata: {train: reviews.csv, text: text, label: label}\noutput: run\n")
    refuse_at_once(file, [], fresh=False)
    assert not folder.exists()
    folder.mkdir()
    take_up(folder, load(file))
    Journal(folder / "trials.jsonl").begin(0, {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", PROBE, "tune", "reviews.yaml", "optim.eps=1e-6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = message(done)
    assert "run-tune holds another search. What differs:" in said and "optim.eps: 1e-08 -> 1e-06" in said
    assert "'ray'" not in done.stdout, "the process has not even imported it"
    refuse_at_once(file, ["tune.trials=5"], fresh=False)
    refuse_at_once(file, ["optim.eps=1e-6"], fresh=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_help_names_every_verb_in_a_whole_phrase():
    help_text = bigmodel("--help").stdout
    for verb in VERBS:
        [line] = [line for line in help_text.splitlines() if line.startswith(f"  {verb} ")]
        assert not line.endswith("..."), line


def test_the_installed_script_is_the_module():
    script = Path(sys.executable).with_name("bigmodel")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == bigmodel("--help").stdout


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert bigmodel("--version").stdout.strip() == f"bigmodel {version('bigmodel')}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "a.yaml"], "trian"),
        (["train"], "EXPERIMENT"),
        (["train", "a.yaml", "--frehs"], "--frehs"),
        (["train", "missing.yaml"], "missing.yaml: no such file"),
        (["serve", "nowhere"], "nowhere: not a model directory"),
        (["predict", "nowhere"], "files or --text"),
        (["serve", "nowhere", "--port", "99999"], "'--port': Input should be less than or equal to 65535"),
        (["serve", "nowhere", "--port", "0"], "'--port': Input should be greater than or equal to 1"),
        (["demo", "--port", "-1"], "'--port': Input should be greater than or equal to 0"),
        (["evaluate", "nowhere", "a.csv", "--output", "."], "--output . is a folder. Name a file in it"),
        (["predict", "nowhere", "--text", "a", "--output", "."], "--output . is a folder. Name a file in it"),
        (["serve", "run"], "run/model?"),
        (
            ["predict", "run", "--text", "a"],
            "run: not a model directory, but the folder of a run. Did you mean run/model?",
        ),
        (["serve", "run/model", "--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["serve", "run/model", "--host", "192.0.2.1"], "--host 192.0.2.1 is no address of this machine"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(arguments, expected, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    assert expected in message(bigmodel(*arguments, folder=tmp_path))


@pytest.mark.parametrize(
    ("files", "output"),
    [
        (["a.csv"], "./a.csv"),
        (["folder"], "folder/b.csv"),
        (["*.csv"], "a.csv"),
        (["t.{de,en}"], "t.en"),
        (["a.quarantine.jsonl"], "a.json"),  # where evaluate writes the refused rows
    ],
)
def test_no_output_replaces_what_is_read(files, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("a.csv", "folder/b.csv", "t.de", "t.en", "a.quarantine.jsonl"):
        (tmp_path / name).write_text("text,label\na film,good\n")
    verbs = [pipeline.evaluate] if output == "a.json" else [pipeline.evaluate, pipeline.predict]
    for verb in verbs:
        with pytest.raises(ConfigError, match=rf"--output {output.removeprefix('./')}: .* is one of the files that"):
            verb(Path("model"), files, Path(output))


def test_all_mistakes_of_an_experiment_file_are_said_at_once_with_their_lines(tmp_path):
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: review, label: label}\n"
        "model:\n  type: lstm\n  hiden_size: 100\ntrain: {epochs: none}\nout: runs\n"
    )
    lines = message(bigmodel("train", "reviews.yaml", "optim.lr=-1", folder=tmp_path)).splitlines()
    assert len(lines) == 4, lines
    assert any("reviews.yaml:5: model has no field 'hiden_size'. Did you mean 'hidden_size'?" in line for line in lines)
    assert any("reviews.yaml:6: train.epochs" in line for line in lines)
    assert any("reviews.yaml:7: the experiment has no field 'out'" in line for line in lines)
    assert any("command line: optim.lr" in line for line in lines)


def test_a_wrong_column_is_said_with_the_columns_there_are(tmp_path, reviews):
    reviews(tmp_path / "reviews.csv", 20)
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: txt, label: label}\n"
    )
    said = message(bigmodel("train", "reviews.yaml", folder=tmp_path))
    assert "reviews.csv: no column 'txt'. Did you mean 'text'?" in said and "text, label" in said


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1:1", "no Ray answers at"), ("http://127.0.0.1:8265", "Invalid Ray address")]
)
def test_a_cluster_that_does_not_answer_is_said_at_once(address, expected, tmp_path, reviews):
    """Ray itself would wait for it, without an end."""
    reviews(tmp_path / "reviews.csv", 40)
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: text, label: label}\ntrain: {workers: 1}\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    for command in (["serve", "model"], ["train", "reviews.yaml"]):
        said = message(bigmodel(*command, folder=tmp_path, RAY_ADDRESS=address))
        assert expected in said and address in said


def test_an_interrupted_run_leaves_with_130_and_goes_on_with_the_same_command(tmp_path, reviews):
    reviews(tmp_path / "reviews.csv", 300)
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: text, label: label}\n"
        "model: {type: lstm, hidden_size: 16, embedding_size: 16}\n"
        "train: {epochs: 100000, threads: 1, precision: fp32}\noutput: run\n"
    )
    command = [sys.executable, "-m", "bigmodel", "train", "reviews.yaml"]
    steps = []
    for _ in range(2):
        running = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
        )
        assert running.stdout is not None
        seen = ""
        for line in running.stdout:
            seen += line
            if line.startswith("step "):
                break
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        seen += running.communicate(timeout=60)[0]
        assert running.returncode == 130, seen
        last = seen.strip().splitlines()[-1]
        assert last.startswith("bigmodel: stopped after step ") and "the state is saved" in last, seen
        assert "Traceback" not in seen
        steps.append(int(last.split("step ")[1].split()[0]))
    assert f"continuing from the checkpoint of step {steps[0]:,}" in seen
    assert steps[1] > steps[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_preparation_ends_it_with_one_message(number, tmp_path):
    rows = "".join(f"a film of {i} minutes,{i % 2}\n" for i in range(400_000))
    (tmp_path / "reviews.csv").write_text("text,label\n" + rows)
    (tmp_path / "reviews.yaml").write_text(
        "task: text-classification\ndata: {train: reviews.csv, text: text, label: label}\noutput: runs/a\n"
    )
    command = [sys.executable, "-m", "bigmodel", "train", "reviews.yaml"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and "reading and cleaning" in running.stdout.readline()
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert (errors, running.returncode) == ("bigmodel: interrupted\n", 130)
    assert not list(tmp_path.glob("runs/.prepared/*/")), "nothing half made is left"


@pytest.mark.parametrize(
    ("split", "said", "report"),
    [
        ("{valid: 0, test: 0}", "no row is held out: the last weights are kept, and the model is not tested.", False),
        ("{valid: 0, test: 0.2}", "no row is held out for validation: the last weights are kept", True),
        ("{valid: 0.2, test: 0}", "no row is held out for the test: the validation rows", True),
    ],
)
def test_that_rows_are_missing_to_judge_by_is_said_before_training(split, said, report, tmp_path, reviews):
    reviews(tmp_path / "reviews.csv", 40)
    (tmp_path / "reviews.yaml").write_text(
        f"task: text-classification\ndata: {{train: reviews.csv, text: text, label: label, split: {split}}}\n"
        "model: {type: lstm, hidden_size: 8, embedding_size: 8}\n"
        "train: {epochs: 1, threads: 1, precision: fp32}\noutput: run\n"
    )
    for _ in range(2 if not report else 1):  # the same once more, of the run that is finished
        done = bigmodel("train", "reviews.yaml", folder=tmp_path)
        assert done.returncode == 0 and not done.stderr, done.stderr
        lines = done.stdout.splitlines()
        [first] = [i for i, line in enumerate(lines) if line.startswith(said)]
        assert "data.split." in lines[first] and "training " not in "\n".join(lines[:first])
        assert (tmp_path / "run/report.json").exists() == report
        assert ("report  none: no row was held out" in done.stdout) != report
        assert lines[-1] == "serve   bigmodel serve run/model"
