"""Each member is trained once; what the battery asks of it is asked of that run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract import strangers
from contract.members import MEMBERS, Member, asked_in

from bigmodel import pipeline
from bigmodel.experiment import Experiment
from bigmodel.predictor import Predictor
from bigmodel.training.fit import fit
from bigmodel.training.run import Run

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session", params=MEMBERS, ids=str)
def member(request) -> Member:
    return request.param


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Callable[[Member], Path]:
    """The experiment file of a member."""

    @cache
    def write(member: Member) -> Path:
        folder = tmp_path_factory.mktemp("member")
        file = folder / "experiment.yaml"
        file.write_text(yaml.safe_dump(member.experiment(folder), sort_keys=False, allow_unicode=True), "utf-8")
        return file

    return write


@pytest.fixture(scope="session")
def runs(files) -> Callable[[Member], Run]:
    """The finished run of a member."""
    return cache(lambda member: fit(pipeline.read_experiment(files(member))))


@pytest.fixture(scope="session")
def experiment(member, files) -> Experiment:
    return pipeline.read_experiment(files(member))


@pytest.fixture(scope="session")
def run(member, runs) -> Run:
    return runs(member)


@pytest.fixture(scope="session")
def predictor(run) -> Predictor:
    return Predictor.load(run.model)


@pytest.fixture(scope="session")
def bodies(experiment) -> Rows:
    """What the member's file asks, as requests and strangers have it."""
    return asked_in(experiment)


@pytest.fixture(scope="session")
def questions(bodies, predictor) -> Rows:
    """The same as rows of the task."""
    task, processor = predictor.task, predictor.processor
    request = task.request(processor)
    return [task.asked(dict(request.model_validate(body)), processor) for body in bodies]


@pytest.fixture(scope="session")
def answered_by_strangers(files, runs, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """Member -> answers of a fresh Python that has no bigmodel, to every member's questions."""
    asked = {
        str(member): {
            "task": member.task,
            "path": str(runs(member).model),
            "rows": asked_in(pipeline.read_experiment(files(member))),
        }
        for member in MEMBERS
    }
    home = str(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [sys.executable, strangers.__file__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=home,
        env=os.environ | {"HF_HOME": home, "HF_MODULES_CACHE": home, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return answers
