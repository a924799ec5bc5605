"""The cluster path as a user walks it: `ray job submit` with a token, two workers on two nodes, then the endpoint."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster, free_ports

from bigmodel.predictor import Predictor

EXPERIMENT = """
task: text-classification
data: {train: reviews.csv, text: text, label: label}
model: {type: lstm, hidden_size: 8, embedding_size: 8}
train: {epochs: 2, batch_size: 16, workers: 2, precision: fp32}
output: runs/reviews
"""


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with cluster(2) as it:
        yield it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, reviews) -> Path:
    path = tmp_path_factory.mktemp("job")
    reviews(path / "reviews.csv", 300)
    (path / "reviews.yaml").write_text(EXPERIMENT)
    return path


def submit(folder: Path, *command: str) -> list[str]:
    return ["job", "submit", "--working-dir", str(folder), "--", *command]


def ask(url: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def wait_for_answer(it: Cluster, job: str, url: str, body: dict[str, object]) -> dict[str, object]:
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(url, body)
        except OSError as error:  # not yet: refused, 404, or too slow
            if time.monotonic() > deadline or "FAILED" in it.ray("job", "status", job).stdout:
                pytest.fail(f"{error}\n{it.ray('job', 'logs', job).stdout}")
            time.sleep(0.5)


def wait_for_404(url: str, body: dict[str, object]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ask(url, body)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return
        except TimeoutError:
            pass  # the replica is on its way out
        time.sleep(0.5)
    pytest.fail(f"{url} still answers after the job was stopped")


@pytest.mark.timeout(600)
def test_a_job_trains_on_two_nodes_and_its_model_answers_there(two_nodes, folder):
    it = two_nodes
    refused = it.ray(*submit(folder, "bigmodel", "--help"), RAY_AUTH_TOKEN_PATH=str(folder / "no-token"))
    assert refused.returncode != 0, "without the token nothing is run"

    done = it.ray(*submit(folder, "bigmodel", "train", "reviews.yaml"), timeout_s=400)
    assert done.returncode == 0, done.stdout
    assert "on 2 workers of Ray" in done.stdout and "accuracy" in done.stdout
    model = it.home / "runs" / "reviews" / "model"
    predictor = Predictor.load(model)
    assert (model.parent / "report.json").exists()

    port = free_ports(1)[0]
    serve = ["bigmodel", "serve", str(model), "--port", str(port)]
    it.ray("job", "submit", "--no-wait", "--submission-id", "serve", "--", *serve)
    text = "this was a great film and a good book"
    url = f"http://127.0.0.1:{port}/models/reviews/predict"
    answer = wait_for_answer(it, "serve", url, {"text": text})
    [scored] = predictor.predict([{"text": text}])
    assert answer["label"] == scored["label"]
    assert answer["scores"] == pytest.approx(scored["scores"], abs=1e-5)

    it.ray("job", "stop", "serve")
    wait_for_404(url, {"text": text})  # Serve stays, for others; the application is gone


@pytest.mark.timeout(600)
def test_a_job_searches_and_leaves_the_winner(two_nodes, folder):
    tune = ["python", "-m", "tune_jobs", "reviews.yaml", "--trials", "3", "train.workers=0", "tune.candidates=0"]
    done = two_nodes.ray(*submit(folder, *tune), timeout_s=400)
    assert done.returncode == 0, done.stdout
    assert "3 trials, 2 at a time" in done.stdout
    searched = two_nodes.home / "runs" / "reviews-tune"
    assert len((searched / "trials.jsonl").read_text().splitlines()) == 6
    assert Predictor.load(searched / "best" / "model").predict([{"text": "great"}])


def test_more_workers_than_the_cluster_has_is_said_at_once(two_nodes, folder):
    train = ["bigmodel", "train", "reviews.yaml", "train.workers=5", "output=runs/many"]
    done = two_nodes.ray(*submit(folder, *train), timeout_s=200)
    assert done.returncode != 0
    assert "train.workers is 5; the cluster has 2 CPUs on 2 nodes. Ask for at most 2 workers" in done.stdout
