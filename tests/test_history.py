"""A run explains itself: the list, the account, the difference, the repetition; on real runs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel import pipeline, tasks
from bigmodel.__main__ import app
from bigmodel.errors import BigmodelError, ConfigError, DataError, ResourceError
from bigmodel.history.record import GOALS, RunRecord, find
from bigmodel.training.events import Events, Tail, read
from bigmodel.training.fit import fit, fit_in_parts
from bigmodel.training.loop import finish
from bigmodel.training.run import Run, hold, is_held

EXPERIMENT = """\
task: text-classification
data: {train: reviews.csv, text: text, label: label}
model: {type: lstm, hidden_size: 8, embedding_size: 8}
train: {epochs: 2, batch_size: 16, threads: 1}
output: runs/a
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, reviews) -> Path:
    """A folder with reviews.csv, e.yaml and two runs: runs/a, and runs/deep/er/b of another rate, not tested."""
    folder = tmp_path_factory.mktemp("history")
    reviews(folder / "reviews.csv")
    (folder / "e.yaml").write_text(EXPERIMENT)
    before = Path.cwd()
    os.chdir(folder)
    try:
        pipeline.train(Path("e.yaml"))
        fit(
            pipeline.read_experiment(Path("e.yaml"), ["optim.lr=2e-3", "train.precision=fp32", "output=runs/deep/er/b"])
        )
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, and where the test runs."""
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)  # with the times of the files
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def say(capsys) -> Any:
    """say("runs", ...) -> what the verb prints; `say.code` is its exit code."""

    def ask(*arguments: object) -> str:
        capsys.readouterr()
        ask.code = app([str(argument) for argument in arguments], standalone_mode=False) or 0  # type: ignore[attr-defined]
        return str(capsys.readouterr().out)

    return ask


@pytest.fixture
def running(here) -> Iterator[subprocess.Popen[str]]:
    """A run in runs/long that has begun and would take hours."""
    command = [sys.executable, "-m", "bigmodel", "train", "e.yaml", "train.epochs=100000", "output=runs/long"]
    process = subprocess.Popen(
        [*command, "train.precision=fp32"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if " validation: " in line:
                break
        else:
            pytest.fail(seen)
        yield process
    finally:
        process.kill()
        process.communicate()


def bigmodel(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bigmodel", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- runs


def test_runs_are_listed_the_newest_first_in_plain_aligned_lines(here, say):
    lines = say("runs").splitlines()
    header, newest, oldest = lines
    assert newest.startswith("runs/deep/er/b  ") and oldest.startswith("runs/a  ")
    assert "\x1b" not in "".join(lines) and not any(line.endswith(" ") for line in lines)
    for name, cell in [("task", "text-classification"), ("state", "finished"), ("progress", "22/22 100%")]:
        assert newest[header.index(name) :].startswith(cell) and oldest[header.index(name) :].startswith(cell)
    best = RunRecord(here / "runs/a").best
    assert best is not None and f"accuracy {best[1]:.4f} at {best[2]}" in oldest


def test_json_says_the_same_for_programs(here, say):
    first, second = map(json.loads, say("runs", "--json").splitlines())
    progress = Run(here / "runs/a").info["progress"]
    assert [first["run"], second["run"]] == ["runs/deep/er/b", "runs/a"]
    assert (second["state"], second["step"], second["total_steps"], second["pid"]) == ("finished", 22, 22, None)
    assert (second["best"], second["best_step"]) == (progress["best_value"], progress["best_step"])


def test_on_a_terminal_it_is_a_table_that_fits(here):
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"COLUMNS": "90", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-m", "bigmodel", "runs"], stdout=theirs, check=False, env=environment)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        said = terminal.read(100_000).decode()
    assert done.returncode == 0 and "\x1b[" in said and "finished" in said


def test_only_folders_three_deep_are_looked_at_and_no_parts_of_runs(tmp_path):
    for name in ("a", "a/checkpoints/x", "a/sub", "model", "b/c/d", "b/c/d/e", ".prepared/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    found = {str(path.relative_to(tmp_path)) for path in find(tmp_path)}
    assert found == {"a", "a/sub", "model", "b/c/d"}


def test_a_folder_without_runs_is_one_message(tmp_path, say):
    assert say("runs", tmp_path).startswith(f"{tmp_path}: no run here")
    assert say("runs", tmp_path, "--json") == ""
    with pytest.raises(ConfigError, match="no such folder"):
        say("runs", tmp_path / "nowhere")


# ---- a run that runs, and one that was killed


def test_a_running_run_is_shown_and_after_kill_9_known_to_be_dead(running, here, say):
    [line] = [line for line in say("runs").splitlines() if line.startswith("runs/long ")]
    assert " running " in line and f"pid {running.pid}" in line and "/1100000 0%" in line.replace(",", "")
    account = say("show", "runs/long")
    assert "samples/s" in account and "left  " in account and "validation: loss" in account

    following, left = bigmodel("show", "runs/long", "--follow"), bigmodel("show", "runs/long", "--follow")
    for process in (following, left):
        assert process.stdout is not None
        told = iter(process.stdout.readline, "")
        assert any(line.startswith("  runs/long/events.jsonl") for line in told)  # the account is all told
        assert any(line.startswith("step ") and "validation" in line for line in told)
    left.send_signal(signal.SIGINT)
    assert (left.communicate(timeout=20)[1], left.returncode) == ("", 0)
    assert running.poll() is None

    running.kill()
    running.wait()
    said, errors = following.communicate(timeout=20)
    assert (errors, following.returncode) == ("", 0)
    assert "interrupted (killed)" in said
    assert json.loads((here / "runs/long/run.json").read_text())["state"] == "running"
    [line] = [line for line in say("runs").splitlines() if line.startswith("runs/long ")]
    assert " interrupted (killed) " in line and "pid" not in line
    with pytest.raises(ConfigError, match=r"runs/long: interrupted \(killed\): there is no result to reproduce"):
        say("reproduce", "runs/long")


def test_a_half_written_line_is_left_out(here, say):
    events = here / "runs/a/events.jsonl"
    before = say("show", "runs/a")
    whole = events.read_bytes()
    events.write_bytes(whole + b'{"kind": "validation", "step": 9')
    assert say("show", "runs/a") == before
    told: list[Any] = []
    tail = Tail(events, told.append)
    events.write_bytes(whole + b'{"kind": "validation", "step": 99}\n')
    tail.read()
    assert told == [{"kind": "validation", "step": 99}]


def test_who_follows_a_run_that_goes_on_is_told_nothing_twice(tmp_path):
    """However long it takes from the cut to the first line that is flushed."""
    told: list[Any] = []
    path = tmp_path / "events.jsonl"
    with Events(path, lambda event: None) as events:
        events.start(0)
        events.write("start", step=0)
        events.begun()
        events.write("validation", step=5)
        position = events.position
        events.write("step", step=6)
    tail = Tail(path, told.append)
    with Events(path, lambda event: None) as events:
        assert [event["step"] for event in events.start(position)] == [6]
        tail.read()
        events.write("start", step=5)
        tail.read()
        events.begun()
        tail.read()
        events.write("step", step=6)
    tail.read()
    assert [(event["kind"], event["step"]) for event in told] == [("start", 5), ("step", 6)]
    assert [event["step"] for event in read(path)] == [0, 5, 5, 6]


def test_who_follows_a_run_notices_another_file_of_the_same_number(tmp_path):
    """As where a run goes back twice between two looks: the second file gets the number of the one it replaced."""
    path, told = tmp_path / "events.jsonl", list[Any]()
    path.write_text('{"kind": "start", "step": 0}\n' + '{"kind": "step", "step": 1}\n' * 3)
    tail = Tail(path, told.append)
    with open(path, "r+") as file:  # in place: it has the number that it had
        file.write('{"kind": "start", "step": 0}\n{"kind": "start", "step": 0, "after": "' + "why " * 30 + '"}\n')
        file.truncate()
    tail.read()
    assert [(event["kind"], "after" in event) for event in told] == [("start", True)]


def test_to_ask_whether_a_run_lives_keeps_nobody_from_training(tmp_path):
    assert not is_held(tmp_path) and not list(tmp_path.iterdir())
    with hold(tmp_path, "output folder", "training"):
        assert is_held(tmp_path)
        with pytest.raises(ResourceError, match="another process is training"):
            hold(tmp_path, "output folder", "training")
    asking = open(tmp_path / ".lock")
    fcntl.flock(asking, fcntl.LOCK_SH)
    threading.Timer(0.01, asking.close).start()  # as is_held does, only longer
    hold(tmp_path, "output folder", "training").close()
    assert not is_held(tmp_path)


def test_a_run_that_is_taken_up_again_is_starting(here):
    change_json(here / "runs/a/run.json", state="interrupted")
    assert RunRecord(here / "runs/a").state == "interrupted"
    with hold(here / "runs/a", "output folder", "training"):
        assert RunRecord(here / "runs/a").state == "starting"


def test_another_machines_run_is_alive_while_it_writes(here):
    """Where its lock cannot be seen from here."""
    change_json(here / "runs/a/run.json", state="running")
    events = here / "runs/a/events.jsonl"
    assert RunRecord(here / "runs/a").state == "interrupted (killed)"
    node = json.loads(events.read_text().splitlines()[0])["node"]
    events.write_text(events.read_text().replace(f'"node": "{node}"', '"node": "elsewhere"'))
    assert RunRecord(here / "runs/a").state == "running"
    os.utime(events, (time.time() - 1000,) * 2)
    assert RunRecord(here / "runs/a").state == "interrupted (killed)"


# ---- show


def test_show_tells_a_finished_run_from_its_files(here, say):
    said = say("show", "runs/a")
    report = json.loads((here / "runs/a/report.json").read_text())
    assert say("show", "runs/a/model") == said
    for line in [
        "train.epochs          2",
        "rows         train 167, valid 18, test 15",
        f"accuracy  {report['metrics']['accuracy']:.4f} (",
        f"linear {report['baselines']['linear']['accuracy']:.4f}",
        "precision: ",
        "step 22 validation: loss",
        "transformers  ",
        "runs/a/report.json ",
    ]:
        assert f"  {line}" in said or f" {line}" in said, line
    assert "lr" not in said.partition("\ndata\n")[0], "what is the default is left out"


def test_show_tells_restarts_damaged_checkpoints_and_damaged_lines(here, say):
    with open(here / "runs/a/events.jsonl", "a") as events:
        events.write('{"kind": "start", "step": 11, "total_steps": 22, "node": "other"}\n')
        events.write('{"kind": "damaged_checkpoint", "name": "step-00000022", "used": "step-00000011"}\n')
        events.write('no json\n{"kind": "decision", "what": "of another version"}\n')
    said = say("show", "runs/a").partition("what happened")[2]
    assert "continued from step 11 on other" in said
    assert "checkpoint step-00000022 is damaged; going on from step-00000011" in said
    assert "kind decision what of another version" in said
    assert "1 lines of events.jsonl cannot be read" in said


# ---- what is damaged, old or no run


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"3"])
def test_a_damaged_run_json_is_listed_as_damaged(content, here, say):
    (here / "runs/a/run.json").write_bytes(content)
    [line] = [line for line in say("runs").splitlines() if line.startswith("runs/a ")]
    assert " damaged " in line
    assert "damaged: run.json cannot be read" in say("show", "runs/a")
    assert "state: 'damaged' -> 'finished'" in say("diff", "runs/a", "runs/deep/er/b")
    with pytest.raises(ConfigError, match="damaged: there is no result"):
        say("reproduce", "runs/a")


@pytest.mark.parametrize(
    "files",
    [
        {"run.json": "{}"},
        {"run.json": '{"state": "finished"}', "experiment.yaml": "task: text-classification"},
        {"run.json": '{"state": "running", "progress": 3, "decisions": null, "started": 7, "prepared": 1}'},
        {"run.json": '{"state": "finished"}', "experiment.yaml": "- a", "events.jsonl": "1\nnull\n{}\n"},
        {"run.json": '{"started": "yesterday"}', "experiment.yaml": "task: [", "model/bigmodel.json": "[]"},
        {"run.json": '{"progress": {}}', "experiment.yaml": "task: chess\nmodel: lstm\n1: {a: b}\nx: 2"},
        {"run.json": '{"state": "failed"}', "events.jsonl": '{"kind": "step"}\n{"kind": "step", "step": "x"}\n'},
        {"run.json": "{}", "events.jsonl": '{"kind": "start"}\n{"kind": "validation", "best": true}\n{"kind": []}\n'},
        {"run.json": "{}", "report.json": '{"metrics": {"loss": "x"}, "intervals": [], "rows": null}'},
        {"run.json": '{"decisions": {"healing": 3}}', "report.json": "["},
        {"run.json": "{}", "events.jsonl": '{"kind": "start", "total_steps": 1e400}\n{"kind": "step", "step": NaN}\n'},
        {"run.json": '{"progress": {"step": Infinity, "best_value": 1, "best_step": -Infinity, "seconds": NaN}}'},
        {"run.json": "{}", "events.jsonl": '{"kind": "step", "step": 5, "samples": 1e300, "samples_per_s": 1e-300}\n'},
        {"run.json": "{}", "events.jsonl": f'{{"kind": "step", "step": {"9" * 400}, "loss": 1}}\n'},
        {"run.json": '{"decisions": {"healing": [1, {}]}}', "events.jsonl": '{"kind": "healing", "rows": 1}\n'},
        {"run.json": '{"state": "finished"}', "report.json": '{"metrics": {"f": 1.0}, "intervals": {"f": [1]}}'},
    ],
)  # fmt: skip
def test_folders_that_lack_what_a_run_has_are_told_without_a_traceback(files, here, say):
    for name, content in files.items():
        (here / "runs/old" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "runs/old" / name).write_text(content)
    assert "\nruns/old " in say("runs") and "state" in say("show", "runs/old")
    assert len(say("runs", "--json").splitlines()) == 3
    assert "runs/old -> runs/a" in say("diff", "runs/old", "runs/a")
    with pytest.raises(BigmodelError, match="runs/old"):
        say("reproduce", "runs/old")


@pytest.mark.parametrize("verb", ["show", "diff", "reproduce"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("runs", "not a run, which holds run.json. The runs below runs: runs/a, runs/deep/er/b"),
        ("runs/c", "no such folder. The runs below runs: runs/a"),
        ("runs/a/checkpoints", "checkpoints holds best-"),
        ("runs/a/report.json", "this is a file"),
        ("e.yaml", "this is a file"),
    ],
)
def test_a_folder_that_is_no_run_is_one_message_with_what_is_there(verb, name, told, here, say):
    with pytest.raises(ConfigError) as error:
        say(verb, name, *(["runs/a"] if verb == "diff" else []))
    assert str(error.value).startswith(name) and told in str(error.value)


def test_the_command_leaves_with_2(here):
    process = bigmodel("show", "runs")
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, "") and errors.startswith("bigmodel: runs: not a run")


# ---- diff


def test_diff_names_what_differs_and_where_the_losses_part(here, say):
    said = say("diff", "runs/a", "runs/deep/er/b")
    assert say.code == 0 and "optim.lr: 0.001 -> 0.002" in said and "output" not in said
    assert "train.precision: 'auto' -> 'fp32'" in said
    ours, theirs = ([step["loss"] for step in RunRecord(here / run).steps] for run in ("runs/a", "runs/deep/er/b"))
    parting = next(i for i in range(22) if ours[i] != theirs[i])
    assert f"part at step {parting + 1}: {ours[parting]!r} -> {theirs[parting]!r}" in said
    assert f"model.safetensors: SHA-256 {RunRecord(here / 'runs/a').weights['model.safetensors'][:12]} -> " in said
    assert "\nthe same: data, versions" in said


def test_diff_of_a_run_with_its_copy_is_nothing(here, say):
    shutil.copytree("runs/a", "runs/copy")
    said = say("diff", "runs/a", "runs/copy").splitlines()
    assert said[0] == "runs/a -> runs/copy"
    assert said[1].startswith("nothing differs: experiment, data, versions, decisions, machine, result, losses")
    assert len(said) == 2


def test_losses_that_are_no_numbers_are_the_same(here, say):
    events = here / "runs/a/events.jsonl"
    events.write_text(events.read_text() + '{"kind": "step", "step": 23, "loss": NaN}\n')
    shutil.copytree("runs/a", "runs/copy")
    assert "nothing differs: " in say("diff", "runs/a", "runs/copy")


def test_weights_are_compared_as_they_are(here, say):
    shutil.copytree("runs/a", "runs/copy")
    file = here / "runs/copy/model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    changed = "runs/copy/model/model.safetensors is not what training saved"
    said = say("diff", "runs/a", "runs/copy")
    assert changed in said and "losses of the steps, weights" not in said
    file.unlink()
    assert "runs/copy/model/model.safetensors is missing" in say("diff", "runs/copy", "runs/a")


def test_diff_compares_data_versions_and_results(here, say):
    shutil.copytree("runs/a", "runs/copy")
    change_json(here / "runs/copy/run.json", fingerprint="other")
    info = json.loads((here / "runs/copy/model/bigmodel.json").read_text())
    change_json(here / "runs/copy/model/bigmodel.json", versions=info["versions"] | {"torch": "1.0"})
    (here / "runs/copy/report.json").unlink()
    said = say("diff", "runs/a", "runs/copy")
    for line in ["-> 'other'", f"torch: '{info['versions']['torch']}' -> '1.0'", "test: there -> none"]:
        assert line in said
    assert "the same: experiment, decisions, machine, losses of the steps, weights" in said


# ---- reproduce


def test_a_run_is_reproduced_to_the_last_bit(here, say):
    said = say("reproduce", "runs/a/model")
    assert say.code == 0 and "training " in said
    digest = RunRecord(here / "runs/a").weights["model.safetensors"][:12]
    assert said.splitlines()[-1] == f"equal: the weights (SHA-256 {digest}) and the losses of all 22 steps"
    assert RunRecord(here / "runs/a-again").weights == RunRecord(here / "runs/a").weights
    assert "losses of the steps, weights" in say("diff", "runs/a", "runs/a-again").splitlines()[-1]

    # a copy whose story is another one
    shutil.copytree("runs/a", "runs/b")
    shutil.copytree("runs/a-again", "runs/b-again")
    events = (here / "runs/b/events.jsonl").read_text().splitlines()
    steps = [i for i, line in enumerate(events) if '"kind": "step"' in line]
    loss = json.loads(events[steps[2]])["loss"]
    events[steps[2]] = events[steps[2]].replace(repr(loss), "0.125")
    (here / "runs/b/events.jsonl").write_text("\n".join(events) + "\n")
    info = json.loads((here / "runs/b/model/bigmodel.json").read_text())
    change_json(here / "runs/b/model/bigmodel.json", versions=info["versions"] | {"torch": "1.0"})
    change_json(here / "runs/b/model/bigmodel.json", weights={"model.safetensors": "0" * 64})
    said = say("reproduce", "runs/b", "--output", "runs/a-again")
    assert say.code == 1 and "not trained again" in said and "not equal" in said
    assert f"losses part at step 3: 0.125 -> {loss!r}" in said
    assert f"model.safetensors: SHA-256 000000000000 -> {digest}" in said
    assert "versions: torch: '1.0' -> " in said
    assert "train.device" not in said, "it trains where the run did, and says so"

    # weights that were equal, and are damaged
    (here / "runs/a/model/model.safetensors").write_bytes(b"")
    said = say("reproduce", "runs/a")
    assert said.splitlines()[-2:] == ["not equal", "  runs/a/model/model.safetensors is not what training saved"]
    assert say.code == 1


def test_decisions_about_single_steps_are_told_and_kept_to(here, say):
    """As of a run that was once short of memory, and met a batch that it could not use."""
    cut = {"what": "accumulate", "step": 3, "why": "out of memory", "to": 2}
    skip = {"what": "skip", "step": 5, "why": "the loss is nan", "rows": [["reviews.csv", 7]]}
    healed = pipeline.read_experiment(Path("e.yaml"), ["output=runs/healed"])
    finish(fit_in_parts(healed, decisions=RunRecord(here / "runs/a").decisions | {"healing": [cut, skip]}))
    account = say("show", "runs/healed").partition("what happened")[2]
    assert "step 3: out of memory; from here on each batch is cut into 2 pieces" in account
    assert (
        "step 5: the loss is nan; back to the last checkpoint, without this batch. Its rows: reviews.csv:7" in account
    )
    said = say("diff", "runs/a", "runs/healed")
    assert "healing: None -> ['accumulate at step 3', 'skip at step 5']" in said and "part at step 3: " in said
    assert "losses of all 21 steps" in say("reproduce", "runs/healed") and say.code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_gpu_trained_is_not_trained_again_without_one(here, say):
    events = here / "runs/a/events.jsonl"
    told = events.read_text()
    assert '"device": "cpu", "gpu": ""' in told
    events.write_text(told.replace('"device": "cpu", "gpu": ""', '"device": "cuda", "gpu": "NVIDIA H100"'))
    with pytest.raises(ResourceError, match="runs/a was trained on NVIDIA H100; there is none here"):
        say("reproduce", "runs/a")
    assert not (here / "runs/a-again").exists()


def test_other_data_is_refused_before_anything_is_made(here, say):
    with open("reviews.csv", "a") as file:
        file.write("a lovely day,good\n")
    with pytest.raises(ConfigError, match="runs/a: the data is not what it was trained from.*reviews.csv was written"):
        say("reproduce", "runs/a")
    (here / "reviews.csv").unlink()
    with pytest.raises(DataError, match="(?s)reviews.csv: no such file.*run it where the run was trained"):
        say("reproduce", "runs/a")
    assert sorted(path.name for path in (here / "runs").iterdir()) == [".prepared", "a", "deep"]


def test_what_took_over_the_weights_of_another_trial_is_not_trained_again(here, say):
    change_json(here / "runs/a/run.json", taken_over="003")
    with pytest.raises(ConfigError, match="runs/a: it went on from weights of trial 003"):
        say("reproduce", "runs/a")


def test_a_reproduction_does_not_touch_the_run_nor_another(here, say):
    for output, told in [
        ("runs/a", "lies in the run"),
        ("runs/a/model/x", "lies in the run"),
        ("runs/deep/er/b", "holds a finished run of another experiment"),
    ]:
        with pytest.raises(ConfigError, match=told) as refused:
            say("reproduce", "runs/a", "--output", output)
        assert "output=" not in str(refused.value), "that is how `train` names it"


def test_the_goals_are_those_of_the_tasks():
    assert {name: tasks.get(name).goal.metric for name in tasks.TASKS} == GOALS
