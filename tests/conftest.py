"""What all tests share: one thread, the real data or a reason to skip, small files of reviews written here."""

import csv
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest

hypothesis.settings.register_profile("ours", deadline=None)  # a test that is timed fails where a machine is busy
hypothesis.settings.load_profile("ours")

ROOT = Path(__file__).parent.parent
Reviews = Callable[..., Path]

THINGS = "film book song meal hotel phone lamp chair game train park shop soup coat ring boat".split()
GOOD = "good great lovely fine superb bright warm clever".split()
BAD = "bad awful dull poor broken cold stupid weak".split()
FILLER = "the a this that was is very quite really so and of it in my our today again here there".split()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data sets; the test is skipped where they are not."""
    folder = Path(os.environ.get("BIGMODEL_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "README.md").is_file():
        pytest.skip(f"the real data is not here: {folder} (BIGMODEL_DATA names its folder)")
    return folder


@pytest.fixture(scope="session")
def reviews() -> Reviews:
    """reviews(path, n, seed): a CSV with the columns text and label (good or bad); one word of ten tells which."""
    return write_reviews


def write_reviews(path: Path, num_rows: int = 200, seed: int = 0) -> Path:
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for _ in range(num_rows):
            label = rng.choice(["good", "bad"])
            words = [rng.choice(FILLER + THINGS) for _ in range(rng.randint(3, 20))]
            words[rng.randrange(len(words))] = rng.choice(GOOD if label == "good" else BAD)
            out.writerow([" ".join(words), label])
    return path


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The one Ray of the session, on this machine, with more CPUs than there are cores; fit() and serve join it."""
    from bigmodel import cluster

    assert cluster.connect(num_cpus=4)
    import ray

    yield
    ray.shutdown()


@pytest.fixture
def experiment(reviews: Reviews, tmp_path: Path) -> Callable[..., Any]:
    """experiment("train.epochs=3", ...): a small experiment on 200 generated reviews in the test's own folder."""
    from bigmodel.experiment import Experiment, change

    source = write_reviews(tmp_path / "reviews.csv")

    def make(*changes: str) -> Experiment:
        return change(
            {
                "task": "text-classification",
                "data": {"train": str(source), "text": "text", "label": "label"},
                "model": {"type": "lstm", "hidden_size": 8, "embedding_size": 8},
                "train": {"epochs": 2, "batch_size": 16, "threads": 1, "precision": "fp32"},
                "output": str(tmp_path / "run"),
            },
            changes,
        )

    return make


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty bucket on a server of this machine that speaks S3, as a URI."""
    if not (find_spec("moto") and find_spec("flask_cors")):
        pytest.skip("moto[s3], flask and flask-cors are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(tmp_path_factory.mktemp("moto") / "log", "w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    where = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in where.items():
            patch.setenv(name, value)
        try:
            _wait_for(port, server)
            from pyarrow.fs import FileSystem

            from bigmodel.data.files import bucket_client

            bucket_client.cache_clear()  # of the server before this one
            fs, _ = FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
            fs.create_dir("bucket")
            yield "s3://bucket"
        finally:
            server.terminate()
            server.wait(10)
            log.close()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert server.poll() is None, "the S3 server ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the S3 server does not listen")
