"""`bigmodel demo`: the whole path on data that comes with bigmodel, each step said before it is taken.

What is shown of a task is a module of `bigmodel.demos` and a line in DEMOS. Such a module has

STEM         word for its files: STEM.yaml
EXPERIMENT   the experiment, to be filled with {yaml} {folder} {data} {output}
write        writes its data to a folder -> what it is, in a line
HONESTLY     what the data is not;  TESTED  what the test's figures do not say
QUESTIONS    bodies to ask the endpoint: the first alone, the others together
shown        question and answer in a line
NEXT         what to try next, to be filled with {model} {yaml} {folder}
"""

from __future__ import annotations

import importlib
import json
import re
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel import pipeline
from bigmodel.errors import ConfigError, ServeError, did_you_mean
from bigmodel.pipeline import relative, say
from bigmodel.predictor import Predictor, difference
from serve_app.options import ServeOptions
from serve_app.ray_host import free_ports
from serve_app.start import serving

DEMOS = {
    "text-classification": "bigmodel.demos.text_classification",
    "tabular-classification": "bigmodel.demos.tabular_classification",
    "tabular-regression": "bigmodel.demos.tabular_regression",
    "image-classification": "bigmodel.demos.image_classification",
    "text-generation": "bigmodel.demos.text_generation",
    "translation": "bigmodel.demos.translation",
}
TOLERANCE = 1e-5  # between the endpoint's numbers and the command's


def walk(task: str | None, output: str | None, port: int) -> None:
    """Write data, train, test, serve, ask, compare with what the model says here. BigmodelError where a step fails."""
    began = time.monotonic()
    demo = demo_of(task or "text-classification")
    folder = place(task, output)
    yaml, what = write_experiment(demo, folder)
    step(1, what)
    say(indented(demo.HONESTLY))
    step(2, f"training and test: bigmodel train {yaml}")
    run = pipeline.train(yaml, [f"output={quoted(folder)}"], fresh=True)
    say(indented(demo.TESTED))
    served = ask_endpoint(demo, run.model, port or free_ports(1)[0])
    step(5, f"the same questions without the endpoint, as `bigmodel predict {relative(run.model)}` answers them")
    compare(demo, served, predicted(demo, run.model))
    say(f"\nAll of it worked, in {time.monotonic() - began:.0f} s. What next:\n")
    say(indented(demo.NEXT.format(model=relative(run.model), yaml=yaml, folder=folder), "  "))
    say(f"\nYour own data: copy {yaml}, name your file and its columns.")
    say("(The command is .venv/bin/bigmodel, or `source .venv/bin/activate` once.)")


def place(task: str | None, output: str | None) -> Path:
    """Each task that is named has a folder of its own."""
    return Path(output or (f"runs/demo-{task}" if task else "runs/demo"))


def demo_of(task: str) -> Any:
    if task not in DEMOS:
        raise ConfigError(
            f"there is no demonstration of '{task}'.{did_you_mean(task, DEMOS)} There is one of {', '.join(DEMOS)}"
        )
    return importlib.import_module(DEMOS[task])


def write_experiment(demo: Any, folder: Path) -> tuple[Path, str]:
    """The demonstration's data and experiment; an edited experiment is left as it is. -> its file, what the data is"""
    yaml = folder / f"{demo.STEM}.yaml"
    if (folder / "run.json").exists() and not yaml.exists():
        raise ConfigError(f"{folder} holds a run that is not the demonstration's. Name another folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        what = demo.write(folder)
        if not yaml.exists():
            place = quoted(folder)
            yaml.write_text(demo.EXPERIMENT.format(yaml=yaml, folder=folder, data=place, output=place), "utf-8")
    except OSError as e:
        raise ConfigError(f"{folder}: the demonstration cannot write here: {e.strerror}") from None
    return yaml, what


def quoted(path: Path) -> str:
    """As a YAML value: bare where that is safe."""
    return str(path) if re.fullmatch(r"[\w./-]+", str(path)) else json.dumps(str(path))


def ask_endpoint(demo: Any, model: Path, port: int) -> list[dict[str, Any]]:
    """Serve the model, ask it over HTTP, stop. -> the answers to QUESTIONS"""
    options = ServeOptions(model=str(model))
    step(3, f"serving: bigmodel serve {relative(model)} --port {port}    (Ray starts, some seconds)")
    first, *others = demo.QUESTIONS
    with serving(options, "127.0.0.1", port) as url:
        address = f"{url}/models/{options.word}/predict"
        step(4, f"asking: POST {address}")
        one = post(demo, address, first, [first])
        many = post(demo, address, together(others), others)
        say("    stopping the endpoint")
    return [*one, *many]


def together(questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Many questions in one body: those of one field are listed bare, under its plural."""
    keys = {key for question in questions for key in question}
    if len(keys) == 1:
        (key,) = keys
        return {f"{key}s": [question[key] for question in questions]}
    return {"inputs": questions}


def post(demo: Any, address: str, body: dict[str, Any], questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask, and show questions, answers and time."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.perf_counter()
    try:
        with opener.open(request, timeout=60) as response:
            answer = json.load(response)
    except OSError as e:
        raise ServeError(f"{address} does not answer as it should: {e}") from None
    milliseconds = (time.perf_counter() - began) * 1000
    answers: list[dict[str, Any]] = answer if isinstance(answer, list) else [answer]
    say(f"    {len(answers)} input{'' if len(answers) == 1 else 's'}, answered in {milliseconds:.1f} ms")
    for question, one in zip(questions, answers, strict=True):
        say(f"      {demo.shown(question, one)}")
    return answers


def predicted(demo: Any, model: Path) -> list[dict[str, Any]]:
    predictor = Predictor.load(model)
    task, processor = predictor.task, predictor.processor
    request = task.request(processor)
    rows = [task.asked(dict(request.model_validate(question)), processor) for question in demo.QUESTIONS]
    return predictor.predict(rows)


def compare(demo: Any, served: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]) -> None:
    """ServeError if the endpoint and the model here disagree on a word, or on a number by more than TOLERANCE."""
    for question, one, other in zip(demo.QUESTIONS, served, predicted, strict=True):
        if apart := difference(one, other, TOLERANCE):
            raise ServeError(f"the endpoint and `bigmodel predict` differ: {apart}, for: {demo.shown(question, one)}")
    say(f"    equal: every word, and every number to {TOLERANCE:g}")


def step(number: int, what: str) -> None:
    say(f"\n[{number}/5] {what}")


def indented(text: str, by: str = "    ") -> str:
    return "\n".join(by + line for line in text.splitlines())
