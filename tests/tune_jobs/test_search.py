"""Searches on the real Ray: what is shared, what a kill costs, what a failure is, what comes out."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.tune.experiment import Trial as RayTrial

from bigmodel import tasks
from bigmodel.errors import CheckpointError, ConfigError, DataError, Interrupted, ResourceError, TrainingError
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor
from bigmodel.training import events
from bigmodel.training.fit import fit
from bigmodel.training.run import Run
from tune_jobs.journal import Journal, Trial, read
from tune_jobs.population import Population
from tune_jobs.propose import Proposals
from tune_jobs.search import all_of, clear, search, seconds, take_up, timed
from tune_jobs.space import space, with_values
from tune_jobs.trial import TrialTrainable
from tune_jobs.tune import tune

QUICK = ("tune.candidates=0", "tune.max_concurrent=1", "tune.seed=1")  # one process imports, not two beside each other


def quiet(line: str) -> None:
    pass


def pids(folder: Path) -> set[int]:
    """Processes that trials have started in."""
    files = folder.glob("trials/*/events.jsonl")
    return {event["pid"] for file in files for event in events.read(file) if event["kind"] == "start"}


def what(trials: list[Trial] | Any) -> list[Any]:
    """Of trials, all but the time they took."""
    return [(trial.number, trial.params, trial.state, list(map(tuple, trial.curve))) for trial in trials]


def test_trials_share_prepared_data_and_processes(experiment, tmp_path, ray_here):
    said: list[str] = []
    found = search(experiment(*QUICK, "tune.max_concurrent=2", "tune.trials=5", "tune.scheduler=none"), say=said.append)
    assert [trial.state for trial in found.trials] == ["finished"] * 5
    assert len([line for line in said if "reading and cleaning" in line]) == 1
    assert len(list((tmp_path / ".prepared").glob("*/prepared.json"))) == 1
    assert not list(found.folder.rglob("prepared.json")), "a trial prepared for itself"
    assert len(pids(found.folder)) <= 2
    assert not (found.folder / "ray").exists()
    assert all(len(trial.curve) == 2 and trial.seconds > 0 for trial in found.trials)


def test_a_trial_is_what_fit_makes_of_its_experiment(experiment, tmp_path, ray_here):
    found = search(experiment(*QUICK, "tune.trials=2", "tune.scheduler=none"))
    stored = yaml.safe_load((found.folder / "trials" / "001" / "experiment.yaml").read_text())
    own = Experiment.model_validate(stored).model_copy(update={"output": str(tmp_path / "alone")})
    assert own.optim.lr == found.trials[1].params["optim.lr"]
    alone = fit(own)
    theirs = found.folder / "trials" / "001" / "model" / "model.safetensors"
    assert (alone.model / "model.safetensors").read_bytes() == theirs.read_bytes()


def test_asha_stops_the_worse_and_a_second_run_adds_trials(experiment, ray_here):
    asked = (*QUICK, "train.epochs=4", "tune.in_order=true", "tune.reduction=2")
    found = search(experiment(*asked, "tune.trials=5"))
    states = {trial.state for trial in found.trials}
    assert states == {"finished", "stopped"}
    steps = events.read(found.folder / "trials" / "000" / "events.jsonl")
    more = search(experiment(*asked, "tune.trials=6"))
    assert what(more.trials)[:5] == what(found.trials)
    assert events.read(found.folder / "trials" / "000" / "events.jsonl") == steps, "a finished trial was trained again"
    # as when several trained at once, and the worst came first to its end: whoever came later has not to judge it
    journal = found.folder / "trials.jsonl"
    worst = Trial(1, found.trials[1].params, "finished", [(10, 0.1), (20, 0.1), (30, 0.1), (40, 0.1)])
    Journal(journal).end(worst)
    assert search(experiment(*asked, "tune.trials=7")).trials[1] == worst


def test_the_winner_is_judged_kept_and_tested_once(experiment, tmp_path, ray_here, capsys):
    file = tmp_path / "reviews.yaml"
    file.write_text(experiment("train.epochs=3").to_yaml())
    changes = ["tune.trials=3", "tune.candidates=1", "tune.repeats=2", "model.hidden_size=choice:4,8"]
    told = tune(file, changes)
    folder = tmp_path / "run-tune"
    assert json.loads(json.dumps(told)) == json.loads((folder / "tune_report.json").read_text())
    assert len(told["trials"]) == 3 and told["trials"][0]["params"].keys() == told["scales"].keys()
    assert set(told["verdict"]["values"]) >= {"the default"}
    assert (folder / "tune_report.html").read_text().startswith("<!doctype html>")
    best = Experiment.model_validate(yaml.safe_load((folder / "best.yaml").read_text()))
    assert fit(best).path == folder / "best", "best.yaml is not trained already"
    assert Predictor.load(folder / "best" / "model").predict([{"text": "good"}])[0]["label"] in ("good", "bad")
    tested = (folder / "best" / "report.json").stat().st_mtime_ns
    (folder / "best" / "test.json").unlink()  # as where it was killed before it was written
    again = tune(file, changes)
    assert again["verdict"] == told["verdict"]
    assert again["seconds"] == told["seconds"] > sum(trial["seconds"] for trial in told["trials"]) / 2
    assert (folder / "best" / "report.json").stat().st_mtime_ns == tested, "the test rows were looked at again"
    more = tune(file, [*changes, "tune.trials=4", "tune.candidates=2"])
    assert more["verdict"]["values"].items() >= told["verdict"]["values"].items(), "repeats are kept where trials join"
    with pytest.raises(ConfigError, match="holds another search"):
        tune(file, [*changes, "optim.eps=1e-6"])


DIVERGING = ("optim.type=gd", "optim.clip=0", "optim.warmup=0", "train.epochs=20", "tune.search=grid")


def rates(*values: float) -> list[str]:
    """The first is the experiment's own."""
    return [f"optim.lr={values[0]}", f'tune.space={{"optim.lr": {json.dumps(values)}, "optim.momentum": none}}']


def test_a_trial_that_fails_is_a_result(experiment, ray_here):
    found = search(experiment(*QUICK, *DIVERGING, *rates(0.1, 1e38), "tune.scheduler=none"))
    assert {trial.params["optim.lr"]: trial.state for trial in found.trials} == {0.1: "finished", 1e38: "failed"}
    assert ["the loss is" in trial.reason for trial in found.trials] == [False, True]


def test_a_trial_without_enough_memory_is_a_result(experiment, ray_here):
    widths = "tune.space={model.hidden_size: [8, 6000000], optim.lr: none, optim.beta1: none, optim.beta2: none}"
    found = search(experiment(*QUICK, widths, "tune.search=grid", "tune.scheduler=none"))
    assert [trial.state for trial in found.trials] == ["finished", "failed"]
    assert "can't allocate memory" in found.trials[1].reason


def test_a_search_whose_trials_all_fail_says_why(experiment, ray_here):
    with pytest.raises(TrainingError, match="none of 2 trials succeeded: the loss is"):
        search(experiment(*QUICK, *DIVERGING, *rates(1e37, 1e38), "tune.scheduler=none", "train.validate_every=1000"))


def test_a_killed_trial_goes_on_from_its_checkpoint(experiment, tmp_path, ray_here):
    """The process of a trial is killed; Ray starts another, and the curve is that of an undisturbed one."""
    asked = (*QUICK, "tune.trials=1", "train.epochs=40", "tune.scheduler=none")
    killed: list[int] = []
    file = tmp_path / "run-tune" / "trials" / "000" / "events.jsonl"

    def kill() -> None:
        while not killed:
            told = events.read(file)
            if len([event for event in told if event["kind"] == "validation"]) >= 5:
                killed.append(told[0]["pid"])
                os.kill(told[0]["pid"], signal.SIGKILL)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    found = search(experiment(*asked))
    thread.join()
    undisturbed = search(experiment(*asked, f"output={tmp_path / 'other'}"))
    assert what(found.trials) == what(undisturbed.trials)
    assert len([event for event in events.read(file) if event["kind"] == "start"]) == 2


def test_a_validation_that_is_no_number_is_never_the_best(experiment, tmp_path):
    folder = tmp_path / "trials"
    told = [{"kind": "start", "total_steps": 100}]
    told += [{"kind": "validation", "step": i, "accuracy": value} for i, value in enumerate([math.nan, 0.5, math.nan])]
    (folder / "000").mkdir(parents=True)
    (folder / "000" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    own = {"number": 0, "params": {}}
    base = experiment().model_dump(mode="json")
    trial = TrialTrainable({"base": base, "folder": str(folder), "prepared": None, "own": own})
    values = [trial.step()["best"] for _ in range(3)]
    assert math.isnan(values[0]) and values[1:] == [0.5, 0.5]


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_each_time_has_failed_and_the_search_goes_on(experiment, tmp_path, ray_here):
    killed: list[int] = []
    file = tmp_path / "run-tune" / "trials" / "000" / "events.jsonl"

    def kill() -> None:
        while len(killed) < 2:
            for event in events.read(file):
                if event["kind"] == "start" and event["pid"] not in killed:
                    killed.append(event["pid"])
                    os.kill(event["pid"], signal.SIGKILL)
            time.sleep(0.02)

    threading.Thread(target=kill, daemon=True).start()
    found = search(experiment(*QUICK, "tune.trials=2", "train.epochs=20", "tune.scheduler=none"))
    assert len(killed) == 2
    assert [trial.state for trial in found.trials] == ["failed", "finished"]
    assert "died" in found.trials[0].reason and "Traceback" not in found.trials[0].reason


def test_population_based_training_takes_over_weights(experiment, ray_here):
    found = search(
        experiment(
            *QUICK,
            "tune.trials=4",
            "tune.max_concurrent=4",
            "tune.scheduler=pbt",
            "train.epochs=12",
            "tune.grace=2",
            "tune.num_cpus=0.5",
            "train.precision=auto",
        )
    )
    assert [trial.state for trial in found.trials] == ["finished"] * 4
    stored = [
        yaml.safe_load((found.folder / "trials" / f"{number:03}" / "experiment.yaml").read_text())
        for number in range(4)
    ]
    lines = map(json.loads, (found.folder / "trials.jsonl").read_text().splitlines())
    first = {line["trial"]: line["params"]["optim.lr"] for line in lines if "state" not in line}
    last = [own["optim"]["lr"] for own in stored]
    assert last != [first[number] for number in range(4)], "no trial took over another's"
    assert [trial.params["optim.lr"] for trial in found.trials] == last, "what is repeated is what was trained last"
    taken = [number for number in range(4) if "taken_over" in Run(found.folder / "trials" / f"{number:03}").info]
    assert taken == [number for number in range(4) if last[number] != first[number]]
    assert 0 not in taken, "the default is what the experiment says"


def test_the_default_is_not_among_those_that_take_over():
    """Of a population in which it is the worst, by far."""
    population = Population(time_attr="validations", metric="accuracy", mode="max", custom_explore_fn=dict)
    controller: Any = SimpleNamespace(search_alg=None)
    trials = [RayTrial("trial", config={"own": {"number": number}}, stub=True) for number in range(8)]
    for number, trial in enumerate(trials):
        population.on_trial_add(controller, trial)
        population._trial_state[trial].last_score = number / 10
    trials[1].set_config(trials[0].config)  # it has taken over from the default
    assert population._quantiles() == (trials[1:3], trials[6:])


def test_a_trial_goes_on_with_the_values_it_had_taken_over(experiment, tmp_path):
    base = experiment("tune.scheduler=pbt", "tune.trials=3")
    journal, folder = Journal(tmp_path / "trials.jsonl"), tmp_path / "trials"
    for number in (0, 1):
        journal.begin(number, {"optim.lr": 1e-3, "optim.beta1": 0.9})
    (folder / "001").mkdir(parents=True)
    (folder / "001" / "experiment.yaml").write_text(with_values(base, {"optim.lr": 8e-4}).to_yaml())
    goal = tasks.get(base.task).goal
    proposed = all_of(Proposals(space(base), base, Journal(tmp_path / "trials.jsonl"), goal), folder)
    assert proposed[0] == {"number": 0, "params": {"optim.lr": 1e-3, "optim.beta1": 0.9}}
    assert proposed[1] == {"number": 1, "params": {"optim.lr": 8e-4, "optim.beta1": 0.9}}
    assert proposed[2]["params"].keys() == space(base).keys()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_population_based_training_goes_on_after_a_kill_with_the_values_taken_over(experiment, tmp_path):
    """kill -9 of the driver once a trial has taken over another's weights; none begins anew."""
    file, folder = tmp_path / "reviews.yaml", tmp_path / "run-tune"
    file.write_text(experiment("train.epochs=24", "train.precision=auto").to_yaml())
    asked = ["tune.trials=4", "tune.scheduler=pbt", "tune.grace=8", "tune.num_cpus=0.25", "tune.candidates=0"]
    runs = [folder / "trials" / f"{number:03}" for number in range(4)]

    def rates() -> list[float]:
        return [Experiment.stored(run / "experiment.yaml").optim.lr for run in runs]

    def told() -> list[float]:
        return [trial.params["optim.lr"] for trial in read(folder / "trials.jsonl")]

    half = begin(file, asked)
    while not all((run / "checkpoints").exists() for run in runs) or rates() == told():
        assert half.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    half.kill()
    half.wait()
    killed = time.time()
    assert {trial.state for trial in read(folder / "trials.jsonl")} == {"running"} and rates() != told()

    again = begin(file, asked, stderr=subprocess.PIPE)
    said = again.communicate(timeout=300)[1].decode()
    assert again.returncode == 0, said
    trials = read(folder / "trials.jsonl")
    assert [trial.state for trial in trials] == ["finished"] * 4
    assert told() == rates(), "what is told, and repeated, is what was trained"
    for run, trial in zip(runs, trials, strict=True):
        starts = [event for event in events.read(run / "events.jsonl") if event["kind"] == "start"]
        assert starts[-1]["time"] > killed and starts[-1]["step"] > 0, "it began anew"
        assert [step for step, _ in trial.curve] == [starts[-1]["steps_per_epoch"] * (i + 1) for i in range(24)]


def test_trials_of_several_workers_nest_and_end(experiment, ray_here):
    """ASHA stops some of them: what they held must be free for the next."""
    found = search(
        experiment(
            *QUICK, "train.workers=2", "tune.trials=3", "tune.max_concurrent=1", "train.epochs=2", "tune.reduction=2"
        )
    )
    assert [(trial.state, len(trial.curve)) for trial in found.trials[:1]] == [("finished", 2)]
    assert {(trial.state, len(trial.curve)) for trial in found.trials} == {("finished", 2), ("stopped", 1)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["train.workers=1..2"], ConfigError, "train.workers is 1..2: trials share the cluster"),
        (["tune.scheduler=pbt", "train.workers=2"], ConfigError, "pbt clones weights between trials of one worker"),
        (["tune.scheduler=pbt", 'tune.space={"model.hidden_size": [4, 8]}'], ConfigError, "would change their shapes"),
        (["tune.scheduler=pbt", "tune.in_order=true"], ConfigError, "pbt needs several"),
        (["data.split.valid=0"], DataError, "compares trials by the validation rows"),
    ],
)
def test_what_cannot_be_searched_is_said_first(changes, error, message, experiment):
    with pytest.raises(error, match=message):
        search(experiment(*changes))


def test_a_range_that_only_the_model_refuses_is_said_with_its_line(experiment, tmp_path, ray_here):
    file = tmp_path / "reviews.yaml"
    file.write_text(experiment('tune.space={"model.hiden_size": [4, 8]}').to_yaml())
    with pytest.raises(ConfigError, match=r"reviews.yaml:\d+: tune.space: model.hiden_size: model has no field"):
        tune(file)


def test_a_folder_that_no_search_made_is_left_alone(experiment, tmp_path):
    own = tmp_path / "run-tune" / "best.yaml"
    own.parent.mkdir()
    own.write_text("mine")
    for fresh in (False, True):
        with pytest.raises(ResourceError, match="run-tune holds best.yaml that no search made"):
            search(experiment(), fresh=fresh)
    assert own.read_text() == "mine"


def test_a_search_that_has_found_nothing_is_replaced_by_another(experiment, tmp_path):
    first, second = experiment(), experiment("optim.eps=1e-6")
    take_up(tmp_path, first)
    journal = Journal(tmp_path / "trials.jsonl")
    journal.end(Trial(0, state="failed", reason="too large"))
    take_up(tmp_path, second)
    assert Experiment.stored(tmp_path / "search.yaml") == second and not read(tmp_path / "trials.jsonl")
    journal.begin(0, {})
    with pytest.raises(ConfigError, match="holds another search"):
        take_up(tmp_path, first)
    (tmp_path / "search.yaml").write_text("{")
    with pytest.raises(CheckpointError, match="what search this is cannot be read. --fresh starts over"):
        take_up(tmp_path, first)


def test_what_a_kill_leaves_of_a_search_that_is_deleted_is_one_that_goes_on(experiment, tmp_path, monkeypatch):
    """After each deletion: it is a search's folder to the last, no trial counts as done whose run is not whole, and no
    run as finished whose model is not there."""
    folder = tmp_path / "search"
    trial = folder / "trials" / "000"
    fit(experiment(f"output={trial}"))
    shutil.copytree(trial, folder / "best")
    (folder / "search.yaml").write_text(experiment().to_yaml())
    Journal(folder / "trials.jsonl").end(Trial(0, state="finished", curve=[(11, 0.5)]))
    whole = {file for file in trial.rglob("*") if file.is_file()}

    def looked(delete: Any) -> Any:
        def once(*what: Any, **where: Any) -> None:
            delete(*what, **where)
            assert (folder / "search.yaml").exists() or [path.name for path in folder.iterdir()] == []
            assert not (folder / "trials.jsonl").exists() or all(file.exists() for file in whole)
            for run in (trial, folder / "best"):
                assert not Run(run).finished or (run / "model" / "model.safetensors").exists()

        return once

    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, looked(getattr(os, name)))
    clear(folder)
    assert not list(folder.iterdir())


def test_the_seconds_of_a_search_are_those_of_all_its_parts(tmp_path):
    assert seconds(tmp_path) == 0
    for _ in range(2):
        with suppress(KeyboardInterrupt), timed(tmp_path):
            time.sleep(0.02)
            raise KeyboardInterrupt
    assert 0.04 <= seconds(tmp_path) < 2
    (tmp_path / "seconds.json").write_text('"')
    assert seconds(tmp_path) == 0


def test_a_killed_search_ends_at_the_same_winner(experiment, tmp_path):
    """kill -9 of the driver at half, the same command again; in-order mode."""
    asked = ["tune.in_order=true", "tune.trials=4", "tune.candidates=0", "train.epochs=20", "tune.reduction=2"]
    files = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "reviews.yaml"
        file.write_text(experiment(f"output={tmp_path / name / 'run'}").to_yaml())
        files.append(file)
    begin(files[0], asked).wait()
    half = begin(files[1], asked)
    journal = tmp_path / "parts" / "run-tune" / "trials.jsonl"
    third = journal.parent / "trials" / "002" / "events.jsonl"
    while not any(event["kind"] == "validation" for event in events.read(third)):
        assert half.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    half.kill()
    half.wait()
    before = [trial.state for trial in read(journal)]
    assert before[:2].count("running") == 0 and "running" in before
    kept = events.read(journal.parent / "trials" / "000" / "events.jsonl")
    assert begin(files[1], asked).wait() == 0
    assert events.read(journal.parent / "trials" / "000" / "events.jsonl") == kept
    assert what(read(journal)) == what(read(tmp_path / "whole" / "run-tune" / "trials.jsonl"))
    weights = [file.parent / "run-tune" / "best" / "model" / "model.safetensors" for file in files]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_ctrl_c_ends_a_search_with_one_message_and_it_goes_on(experiment, tmp_path):
    file = tmp_path / "reviews.yaml"
    file.write_text(experiment("train.epochs=300").to_yaml())
    asked = ["tune.trials=2", "tune.candidates=0", "tune.scheduler=none"]
    searching = begin(file, asked, stderr=subprocess.PIPE)
    while not (tmp_path / "run-tune" / "trials" / "000" / "checkpoints").exists():
        assert searching.poll() is None
        time.sleep(0.05)
    searching.send_signal(signal.SIGINT)
    said = searching.communicate(timeout=120)[1].decode()
    assert searching.returncode == 130, said
    assert "the same command goes on" in said and "Traceback" not in said
    assert {trial.state for trial in read(tmp_path / "run-tune" / "trials.jsonl")} == {"running"}


def test_ctrl_c_in_repeats_is_an_interruption_whatever_time_the_trials_had(experiment, tmp_path, ray_here):
    asked = (*QUICK, "tune.trials=1", "train.epochs=40")
    search(experiment(*asked), say=quiet)
    repeat = tmp_path / "run-tune" / "repeats" / "000" / "events.jsonl"

    def interrupt() -> None:
        while not any(event["kind"] == "validation" for event in events.read(repeat)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        search(experiment(*asked, "tune.candidates=1", "tune.repeats=2", "tune.minutes=0.001"), say=quiet)
    assert {trial.state for trial in read(tmp_path / "run-tune" / "repeats.jsonl")} == {"running"}


def begin(file: Path, changes: list[str], stderr: int | None = None) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tune_jobs", str(file), *changes]
    return subprocess.Popen(command, env=environment, cwd=file.parent, stdout=subprocess.DEVNULL, stderr=stderr)


def test_what_a_narrow_proxy_found_trains_the_wide_model(experiment, tmp_path, ray_here, capsys):
    file = tmp_path / "wide.yaml"
    shape = {"type": "transformer", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    wide = with_values(experiment("train.epochs=1"), {"model": shape})
    file.write_text(wide.to_yaml())
    search = ["tune.proxy={hidden_size: 16}", "tune.candidates=0"]
    told = tune(file, [*search, "tune.trials=2"])
    searched = yaml.safe_load((tmp_path / "run-tune" / "trials" / "000" / "experiment.yaml").read_text())
    best = Experiment.model_validate(yaml.safe_load((tmp_path / "run-tune" / "best.yaml").read_text()))
    assert (searched["model"]["hidden_size"], best.model["hidden_size"], best.mup.hidden_size) == (16, 64, 16)
    assert best.optim.lr == told["trials"][0]["params"]["optim.lr"]
    assert "carried to width 64" in capsys.readouterr().out
    model, report = tmp_path / "run-tune" / "best" / "model", tmp_path / "run-tune" / "best" / "report.json"
    assert told["model"].endswith("run-tune/best/model") and report.exists()
    assert Predictor.load(model).model.config.hidden_size == 64
    written = model.stat().st_mtime_ns
    assert tune(file, [*search, "tune.trials=2"])["model"] == told["model"] and model.stat().st_mtime_ns == written
    (report.parent / "experiment.yaml").write_text(best.to_yaml().replace("hidden_size: 64", "hidden_size: 32"))
    tune(file, [*search, "tune.trials=2"])
    assert model.stat().st_mtime_ns > written, "a run of another winner goes"
