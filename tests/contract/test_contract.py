"""What every architecture keeps at every task. Nothing here knows one by name: members.py says who they are."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from contract import strangers
from contract.members import MEMBERS, WORK, asked_file, asked_in
from kernels import skipped_without_kernel

import bigmodel.models  # noqa: F401  registers our architectures with transformers
from bigmodel import pipeline, tasks
from bigmodel.data.clean import clean, read_options
from bigmodel.data.prepare import prepare
from bigmodel.errors import ConfigError, DataError, Interrupted
from bigmodel.evaluation.evaluate import evaluate
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.predictor import Predictor
from bigmodel.training.events import read
from bigmodel.training.fit import fit
from serve_app.batching import Batcher, Batching
from serve_app.endpoint import Endpoint
from serve_app.metrics import Metrics
from serve_app.protocol import Form, Limits
from tune_jobs.search import search
from tune_jobs.space import with_values

WHOLE = 1 << 20  # padded tokens: all rows in one batch


def losses(run: Any) -> list[float]:
    return [event["loss"] for event in read(run.events) if event["kind"] == "step"]


def agree(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    """The same answers: numbers within the tolerance, all else equal, as far as both have it."""
    assert len(found) == len(expected) > 0
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        for key in one.keys() & other.keys():
            assert flat(one[key]) == pytest.approx(flat(other[key]), abs=tolerance), f"row {row}: {key}"


def flat(value: Any) -> Any:
    return {name: flat(part) for name, part in value.items()} if isinstance(value, dict) else value


def test_it_learns_a_small_batch_by_heart(member, run):
    assert losses(run)[0] > 0.5
    assert run.info["metrics"]["loss"] < WORK[member.task].known, "of the same rows, without dropout"


def test_saved_and_opened_it_is_equal_to_the_bit(run, predictor, questions, tmp_path):
    predictor.save(tmp_path / "again")
    again = Predictor.load(tmp_path / "again")
    before, after = predictor.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert again.predict(questions) == predictor.predict(questions)
    assert predictor.check_golden() > 0


def test_what_else_is_asked_never_changes_an_answer(predictor, questions):
    alone = [predictor.predict([question])[0] for question in questions]
    agree(predictor.predict(questions, max_tokens=WHOLE), alone, 1e-5)
    agree(predictor.predict(questions[::-1], max_tokens=WHOLE)[::-1], alone, 1e-5)


def test_what_else_is_asked_changes_nothing_in_bf16_but_its_last_digits(run, questions):
    predictor = Predictor.load(run.model, precision="bf16")
    with skipped_without_kernel():
        alone = [numbers(predictor.predict([question])[0]) for question in questions]
    together = [numbers(answer) for answer in predictor.predict(questions, max_tokens=WHOLE)]
    agree(together, alone, 0.02)


def numbers(answer: dict[str, Any]) -> dict[str, Any]:
    """Of two labels as likely either may win: their scores, or the number that is the answer."""
    return {key: answer[key] for key in ("scores", "prediction", "translation", "text") if key in answer}


def test_the_model_itself_answers_alike_alone_and_padded(predictor, questions):
    """As a notebook would call it: without the Predictor's own ways."""
    if predictor.task.judged_with:
        pytest.skip("it reads its target too: its loss is compared below")
    samples = predictor.encode(questions)
    collate, model = predictor.task.collate, predictor.model.eval()
    with torch.inference_mode():
        together = model(**collate(samples, predictor.processor)).logits
        alone = torch.cat([model(**collate([sample], predictor.processor)).logits for sample in samples])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_transformers_gives_the_same_answers(member, run, predictor, questions, bodies):
    agree(strangers.USES[member.task](str(run.model), bodies), predictor.predict(questions), 1e-6)


def test_the_loss_of_a_batch_is_that_of_its_samples_alone(experiment, run, predictor):
    if not predictor.task.judged_with:
        pytest.skip("its logits are compared above")
    task, model = predictor.task, predictor.model.eval()
    examples = task.examples(prepare(experiment).samples("train"), experiment)
    samples = examples.take(range(len(examples)))
    with torch.inference_mode():
        together, *alone = (
            float(task.loss(model, task.collate(part, predictor.processor), experiment))
            for part in [samples, *([sample] for sample in samples)]
        )
    assert together == pytest.approx(sum(alone), rel=1e-4)


def test_it_opens_where_there_is_no_bigmodel(member, answered_by_strangers, predictor, questions):
    agree(answered_by_strangers[str(member)], predictor.predict(questions), 1e-6)


@pytest.fixture(scope="session")
def evaluated(experiment, run, tmp_path_factory) -> list[dict[str, Any]]:
    """The answers that `bigmodel predict` writes for a file of what is asked, row by row."""
    output = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    pipeline.predict(run.model, [str(asked_file(experiment))], output)
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def endpoint_answers(predictor, bodies) -> list[dict[str, Any]]:
    return asyncio.run(asked_over_http(predictor, bodies))


def test_the_endpoint_answers_what_was_predicted_row_by_row(endpoint_answers, evaluated):
    agree(endpoint_answers, evaluated, 1e-6)


def test_an_answer_has_the_fields_that_the_readme_tells(predictor, endpoint_answers, evaluated):
    """Its table is made of the same model."""
    fields = predictor.task.answer(predictor.processor).model_fields
    always = {name for name, field in fields.items() if field.is_required()}
    for answer in endpoint_answers:
        assert always <= answer.keys() <= fields.keys()
    for answer in evaluated:
        assert {"file", "line"} | always <= answer.keys() <= {"file", "line"} | fields.keys()


def test_the_endpoints_answers_have_the_score_that_evaluation_reports(experiment, predictor, endpoint_answers):
    data, task = experiment.data, predictor.task
    if WORK[experiment.task].asked:
        pytest.skip("what it is asked is not what it is judged by")
    placed = list(clean(data.train, task, task.columns(data), read_options(data)))
    rows = [found.row for found in placed]
    report = evaluate(predictor, rows, lambda row: (placed[row].source, placed[row].line))
    scored = task.score(endpoint_answers, rows)  # a loss may need what only a judged answer has
    assert task.goal.metric in scored
    assert scored == pytest.approx({name: report["metrics"][name] for name in scored}, abs=1e-6)


async def asked_over_http(predictor: Predictor, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All questions at once to a replica's endpoint, each a request: they share batches as they come."""
    metrics, task = Metrics("model", "here"), predictor.task
    batcher: Batcher[Any, Any] = Batcher(predictor.predict, Batching(pads=predictor.pads), metrics.ran)

    async def ask(rows: list[dict[str, Any]]) -> Any:
        return await batcher.ask(rows, [predictor.cost(row) for row in rows])

    def asked(fields: dict[str, Any]) -> dict[str, Any]:
        return task.asked(fields, predictor.processor)

    form = Form(task.request(predictor.processor), task.answer(predictor.processor), Limits(), asked)
    endpoint = Endpoint("model", ask, metrics, form, lambda: batcher.num_waiting, 1024, 1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="http://here") as client:
        replies = await asyncio.gather(*(client.post("/models/model/predict", json=body) for body in bodies))
    batcher.close()
    assert all(reply.status_code == 200 for reply in replies), [reply.text for reply in replies]
    return [reply.json() for reply in replies]


def test_ray_serve_answers_what_was_scored(files, runs, tmp_path):
    """One member through everything that is real: the command, Ray, its proxy, HTTP. The others differ in the model."""
    run, experiment = runs(MEMBERS[0]), pipeline.read_experiment(files(MEMBERS[0]))
    pipeline.predict(run.model, [str(asked_file(experiment))], tmp_path / "answers.jsonl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(run.model, port, tmp_path / "said.txt") as url:
        found = [httpx.post(url, json=row, trust_env=False).json() for row in asked_in(experiment)]
    agree(found, [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()], 1e-6)


@contextmanager
def serving(model: Path, port: int, said: Path) -> Iterator[str]:
    """`bigmodel serve` in a process of its own, until it has been asked; yields where it answers."""
    command = [sys.executable, "-m", "bigmodel", "serve", str(model), "--port", str(port), "--name", "member"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(said, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + 120
        while "answers at" not in said.read_text():
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/models/member/predict"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def test_interrupted_and_continued_is_equal_to_the_last_bit(experiment, run, tmp_path):
    broken = experiment.model_copy(update={"output": str(tmp_path / "run")})
    with pytest.raises(Interrupted, match="the state is saved"):
        fit(broken, listener=interrupt_at(10))
    continued = fit(broken)
    assert losses(continued) == losses(run)
    assert (continued.model / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()


def interrupt_at(step: int) -> Any:
    """A listener that presses Ctrl-C, once, when it hears of the step."""

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return listen


def test_every_misspelt_field_of_the_model_is_named_with_its_line(member, tmp_path):
    tree = member.experiment(tmp_path)
    fields = [key for key in tree["model"] if key not in ("type", "pretrained")]
    assert fields
    tree["model"] = {misspelt(key) if key in fields else key: value for key, value in tree["model"].items()}
    message = refused(tree, tmp_path)
    for key in fields:
        assert (
            f"{place(misspelt(key), tmp_path)}: model has no field '{misspelt(key)}'. Did you mean '{key}'?" in message
        )


def test_every_mistyped_field_of_the_model_is_named_with_its_line(member, tmp_path):
    tree = member.experiment(tmp_path)
    fields = [key for key in tree["model"] if key not in ("type", "pretrained", "lora")]
    tree["model"] |= {key: {"a": "mapping"} for key in fields}
    message = refused(tree, tmp_path)
    for key in fields:
        assert f"{place(key, tmp_path)}: model.{key} is {{'a': 'mapping'}}, but must be " in message


def misspelt(key: str) -> str:
    return key[:3] + key[4:]


def refused(tree: dict[str, Any], folder: Path) -> str:
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(ConfigError) as refusal:
        pipeline.read_experiment(folder / "experiment.yaml")
    return str(refusal.value)


def place(key: str, folder: Path) -> str:
    lines = (folder / "experiment.yaml").read_text("utf-8").splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if re.match(rf"  {key}:", line)]
    return f"{folder}/experiment.yaml:{number}"


@pytest.mark.parametrize("task", WORK)
def test_a_misspelt_column_is_named_with_those_there_are(task, tmp_path):
    member = next(member for member in MEMBERS if member.task == task)
    columns = tasks.get(task).columns(DataConfig(train="here", **WORK[task].data))
    for role, column in columns.items():
        if column in (tasks.base.WHOLE, tasks.base.BLOCK):
            continue
        tree = member.experiment(tmp_path)
        tree["data"][role] = misspelt(column)
        with pytest.raises(DataError, match=rf"no column '{misspelt(column)}'. Did you mean '{column}'\? Columns: "):
            fit(Experiment.model_validate(tree))


def test_two_trials_of_a_search_find_a_model(experiment, questions, tmp_path, ray_here):
    few = {"train.epochs": 2, "train.validate_every": 0, "output": str(tmp_path / "run")}
    one = {"tune.max_concurrent": 1}  # one process imports, not two beside each other
    asked = with_values(experiment, few | one | {"tune.trials": 2, "tune.candidates": 0, "tune.scheduler": "none"})
    found = search(asked, pipeline.check)
    assert [(trial.state, len(trial.curve)) for trial in found.trials] == [("finished", 2)] * 2
    best = Predictor.load(found.folder / "trials" / "001" / "model")
    assert len(best.predict(questions)) == len(questions)
