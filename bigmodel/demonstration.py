"""`bigmodel demo`: the whole path on reviews that a grammar writes, each step said before it is taken."""

from __future__ import annotations

import csv
import json
import os
import re
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel import grammar, pipeline
from bigmodel.errors import ConfigError, ServeError
from bigmodel.pipeline import say
from serve_app.options import ServeOptions
from serve_app.ray_host import free_ports
from serve_app.start import serving

ROWS, NEW_ROWS = 5_000, 500
TRAINING_SEED, NEW_SEED = 0, 1

EXPERIMENT = """\
# The experiment of `bigmodel demo`. Change it, and run it again:
#   bigmodel train {yaml} --fresh
# or give another value for this once, and keep what is there:
#   bigmodel train {yaml} model.type=gru output={folder}-gru
task: text-classification
data:
  train: {data}
  text: review
  label: label
  split: {{valid: 0.1, test: 0.1}}
model:
  type: lstm
  hidden_size: 100
optim: {{type: adam, lr: 3.0e-3}}
train: {{epochs: 5, batch_size: 32, threads: 1, precision: fp32}}   # one thread: small batches gain nothing from more
output: {output}
"""

TEXTS = [
    "The screen is superb and I love the keyboard.",
    "The room was anything but clean, and the waiter was rude.",
    "Although the soup was cold, the staff was wonderful.",
    "The staff was wonderful, although the soup was awful.",
    "The lamp does its job.",
]


def walk(output: str, port: int) -> None:
    """Write reviews, train, test, serve, ask, compare with `bigmodel predict`. BigmodelError where a step fails."""
    began = time.monotonic()
    folder = Path(output)
    yaml = write_experiment(folder)
    step(1, f"{ROWS:,} reviews, written by a small grammar: {folder / 'reviews.csv'}")
    say("    Nobody meant them. They show that the path works, not how good a model is on what people write.")
    step(2, f"training and test: bigmodel train {yaml}")
    run = pipeline.train(yaml, [f"output={quoted(folder)}"], fresh=True)
    say(
        "    The test reviews come from the same grammar as the others: the accuracy is that of an exercise. Of every\n"
        "    hundred labels two are wrong on purpose: the worst mistakes above show how such rows are found."
    )
    answers = ask_endpoint(run.model, port or free_ports(1)[0])
    step(5, f"the same texts from the command: bigmodel predict {relative(run.model)} --text ...")
    compare(answers, predicted(run.model, run.path / "answers.jsonl"))
    say(f"\nAll of it worked, in {time.monotonic() - began:.0f} s. What next:\n")
    say(next_commands(relative(run.model), yaml))


def write_experiment(folder: Path) -> Path:
    """reviews.csv, new.csv and reviews.yaml; an edited reviews.yaml is left as it is. -> the experiment file"""
    yaml = folder / "reviews.yaml"
    if (folder / "run.json").exists() and not yaml.exists():
        raise ConfigError(f"{folder} holds a run that is not the demonstration's. Name another folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_reviews(folder / "reviews.csv", ROWS, TRAINING_SEED)
        write_reviews(folder / "new.csv", NEW_ROWS, NEW_SEED)
        if not yaml.exists():
            data, output = quoted(folder / "reviews.csv"), quoted(folder)
            yaml.write_text(EXPERIMENT.format(yaml=yaml, folder=folder, data=data, output=output), "utf-8")
    except OSError as e:
        raise ConfigError(f"{folder}: the demonstration cannot write here: {e.strerror}") from None
    return yaml


def write_reviews(path: Path, count: int, seed: int) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("product", "review", "label"), *grammar.reviews(count, seed)])


def quoted(path: Path) -> str:
    """As a YAML value: bare where that is safe."""
    return str(path) if re.fullmatch(r"[\w./-]+", str(path)) else json.dumps(str(path))


def ask_endpoint(model: Path, port: int) -> list[dict[str, Any]]:
    """Serve the model, ask it over HTTP, stop. -> the answers to TEXTS"""
    options = ServeOptions(model=str(model))
    step(3, f"serving: bigmodel serve {relative(model)} --port {port}    (Ray starts, some seconds)")
    with serving(options, "127.0.0.1", port) as url:
        address = f"{url}/models/{options.word}/predict"
        step(4, f"asking: POST {address}")
        one = post(address, {"text": TEXTS[0]})
        many = post(address, {"texts": TEXTS[1:]})
        say("    stopping the endpoint")
    return [one, *many]


def post(address: str, question: dict[str, Any]) -> Any:
    """Ask, and show question, answer and time."""
    body = json.dumps(question).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.perf_counter()
    try:
        with opener.open(request, timeout=30) as response:
            answer = json.load(response)
    except OSError as e:
        raise ServeError(f"{address} does not answer as it should: {e}") from None
    milliseconds = (time.perf_counter() - began) * 1000
    many = isinstance(answer, list)
    texts, answers = (question["texts"], answer) if many else ([question["text"]], [answer])
    say(f"    {len(texts)} {'texts' if many else 'text'}, answered in {milliseconds:.1f} ms")
    for text, one in zip(texts, answers, strict=True):
        say(f"      {one['label']:>8}  {one['score']:.3f}  {text}")
    return answer


def predicted(model: Path, output: Path) -> list[dict[str, Any]]:
    pipeline.predict(model, [], output, TEXTS, device="cpu")
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def compare(served: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]) -> None:
    """ServeError if the endpoint and the command disagree on a label, or on a probability by more than 1e-5."""
    for text, one, other in zip(TEXTS, served, predicted, strict=True):
        apart = max(abs(one["scores"][label] - other["scores"][label]) for label in other["scores"])
        if one["label"] != other["label"] or apart > 1e-5:
            raise ServeError(f"the endpoint answers {one}, the command {other}, for: {text}")
    say("    equal: every label, and every probability to 1e-5")


def next_commands(model: str, yaml: Path) -> str:
    return f"""\
  bigmodel predict {model} --text "{TEXTS[3]}" --explain
  bigmodel evaluate {model} {yaml.parent / "new.csv"}
  bigmodel predict {model} {yaml.parent / "new.csv"} --output answers.jsonl
  bigmodel serve {model} --port 8000
  bigmodel train {yaml} model.type=textcnn output={yaml.parent}-textcnn

Your own data: copy {yaml}, name your file and its columns.
(The command is .venv/bin/bigmodel, or `source .venv/bin/activate` once.)"""


def step(number: int, what: str) -> None:
    say(f"\n[{number}/5] {what}")


def relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
