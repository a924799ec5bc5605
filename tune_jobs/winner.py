"""Who won a search: judged by further seeds, kept in its place, tested once beside the default."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigmodel import mup, pipeline, tasks
from bigmodel.errors import CheckpointError, ConfigError
from bigmodel.experiment import Experiment
from bigmodel.pipeline import read_json, say, write_json
from bigmodel.training.run import Run
from tune_jobs.journal import Trial
from tune_jobs.search import REPEATS, Search, best_of, repeats_of
from tune_jobs.verdict import Verdict, compare_rows, judge

DEFAULT = "the default"
LAST_VALUES = """\
# What the model had last: it went on from another trial's weights (tune.scheduler: pbt). Trained anew, these values
# give another model.
"""


def judged(found: Search) -> Verdict | None:
    """Candidates against the default, by the further seeds alone: the search's own seed chose them. None where nothing
    was repeated.

    A repeat that diverged has no value, whatever it had reached before.
    """
    goal = tasks.get(found.experiment.task).goal
    values: dict[str, dict[int, float]] = {DEFAULT: {}}
    reached = {repeat.number: repeat.best(goal.mode) for repeat in found.repeats if repeat.state != "failed"}
    for number, params in repeats_of(found.experiment, found.trials).items():
        value = reached.get(number)
        own = values.setdefault(name(number // REPEATS), {})
        own[params["train.seed"]] = float("nan") if value is None else value
    if not any(values.values()):
        return None
    verdict = judge(values, DEFAULT, goal)
    repeated = {number // REPEATS for number in reached}
    mixed = [str(trial.number) for trial in found.trials if trial.number in repeated and took_over(found, trial)]
    return replace(verdict, words=f"{verdict.words} {_of_last_values(mixed)}") if mixed else verdict


def took_over(found: Search, trial: Trial) -> bool:
    """Under pbt: its model is not what its values, or any others, give alone."""
    return "taken_over" in Run(found.folder / "trials" / f"{trial.number:03}").info


def _of_last_values(numbers: list[str]) -> str:
    who, whose = ("Trials", "their") if len(numbers) > 1 else ("Trial", "its")
    return (
        f"{who} {', '.join(numbers)} had taken over weights and values of others: {whose} repeats began anew, with the "
        "last values."
    )


def name(number: int) -> str:
    return DEFAULT if number == 0 else f"trial {number}"


def chosen(found: Search, verdict: Verdict | None) -> Trial:
    """The winner of the verdict, or else the best trial."""
    mode = tasks.get(found.experiment.task).goal.mode
    if verdict is not None:
        return next(trial for trial in found.trials if name(trial.number) == verdict.winner)
    return best_of(found.trials, mode)[0]


def widened(found: Search, winner: Trial, wide: Experiment) -> tuple[Path, None, Path]:
    """The winner of a search on a proxy, trained at the width it stood for: as `kept`, without the default, which was
    trained narrow.
    """
    experiment = mup.widen(trial_experiment(found, winner), wide)
    # what was settled for narrow trials, several at once, is not what the wide run wants
    own = {name: getattr(wide.train, name) for name in ("threads", "precision") if f"train.{name}" not in found.space}
    train = experiment.train.model_copy(update=own)
    experiment = experiment.model_copy(update={"train": train, "output": str(found.best)})
    file, run = found.folder / "best.yaml", Run(found.best)
    file.write_text(experiment.to_yaml(without={"tune"}), "utf-8")
    width, narrow = mup.width(wide), wide.tune.proxy["hidden_size"]
    say(f"searched at width {narrow}, carried to width {width} by maximal update parametrisation")
    try:
        run.refuse_another(experiment)
    except (ConfigError, CheckpointError):  # of a winner before this one
        shutil.rmtree(found.best)
    run = fitted(experiment)
    if not run.report.exists():
        pipeline.test(experiment, run)
    return file, None, run.model


def kept(found: Search, winner: Trial) -> tuple[Path, dict[str, Any] | None, Path]:
    """The winner's run and experiment in their place, tested.

    -> best.yaml, what the test rows say of winner and default, the model's directory.
    """
    experiment = trial_experiment(found, winner).model_copy(update={"output": str(found.best)})
    file, told = found.folder / "best.yaml", found.folder / "best" / "test.json"
    run = Run(found.best)
    if run.info.get("trial") != winner.number:
        shutil.rmtree(found.best, ignore_errors=True)
        shutil.copytree(found.folder / "trials" / f"{winner.number:03}", found.best)
        run = Run(found.best)
        run.write(trial=winner.number)
    file.write_text((LAST_VALUES if took_over(found, winner) else "") + experiment.to_yaml(without={"tune"}), "utf-8")
    (found.best / "experiment.yaml").write_text(experiment.to_yaml(), "utf-8")
    if not run.finished:
        run = fitted(experiment)  # a search that ran out of time: to the end, from the last checkpoint
    tested = run.report.exists() or pipeline.test(experiment, run)
    if told.exists():
        return file, read_json(told) or None, run.model
    against = against_default(found, winner, experiment) if tested else None
    write_json(told, against or {})
    return file, against, run.model


def fitted(experiment: Experiment) -> Run:
    from bigmodel.training.fit import fit

    return fit(experiment)


def trial_experiment(found: Search, trial: Trial) -> Experiment:
    return Experiment.stored(found.folder / "trials" / f"{trial.number:03}" / "experiment.yaml")


def against_default(found: Search, winner: Trial, experiment: Experiment) -> dict[str, Any] | None:
    """Winner and default on the same test rows, where both answer with labels."""
    if winner.number == 0 or found.trials[0].state == "failed":
        return None
    from bigmodel.data.prepare import open_prepared

    default = fitted(trial_experiment(found, found.trials[0]))  # to its end, where the scheduler had stopped it
    rows = open_prepared(Path(default.info["prepared"])).rows("test")[:]
    if not rows or "label" not in rows[0]:
        return None
    questions = [{role: value for role, value in row.items() if role != "label"} for row in rows]
    labels = [
        [answer["label"] for answer in pipeline.trained(model, experiment).predict(questions)]
        for model in (found.best / "model", default.model)
    ]
    return compare_rows(labels[0], labels[1], [row["label"] for row in rows])
