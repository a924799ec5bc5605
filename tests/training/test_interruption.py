"""A run that is stopped or killed goes on where it was, with the same command and to the same bits."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import LOOPBACK, below, listening, parents, running, said
from training.test_exact import on, work

from bigmodel.errors import Interrupted, TrainingError
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.events import read
from bigmodel.training.fit import fit, fit_in_parts
from bigmodel.training.run import Run
from bigmodel.training.saver import BEST, STEP
from bigmodel.training.trainer import Trainer

CHANGES = ("train.epochs=25", "train.checkpoint_every=7", "train.average=0.9", "data.augment.mask=0.1")


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def steps(run: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read(run / "events.jsonl") if event["kind"] == "step"]


def command(folder: Path, experiment: Any, **how: Any) -> subprocess.Popen[str]:
    (folder / "e.yaml").write_text(experiment.to_yaml())
    return subprocess.Popen(
        [sys.executable, "-m", "bigmodel", "train", "e.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **how,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(number >= step for number, _ in steps(run)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def unbroken(experiment: Any, tmp_path: Path) -> Path:
    return fit(experiment(*CHANGES, f"output={tmp_path / 'unbroken'}")).path


def test_ctrl_c_saves_and_the_same_command_goes_on_to_the_same_bits(experiment, tmp_path, unbroken):
    run = tmp_path / "run"
    process = command(tmp_path, experiment(*CHANGES))
    wait_for_step(run, 20, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the state is saved" in said and "Traceback" not in said
    assert Run(run).info["state"] == "interrupted"

    process = command(tmp_path, experiment(*CHANGES))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "continuing from the checkpoint of step" in said
    assert sha256(run) == sha256(unbroken)
    assert steps(run) == steps(unbroken)


def test_kill_9_loses_no_more_than_since_the_last_checkpoint_and_the_one_under_way(experiment, tmp_path, unbroken):
    run = tmp_path / "run"
    for step in (9, 30):
        process = command(tmp_path, experiment(*CHANGES))
        wait_for_step(run, step, process)
        process.kill()
        process.communicate()
    process = command(tmp_path, experiment(*CHANGES))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    [line] = [line for line in said.splitlines() if line.startswith("continuing")]
    assert int(line.split()[6]) >= 21, "that of step 28 may have been under way, the one before it was not"
    assert sha256(run) == sha256(unbroken)
    assert steps(run) == steps(unbroken)


def test_a_killed_worker_of_ray_is_started_anew_and_ends_at_the_same_bits(experiment, tmp_path, unbroken, ray_here):
    killed: list[int] = []

    def kill_at_step_20(event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            worker.append(event["pid"])
        if event["kind"] == "step" and event["step"] >= 20 and not killed:
            killed.append(worker[-1])
            os.kill(worker[-1], signal.SIGKILL)

    worker: list[int] = []
    run = fit(experiment(*CHANGES, "train.workers=1", f"output={tmp_path / 'ray'}"), listener=kill_at_step_20)
    assert killed and worker[-1] != killed[0] != os.getpid()
    assert sha256(run.path) == sha256(unbroken)
    assert steps(run.path) == steps(unbroken)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_has_the_workers_of_ray_save(experiment, tmp_path, number):
    """As a terminal sends it: to all processes that it has begun. None of them listens beyond loopback."""
    run, wanted = tmp_path / "run", experiment(*CHANGES, "train.exact=true", "train.workers=2")
    longer = wanted.model_copy(update={"train": wanted.train.model_copy(update={"epochs": 5000})})
    process = command(tmp_path, longer, start_new_session=True)
    wait_for_step(run, 20, process)
    [first] = {event["pid"] for event in read(run / "events.jsonl") if event["kind"] == "start"}
    parent = parents()
    found = listening(below(process.pid) | below(parent[parent[first]]))
    assert list(found.values()).count(first) >= 2, "where the workers meet, and where gloo sends"
    assert not [where for where in found if not where.startswith(LOOPBACK)]
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the state is saved" in said and "Traceback" not in said and "SIGTERM" not in said
    assert Run(run).info["state"] == "interrupted"
    last = Checkpoints(str(run / "checkpoints")).names(STEP)[-1]
    assert f"stopped after step {int(last.removeprefix(STEP))} of" in said

    process = command(tmp_path, longer.model_copy(update={"train": longer.train.model_copy(update={"workers": 0})}))
    wait_for_step(run, int(last.removeprefix(STEP)) + 1, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert f"continuing from the checkpoint of step {int(last.removeprefix(STEP))}" in said


def work_that_one_is_told_to_end(rank: int, *given: Any) -> None:
    """The second worker, after its step 12. What each says at its end is in a file of its own."""
    step = Trainer.step

    def told(self: Trainer) -> dict[str, Any]:
        happened = step(self)
        if rank and self.progress.step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return happened

    Trainer.step = told  # type: ignore[method-assign]
    try:
        work(rank, *given)
    except Interrupted as e:
        (given[-1] / f"said by {rank}").write_text(str(e))


@pytest.mark.parametrize("exact", ["false", "true"])
def test_a_signal_to_one_worker_has_all_of_them_save_the_same_step(experiment, tmp_path, exact):
    wanted = experiment(f"train.exact={exact}", "train.epochs=500", "train.validate_every=5000", "train.timeout=20")
    saved, told = on(2, wanted, tmp_path, work_that_one_is_told_to_end)
    step = saved.state["step"]
    assert 12 <= step == len(told) < 100
    said = {(tmp_path / "on 2" / f"said by {rank}").read_text() for rank in range(2)}
    assert len(said) == 1 and said.pop().startswith(f"stopped after step {step} of ")


def test_a_worker_of_ray_that_stands_still_is_replaced(experiment, tmp_path, unbroken, ray_here):
    """Though there is no other one that would wait for it."""
    starts: list[dict[str, Any]] = []
    stopped: list[float] = []

    def stop_at_step_20(event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            starts.append(event)
        if event["kind"] == "step" and event["step"] >= 20 and not stopped:
            stopped.append(time.time())
            os.kill(starts[-1]["pid"], signal.SIGSTOP)

    wanted = experiment(*CHANGES, "train.workers=1", "train.timeout=5", f"output={tmp_path / 'ray'}")
    run = fit(wanted, listener=stop_at_step_20)
    assert starts[-1]["after"] == "worker 0: silent for 5 s"
    assert 4 < starts[-1]["time"] - stopped[0] < 65, "a minute to import"
    assert sha256(run.path) == sha256(unbroken) and steps(run.path) == steps(unbroken)


def test_best_weights_later_than_the_checkpoint_are_written_anew(experiment, tmp_path, unbroken):
    """They are of steps that are done again, which with another number of workers may come out otherwise."""
    run = fit(experiment(*CHANGES, "train.keep=100"))
    checkpoints = Checkpoints(str(run.checkpoints))
    best = run.info["progress"]["best_step"]
    saved = checkpoints.load(f"{BEST}{best:08d}")
    assert saved is not None
    earlier = [name for name in checkpoints.names(STEP) if name < f"{STEP}{best:08d}"]
    assert earlier
    checkpoints.prune(STEP, earlier)
    checkpoints.prune(BEST, [])
    others = {name: torch.zeros_like(tensor) for name, tensor in saved.tensors["model"].items()}
    checkpoints.save(saved.name, {"model": others}, saved.state)
    run.write(state="interrupted")

    again = fit(experiment(*CHANGES, "train.keep=100"))
    assert sha256(again.path) == sha256(unbroken)


def damage_best(run: Run) -> str:
    """-> the name of the best weights."""
    name = f"{BEST}{run.info['progress']['best_step']:08d}"
    file = run.checkpoints / name / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    run.write(state="interrupted")
    return name


def test_damaged_best_weights_are_trained_again_where_a_checkpoint_before_them_is_left(experiment, unbroken):
    run = fit(experiment(*CHANGES, "train.keep=100"))
    name = damage_best(run)
    told: list[dict[str, Any]] = []
    again = fit(experiment(*CHANGES, "train.keep=100"), listener=told.append)
    [damaged] = [event for event in told if event["kind"] == "damaged_checkpoint"]
    assert damaged["name"] == name and f"{STEP}{name.removeprefix(BEST)}" > damaged["used"] and not damaged["lost"]
    assert sha256(again.path) == sha256(unbroken) and steps(again.path) == steps(unbroken)


def test_a_checkpoint_whose_best_weights_were_damaged_is_not_left_among_those_made_anew(experiment):
    """It tells where in the events it stands, and those are others now."""
    wanted = experiment("train.checkpoint_every=7", "train.keep=100")
    run = fit(wanted)
    whole, told = sha256(run.path), steps(run.path)
    checkpoints, saves = Checkpoints(str(run.checkpoints)), [f"{STEP}{step:08d}" for step in (7, 11)]
    assert damage_best(run) == f"{BEST}{11:08d}"
    checkpoints.prune(STEP, saves)
    parts = fit_in_parts(wanted)
    assert next(parts)["step"] == 11
    parts.close()
    assert checkpoints.names(STEP) == saves
    before = run.events.read_bytes()[: (checkpoints.state(saves[-1]) or {})["events"]].splitlines(keepends=True)
    assert before[-1].endswith(b"\n") and json.loads(before[-1])["step"] == 11
    again = fit(wanted)
    assert sha256(again.path) == whole and steps(again.path) == told


@pytest.mark.parametrize("ended", [True, False])
def test_damaged_best_weights_are_given_up_where_no_checkpoint_before_them_is_left(experiment, ended):
    run = fit(experiment(*CHANGES, "train.keep=100"))
    name = damage_best(run)
    checkpoints, step = Checkpoints(str(run.checkpoints)), int(name.removeprefix(BEST))
    after = [save for save in checkpoints.names(STEP) if save >= f"{STEP}{step:08d}"]
    checkpoints.prune(STEP, after if ended else after[:1])
    told: list[dict[str, Any]] = []
    again = fit(experiment(*CHANGES), listener=told.append)
    [damaged] = [event for event in told if event["kind"] == "damaged_checkpoint"]
    used = after[-1 if ended else 0]
    assert damaged == {"kind": "damaged_checkpoint", "name": name, "used": used, "lost": True}
    kept = again.info["progress"]["best_step"]
    scored = [event for event in read(again.events) if event["kind"] == "validation" and event["step"] == kept][-1]
    assert again.finished and kept > step and scored["best"]
    assert again.info["metrics"]["accuracy"] == scored["accuracy"]


class Killed(BaseException):
    """What stands for a SIGKILL where it must hit an exact place."""


def test_killed_while_fresh_deletes_the_same_command_trains_to_the_same_bits(experiment, tmp_path, monkeypatch):
    run = fit(experiment("train.checkpoint_every=5"))
    whole, told = sha256(run.path), steps(run.path)
    run.report.write_text("{}")
    deleted: list[object] = []

    def counted(delete: Any) -> Any:
        def once(*what: Any, **where: Any) -> None:
            if len(deleted) == allowed:
                raise Killed
            deleted.append(what)
            delete(*what, **where)

        return once

    monkeypatch.setattr(os, "unlink", counted(os.unlink))
    monkeypatch.setattr(os, "rmdir", counted(os.rmdir))
    allowed = -1
    shutil.copytree(run.path, tmp_path / "gone")
    Run(tmp_path / "gone").clear()
    assert [path.name for path in (tmp_path / "gone").iterdir()] == [".lock", "quarantine.jsonl"]
    for number in range(0, len(deleted), 4):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(run.path, folder)
        deleted.clear()
        allowed = number
        with pytest.raises(Killed):
            Run(folder).clear()
        allowed = -1
        again = fit(experiment("train.checkpoint_every=5", f"output={folder}"))
        assert sha256(again.path) == whole and steps(again.path) == told
        assert number == 0 or not again.report.exists(), "it was of the model before"


def test_an_early_stop_is_told_once_though_a_kill_followed_it(experiment, tmp_path):
    wanted = experiment("train.epochs=30", "train.early_stopping=2")

    def kill(event: dict[str, Any]) -> None:
        if event["kind"] == "early_stop":
            raise Killed

    with pytest.raises(Killed):
        fit(wanted, listener=kill)
    run = fit(wanted)
    assert [event["kind"] for event in read(run.events)[-3:]] == ["start", "early_stop", "end"]
    assert [event["kind"] for event in read(run.events)].count("early_stop") == 1
    assert run.info["progress"]["step"] == steps(run.path)[-1][0] < 330


def test_the_precision_decided_is_told_though_no_checkpoint_was_reached(experiment):
    parts = fit_in_parts(experiment("train.precision=auto"))
    next(parts)
    parts.close()
    run = Run(experiment().output_path)
    Checkpoints(str(run.checkpoints)).prune(STEP, [])
    again = fit(experiment("train.precision=auto"))
    [event] = [event for event in read(again.events) if event["kind"] == "decision"]
    assert (event["what"], event["choice"]) == ("precision", run.info["decisions"]["precision"])


def test_two_processes_do_not_train_in_one_folder(experiment, tmp_path):
    process = command(tmp_path, experiment(*CHANGES, "train.epochs=5000"))
    try:
        wait_for_step(tmp_path / "run", 1, process)
        second = command(tmp_path, experiment(*CHANGES, "train.epochs=5000"))
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 2 and "another process is training here" in said
    finally:
        process.kill()
        process.communicate()


def test_an_interrupted_test_is_made_up_for(experiment, tmp_path):
    """Killed between training and report: the same command tests, and does not train."""
    run = fit(experiment())
    assert not run.report.exists()
    process = command(tmp_path, experiment())
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert run.report.exists() and "not trained again" in said


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(experiment, tmp_path, monkeypatch):
    """The file size limit of the process stands for the disk: writing fails in the middle of a file."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
        "from bigmodel.__main__ import main; sys.argv = ['bigmodel', 'train', 'e.yaml']; main()"
    )
    (tmp_path / "e.yaml").write_text(experiment("model.hidden_size=64", *CHANGES).to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout
    assert "cannot be written" in done.stdout and "Traceback" not in done.stdout


def test_retries_end_with_one_message(experiment, tmp_path, ray_here):
    """A worker that is killed each time it starts."""

    def kill(event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            with suppress(ProcessLookupError):  # Ray may have ended it in the meantime
                os.kill(event["pid"], signal.SIGKILL)

    with pytest.raises(TrainingError, match="training failed 2 times; the last checkpoint stays"):
        fit(experiment("train.workers=1", "train.retries=1", "train.epochs=5000"), listener=kill)
    assert Run(tmp_path / "run").info["state"] == "failed"


def test_retries_are_counted_on_where_ray_has_replaced_a_worker(experiment, tmp_path, ray_here):
    """First the process that trains dies, then the worker that had it forked, which would begin to count anew."""
    trained: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            ours = below(os.getpid())
            [of_ray] = [each for each in running() if each.pid in ours and said(each).startswith("ray::RayTrainWorker")]
            trained.append(event["pid"])
            os.kill(event["pid"] if len(trained) == 1 else of_ray.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match="training failed 2 times; the last checkpoint stays: worker 0 died, or"):
        fit(experiment("train.workers=1", "train.retries=1", "train.epochs=5000"), listener=kill)
    assert len(set(trained)) == 2
