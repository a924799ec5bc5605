"""One trial: `fit` in a process of Ray Tune, a validation at a time. Only what the run's own folder holds is kept.

A trial that is taken up again, after a kill or by the same search run once more, first reports the validations that its
events tell of, then goes on from its checkpoint. So a scheduler sees the same trial, and nothing is computed twice.
"""

from __future__ import annotations

import fcntl
import json
import math
import queue
import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ray import tune

from bigmodel import tasks
from bigmodel.errors import BigmodelError, first_line
from bigmodel.experiment import Experiment
from bigmodel.imports import lighten
from bigmodel.training.events import Event
from bigmodel.training.run import STOP, Run
from tune_jobs.journal import best
from tune_jobs.space import with_values

Parts = Generator[Event, None, Run]
WORST = 1e30
"""What a trial that failed reports: schedulers want a number."""
OWNER = "owner"
"""File of a checkpoint: the folder's name of the trial that wrote it. It stands in run.json of what takes it over."""


def experiment_of(base: Experiment, params: dict[str, Any], folder: Path) -> Experiment:
    """The experiment of a trial: an ordinary one."""
    return with_values(base, params).model_copy(update={"output": str(folder)})


class TrialTrainable(tune.Trainable):
    """config: `base` (the experiment, dumped), `folder` (of all trials), `prepared` (the samples, if all trials share
    them), `own` (the trial's number and params)."""

    def setup(self, config: dict[str, Any]) -> None:
        import_all()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The process takes another trial: what it imported stays."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        folder = Path(config["folder"])
        base = Experiment.model_validate(config["base"])
        self._goal = tasks.get(base.task).goal
        self._path = folder / f"{own_number(folder, self.trial_id, config['own']['number']):03}"
        self._experiment = experiment_of(base, config["own"]["params"], self._path)
        self._prepared = Path(config["prepared"]) if config["prepared"] else None
        self._curve: list[tuple[int, float]] = []
        self._told: list[Event] = []
        """Validations of an earlier process, still to be reported."""
        self._parts: Parts | None = None

    def step(self) -> dict[str, Any]:
        """Train to the next validation. A failure of this trial is a result of the search, not its end."""
        try:
            if self._parts is None:
                self._told = self._validations()
                self._take_up()
                self._settle()
                self._start()
            if self._told:
                return self._result(self._told.pop(0))
            return self._result(self._next())
        except StopIteration as end:
            self._parts = None
            self._curve = []
            for event in Run(end.value.path).validations():
                self._result(event)
            return {**self._progress(), "done": True, "finished": True}
        except (BigmodelError, MemoryError, RuntimeError) as e:
            self._parts = None
            reason = first_line(e)
            return {
                **self._progress(),
                "done": True,
                "failed": reason,
                "best": math.nan,
                self._goal.metric: self._worst,
            }

    def _take_up(self) -> None:
        """Under pbt, a trial that was killed goes on with the values it had taken over, not those it began with."""
        stored = self._path / "experiment.yaml"
        if self._experiment.tune.scheduler == "pbt" and stored.exists():
            self._experiment = Experiment.stored(stored)

    def _start(self) -> None:
        train = nested if self._experiment.train.most_workers > 1 else alone
        self._parts = train(self._experiment, self._prepared)

    def _settle(self) -> None:
        """The precision that all trials have."""
        train = self._experiment.train
        if train.precision == "auto" and not train.exact:  # which times nothing
            decided = shared_precision(self._experiment, self._path.parent.parent, self._prepared)
            self._experiment = with_values(self._experiment, {"train.precision": decided})

    def _next(self) -> Event:
        """The next validation; one whose checkpoint a kill forestalled comes again."""
        assert self._parts is not None
        event = next(self._parts)
        while self._curve and event["step"] <= self._curve[-1][0]:
            event = next(self._parts)
        return event

    def _validations(self) -> list[Event]:
        """Those an earlier process has seen, but for the last of all: with it the run ends."""
        run = Run(self._path)
        last = run.total_steps()
        return [event for event in run.validations() if event["step"] < last]

    def _result(self, event: Event) -> dict[str, Any]:
        self._curve.append((event["step"], event[self._goal.metric]))
        return self._progress()

    def _progress(self) -> dict[str, Any]:
        values = [value for _, value in self._curve]
        top = best(self._curve, self._goal.mode)
        return {
            "done": False,
            self._goal.metric: values[-1] if values else self._worst,
            "best": math.nan if top is None else top,
            "validations": len(values),
            "curve": list(self._curve),
        }

    @property
    def _worst(self) -> float:
        return -WORST if self._goal.mode == "max" else WORST

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For pbt: what another trial needs to go on from here, files of ours alone."""
        copy_run(self._path, Path(checkpoint_dir))
        (Path(checkpoint_dir) / OWNER).write_text(self._path.name)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from another trial's weights, optimiser and history, with this one's values; or from its own."""
        self.cleanup()
        self._settle()
        taken = self._path.with_name(f"{self._path.name}.taken")
        shutil.rmtree(taken, ignore_errors=True)
        copy_run(Path(checkpoint), taken)
        (taken / "experiment.yaml").write_text(self._experiment.to_yaml(), "utf-8")
        if (owner := (Path(checkpoint) / OWNER).read_text()) != self._path.name:
            Run(taken).write(taken_over=owner)
        shutil.rmtree(self._path, ignore_errors=True)
        taken.rename(self._path)  # where a kill comes before it, the trial begins anew
        self._curve = []
        for event in Run(self._path).validations():
            self._result(event)  # the scheduler knows them
        self._start()

    def cleanup(self) -> None:
        """The scheduler stops the trial: its last checkpoint stays."""
        if self._parts is not None:
            self._parts.close()
            self._parts = None


def import_all() -> None:
    """What every trial of this process needs, before any of them waits for another."""
    lighten()
    from bigmodel.training import fit  # noqa: F401


def own_number(folder: Path, trial_id: str, number: int) -> int:
    """A trial keeps its number, and so its folder, when it takes over the config of another."""
    ids = folder / ".ids"
    ids.mkdir(parents=True, exist_ok=True)
    file = ids / trial_id
    if not file.exists():
        file.write_text(str(number))
    return int(file.read_text())


def copy_run(source: Path, target: Path) -> None:
    """What a run needs to go on."""
    shutil.copytree(source / "checkpoints", target / "checkpoints")
    for name in ("events.jsonl", "run.json"):
        shutil.copy(source / name, target / name)


def alone(experiment: Experiment, prepared: Path | None) -> Parts:
    """In this process; one worker of Ray Train would compute the same."""
    from bigmodel.training.fit import fit_in_parts

    one = experiment.model_copy(update={"train": experiment.train.model_copy(update={"workers": 0})})
    copied = experiment.tune.scheduler == "pbt"  # by another trial: its checkpoint must be on disk
    return fit_in_parts(one, prepared=prepared, settled=copied, cores=experiment.tune.cores)


def nested(experiment: Experiment, prepared: Path | None) -> Parts:
    """On workers of Ray Train, from a thread of this process.

    They are asked to stop by a file and end by themselves. To kill their driver, as Ray Tune does where it stops a
    trial, leaves their placement group behind on a Ray without a dashboard: the next trial waits for ever.
    """
    from bigmodel.training import loop
    from bigmodel.training.fit import fit_in_parts

    told: queue.Queue[Event | Run | BaseException] = queue.Queue()
    total_steps = 0

    def listen(event: Event) -> None:
        nonlocal total_steps
        if event["kind"] == "start":
            total_steps = event["total_steps"]
        elif event["kind"] == "validation" and event["step"] < total_steps:
            told.put(event)  # but for the last one: with it the run ends

    def run() -> None:
        try:
            told.put(loop.finish(fit_in_parts(experiment, listener=listen, prepared=prepared)))
        except BaseException as e:
            told.put(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            found = told.get()
            if isinstance(found, Run):
                return found
            if isinstance(found, BaseException):
                raise found
            yield found
    except GeneratorExit:
        (experiment.output_path / STOP).touch()
        thread.join()
        raise


def shared_precision(experiment: Experiment, folder: Path, prepared: Path | None) -> str:
    """bf16 or fp32 for all trials of a search and their repeats: measured once, by the first that comes, while the
    others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "precision.json", "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if text := file.read():
            return str(json.loads(text)["choice"])
        choice = measure_precision(experiment, prepared)
        file.write(json.dumps({"choice": choice}))
    return choice


def measure_precision(experiment: Experiment, prepared: Path | None) -> str:
    import torch

    from bigmodel.data.prepare import open_prepared, prepare
    from bigmodel.training import healing
    from bigmodel.training.trainer import Trainer, Worker

    device = "cuda" if torch.cuda.is_available() and experiment.train.device != "cpu" else "cpu"
    torch.set_num_threads(experiment.train.threads or 1)
    samples = open_prepared(prepared) if prepared else prepare(experiment, lambda line: None)
    try:
        return Trainer(experiment, samples, Worker(device=device)).measure_precision()[0]
    except healing.Unusable:  # the first batch does not fit into memory whole; training will cut it
        return "fp32"
