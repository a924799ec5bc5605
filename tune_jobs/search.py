"""search(experiment) -> Search: trials on Ray Tune, then the best again with further seeds.

Calls fit, owns no training code.

<output>-tune/
  best.yaml        the winner, an ordinary experiment        best/     its run: model, report, checkpoints
  trials.jsonl     what was tried                            trials/   a run a trial
  repeats.jsonl    further seeds of the best                 repeats/
  seconds.json     how long trials and repeats have taken
  tune_report.json, tune_report.html
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bigmodel import cluster, tasks
from bigmodel.data.prepare import Prepared, prepare
from bigmodel.errors import CheckpointError, ConfigError, DataError, Interrupted, ResourceError, TrainingError
from bigmodel.experiment import Check, Experiment, differences
from bigmodel.training.run import Run, delete, hold, put_whole, refuse_strangers
from tune_jobs.journal import Journal, Trial, ranked, read
from tune_jobs.space import Space, current, space, with_values

if TYPE_CHECKING:
    from tune_jobs.propose import Unsaved

SURROUNDINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # what happened stands in the runs' own events
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's own snapshots are pickled; ours is the journal
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
Say = Callable[[str], None]
TOLD = (
    "tune_report.json",
    "tune_report.html",
    "best.yaml",
    "trials.jsonl",
    "repeats.jsonl",
    "seconds.json",
    "precision.json",
)
OWN = (*TOLD, "best", "repeats", "trials", "ray", "search.yaml")
"""What a search makes, in the order in which it is deleted: last what tells that the folder is a search's."""
REPEATS = 100
"""Numbers of repeats for each trial: repeat 302 is the third of trial 3."""


@dataclass(frozen=True)
class Search:
    """What a search found. `folder` holds it all."""

    folder: Path
    experiment: Experiment
    space: Space
    trials: Sequence[Trial]
    repeats: Sequence[Trial]
    """Of candidates and default with further seeds; `params` say which."""
    seconds: float
    """That trials and repeats have taken, all times that the command was run together."""

    @property
    def best(self) -> Path:
        return self.folder / "best"


def search(experiment: Experiment, check: Check | None = None, fresh: bool = False, say: Say = print) -> Search:
    """Try, compare, repeat the best; or go on where an interrupted search was. `check` knows the fields of models.

    ConfigError for a space that cannot be searched or a folder that holds another search, DataError without rows to
    validate on, ResourceError, TrainingError if no trial succeeded, Interrupted.
    """
    ranges = space(experiment, check)
    folder = folder_of(experiment)
    refuse(experiment, ranges)
    with hold(folder, "folder of the search", "searching"):
        if not (folder / "search.yaml").exists():
            refuse_strangers(folder, OWN, "no search")
        if fresh:
            clear(folder)
        take_up(folder, experiment)
        data = prepare(experiment, say)
        if not data.size("valid"):
            raise DataError("a search compares trials by the validation rows, and there are none: see data.split.valid")
        shared = None if any(shapes_data(name) for name in ranges) else data
        base = settled(experiment)
        ours = started(say)
        try:
            base = on_gpus(base)
            trials = tried(base, ranges, folder, shared, say)
            repeats = repeated(base, folder, shared, trials, say)
        finally:
            if ours:
                import ray

                ray.shutdown()
        return Search(folder, experiment, ranges, trials, repeats, seconds(folder))


def folder_of(experiment: Experiment) -> Path:
    return experiment.output_path.with_name(f"{experiment.output_path.name}-tune")


def refuse(experiment: Experiment, ranges: Space) -> None:
    tune, train = experiment.tune, experiment.train
    if isinstance(train.workers, str):
        raise ConfigError(f"train.workers is {train.workers}: trials share the cluster, so each has a fixed number")
    if tune.scheduler == "pbt" and train.workers > 1:
        raise ConfigError("tune.scheduler pbt clones weights between trials of one worker: set train.workers=0")
    if tune.scheduler == "pbt" and any(name.startswith("model.") for name in ranges):
        named = ", ".join(name for name in ranges if name.startswith("model."))
        raise ConfigError(f"tune.scheduler pbt clones weights between trials: {named} would change their shapes")
    if tune.scheduler == "pbt" and tune.in_order:
        raise ConfigError("tune.in_order trains one trial at a time; tune.scheduler pbt needs several")


def shapes_data(name: str) -> bool:
    return name.startswith(("data.", "model.pretrained")) and not name.startswith("data.augment.")


def settled(experiment: Experiment) -> Experiment:
    """What all trials share: where prepared data lies, and as many threads as a trial has cores."""
    values: dict[str, Any] = {"data.cache": str(experiment.cache_path)}
    if not experiment.train.threads:
        values["train.threads"] = experiment.tune.cores
    return with_values(experiment, values)


def on_gpus(base: Experiment) -> Experiment:
    """A GPU for each trial where Ray has any, unless it is said otherwise: else all of them would take the first."""
    asked = base.tune.num_gpus or base.train.device == "cpu" or base.train.most_workers > 1
    return base if asked or not cluster.total(cluster.nodes(), "GPU") else with_values(base, {"tune.num_gpus": 1.0})


def clear(folder: Path) -> None:
    """Delete what the search made. What a kill leaves of it is a search that goes on."""
    delete(folder, TOLD)
    for file in (*folder.glob("*/*/run.json"), *folder.glob("best/run.json")):
        Run(file.parent).clear()
    delete(folder, OWN)


def take_up(folder: Path, experiment: Experiment) -> None:
    """Go on with the folder's search, or begin there, in place of one of which no trial has trained."""
    if not goes_on(folder, experiment):
        clear(folder)
        put_whole(folder / "search.yaml", experiment.to_yaml())


def goes_on(folder: Path, experiment: Experiment) -> bool:
    """Whether the folder holds this search: it goes on only as what it was, but the number of trials may grow, and who
    does the work may change. ConfigError if it holds another one of which a trial has trained, CheckpointError if it
    cannot be told which."""
    file = folder / "search.yaml"
    if not file.exists():
        return False
    may_change: Any = {
        "output": True,
        "data": {"cache", "distributed"},
        "train": {"retries", "timeout", "keep"},
        "tune": {"trials", "minutes", "max_concurrent", "candidates", "repeats"},
    }
    try:
        stored = Experiment.stored(file)
    except (ValueError, yaml.YAMLError):
        raise CheckpointError(f"{folder}: what search this is cannot be read. --fresh starts over") from None
    old, new = (one.model_dump(mode="json", exclude=may_change) for one in (stored, experiment))
    changed = differences(old, new)
    if changed and any(trial.state != "failed" for trial in read(folder / "trials.jsonl")):
        lines = "\n".join(f"  {line}" for line in changed)
        raise ConfigError(
            f"{folder} holds another search. What differs:\n{lines}\n"
            "Name another output, or start over with --fresh, which deletes it."
        )
    return not changed


def started(say: Say) -> bool:
    os.environ.update({name: value for name, value in SURROUNDINGS.items() if name not in os.environ})
    say("starting Ray")
    ours = cluster.connect()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the table says which trials failed, and why
    return ours


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Adds to the search's seconds, also where it is interrupted. Of what a kill ends, they are lost."""
    began = time.monotonic()
    try:
        yield
    finally:
        put_whole(folder / "seconds.json", json.dumps(round(seconds(folder) + time.monotonic() - began, 3)))


def seconds(folder: Path) -> float:
    """0 where none was counted, or none can be read."""
    with suppress(OSError, ValueError, TypeError):
        return float(json.loads((folder / "seconds.json").read_text("utf-8")))
    return 0.0


# ---- the trials


def tried(base: Experiment, ranges: Space, folder: Path, data: Prepared | None, say: Say) -> list[Trial]:
    from tune_jobs.propose import Proposals

    journal = Journal(folder / "trials.jsonl")
    goal = tasks.get(base.task).goal
    proposals = Proposals(ranges, base, journal, goal)
    done = len(proposals.ended)
    if done >= proposals.num_trials:
        say(f"{folder}: {done} trials were done before")
        return read(folder / "trials.jsonl")
    if journal.trials:
        say(f"going on: {done} of {proposals.num_trials} trials have ended, {len(journal.trials) - done} had begun")
    num = concurrency(base)
    at_once = "one" if num == 1 else str(num)
    say(f"searching {', '.join(ranges)}: {proposals.num_trials} trials, {at_once} at a time, for {goal.metric}")
    run_trials(
        base, folder / "trials", data, proposals, scheduler(base, ranges, proposals.ended), num, base.tune.minutes
    )
    trials = read(folder / "trials.jsonl")
    if not ranked(trials, goal.mode):
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise TrainingError(f"none of {len(trials)} trials succeeded: {'; '.join(reasons[:3])}")
    return trials


def repeated(base: Experiment, folder: Path, data: Prepared | None, trials: Sequence[Trial], say: Say) -> list[Trial]:
    """The best trials and the default once more, with further seeds: was it the values, or luck?"""
    from tune_jobs.propose import Listed

    planned = repeats_of(base, trials)
    goal = tasks.get(base.task).goal
    journal = Journal(folder / "repeats.jsonl")
    ended = {number for number, trial in journal.trials.items() if trial.state in ("finished", "failed")}
    if missing := {number: params for number, params in planned.items() if number not in ended}:
        say(f"repeating the best and the default with further seeds: {len(missing)} runs")
        listed = Listed(missing, journal, goal)
        run_trials(base, folder / "repeats", data, listed, None, concurrency(base), 0)
    return [trial for trial in read(folder / "repeats.jsonl") if trial.number in planned]


def repeats_of(experiment: Experiment, trials: Sequence[Trial]) -> dict[int, dict[str, Any]]:
    """What is repeated with which seed: params by a number that stays theirs when other trials join."""
    tune = experiment.tune
    again = contenders(trials, tasks.get(experiment.task).goal.mode, tune.candidates) if tune.candidates else []
    return {
        trial.number * REPEATS + i: {**trial.params, "train.seed": experiment.train.seed + 1 + i}
        for trial in again
        for i in range(tune.repeats)
    }


def best_of(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Best first, those that were trained to their end; where time was up before any was, those that were stopped."""
    return ranked([trial for trial in trials if trial.state == "finished"], mode) or ranked(trials, mode)


def contenders(trials: Sequence[Trial], mode: str, count: int) -> list[Trial]:
    """The best, and the default, which is the first trial."""
    best = best_of(trials, mode)[:count]
    default = [trial for trial in trials if trial.number == 0 and trial.state != "failed"]
    return best + [trial for trial in default if trial not in best]


def concurrency(base: Experiment) -> int:
    """How many trials there is room for. ResourceError if not for one."""
    tune, train = base.tune, base.train
    if tune.in_order:
        return 1
    nodes, workers = cluster.nodes(), max(1, train.most_workers)
    cpus, gpus = cluster.total(nodes, "CPU"), cluster.total(nodes, "GPU")
    if workers > 1:  # which take a GPU each where there are enough
        each = {"CPU": max(1, train.threads), "GPU": 1.0 if train.device != "cpu" and gpus >= workers else 0}
    else:
        each = {"CPU": tune.num_cpus, "GPU": tune.num_gpus}
    room = cluster.places(nodes, each) // workers
    if not room:
        several = f"{workers} workers, each " if workers > 1 else ""
        raise ResourceError(
            f"a trial wants {several}{each['CPU']:g} CPUs and {each['GPU']:g} GPUs; Ray has {cpus:g} CPUs and {gpus:g} "
            "GPUs" + (f" on {len(nodes)} nodes" if len(nodes) > 1 else "")
        )
    return min(room, tune.max_concurrent or room)


def scheduler(base: Experiment, ranges: Space, ended: Sequence[Trial]) -> Any:
    tune = base.tune
    goal = tasks.get(base.task).goal
    if tune.scheduler == "asha":
        from tune_jobs.halving import Halving

        return Halving(
            ended,
            time_attr="validations",
            metric=goal.metric,
            mode=goal.mode,
            max_t=10**6,
            grace_period=tune.grace,
            reduction_factor=tune.reduction,
        )
    if tune.scheduler == "pbt":
        import random

        from tune_jobs.explore import explorer
        from tune_jobs.population import Population

        random.seed(tune.seed)  # whom a bad trial takes over from
        return Population(
            time_attr="validations",
            metric=goal.metric,
            mode=goal.mode,
            perturbation_interval=tune.grace,
            custom_explore_fn=explorer(ranges, tune.seed),
        )
    return None


def run_trials(
    base: Experiment,
    folder: Path,
    data: Prepared | None,
    proposals: Unsaved,
    scheduler: Any,
    num: int,
    minutes: float,
) -> None:
    """All that is proposed, to its end. What Ray writes is deleted, and never read back."""
    from ray import tune

    from tune_jobs.table import Table
    from tune_jobs.trial import TrialTrainable

    storage = folder.parent / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    shutil.rmtree(folder / ".ids", ignore_errors=True)
    nested = base.train.most_workers > 1
    resources = {"cpu": 0.01} if nested else {"cpu": base.tune.num_cpus, "gpu": base.tune.num_gpus}
    goal = tasks.get(base.task).goal
    at_once = base.tune.scheduler == "pbt" and scheduler is not None  # Ray's has no place for a searcher
    table = Table(proposals, folder, goal, minutes)
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, resources),
        param_space={
            "base": base.model_dump(mode="json"),
            "folder": str(folder),
            "prepared": str(data.path) if data else None,
        }
        | ({"own": tune.grid_search(all_of(proposals, folder))} if at_once else {}),
        tune_config=tune.TuneConfig(
            metric=None if scheduler else goal.metric,
            mode=None if scheduler else goal.mode,
            search_alg=None if at_once else proposals,
            scheduler=scheduler,
            num_samples=1 if at_once else proposals.num_left,
            max_concurrent_trials=num,
            reuse_actors=True,
            time_budget_s=minutes * 60 or None,
            trial_name_creator=named,
            trial_dirname_creator=named,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[table],
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # but for pbt, which asks for them itself
        ),
    )
    try:
        with table, timed(folder.parent):
            tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    table.end_the_rest()
    if table.num_ended < proposals.num_trials and not table.time_is_up:
        raise Interrupted(f"interrupted; the same command goes on. {folder.parent} keeps what was found")


def all_of(proposals: Unsaved, folder: Path) -> list[dict[str, Any]]:
    """Every trial's number and params, before any has a result: of one that was killed, those it had taken over."""
    proposed: Any = (proposals.suggest(str(number)) for number in range(proposals.num_left))
    return [{**one["own"], "params": trained(one["own"]["params"], folder / number_of(one))} for one in proposed]


def trained(params: dict[str, Any], run: Path) -> dict[str, Any]:
    """The values that a run goes on with; those given where it has not begun."""
    stored = run / "experiment.yaml"
    if not stored.exists():
        return params
    experiment = Experiment.stored(stored)
    return {name: current(experiment, name) for name in params}


def named(trial: Any) -> str:
    return number_of(trial.config)


def number_of(config: Mapping[str, Any]) -> str:
    return f"{config['own']['number']:03}"
