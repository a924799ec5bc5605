"""Small model directories, and the endpoint of one on a real server without Ray."""

import csv
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ENCODER = {"type": "transformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MAX_LENGTH = 48
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, reviews: Callable[..., Path]) -> Make:
    """make_model(model section, precision): a directory with golden answers, of a model that is drawn, not trained."""

    def make(model: dict[str, Any] | None = None, precision: str = "fp32") -> Path:
        from bigmodel import models
        from bigmodel.experiment import Experiment
        from bigmodel.models.init import initialize
        from bigmodel.predictor import Predictor
        from bigmodel.tasks import text_classification as task

        folder = tmp_path_factory.mktemp("made")
        with open(reviews(folder / "reviews.csv", 200), encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        data = {"train": "unused", "text": "text", "label": "label", "max_length": MAX_LENGTH}
        asked = Experiment.model_validate({"task": "text-classification", "data": data, "model": model or ENCODER})
        processor, learnt = task.fit(lambda: rows, asked)
        net = models.build(asked.model, learnt, asked.task)
        initialize(net, asked.init, 0)
        net.eval()
        predictor = Predictor(asked.task, net, processor, {"precision": precision}, precision=precision)
        predictor.save(folder / "reviews" / "model", [{"text": row["text"]} for row in rows[:8]])
        return folder / "reviews" / "model"

    return make


@pytest.fixture(scope="session")
def model(make_model: Make) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of characters that is drawn, not trained."""
    from bigmodel import models
    from bigmodel.experiment import Experiment
    from bigmodel.models.init import initialize
    from bigmodel.predictor import Predictor
    from bigmodel.tasks import text_generation as task

    asked = Experiment.model_validate({"task": "text-generation", "data": {"train": "unused", "max_length": 128}})
    text = "".join(f"line {n}: the quick brown fox jumps over the lazy dog\n" for n in range(200))
    rows = [{"text": text, "block": -1}]
    processor, learnt = task.fit(lambda: rows, asked)
    net = models.build({"type": "transformer", "hidden_size": 32, "num_hidden_layers": 2}, learnt, asked.task)
    initialize(net, asked.init, 0)
    net.eval()
    folder = tmp_path_factory.mktemp("streamed") / "reviews" / "model"
    Predictor(asked.task, net, processor, {}).save(folder, [{"text": "the quick", "block": -1}])
    return folder


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class Client:
    """Asks one server, over HTTP or with raw bytes."""

    def __init__(self, port: int, name: str = "reviews", **headers: str) -> None:
        self.port, self.path, self.headers = port, f"/models/{name}/predict", headers

    def request(self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            given = {key.replace("_", "-"): value for key, value in (self.headers | headers).items()}
            connection.request(method, path, body, given, encode_chunked="transfer-encoding" in given)
            found = connection.getresponse()
            raw = found.read()
        finally:
            connection.close()
        kind = found.headers.get("content-type", "")
        parsed = json.loads(raw) if raw and kind.startswith("application/json") else raw
        return Answer(found.status, {k.lower(): v for k, v in found.headers.items()}, parsed)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def ask(self, body: Any, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        return self.request("POST", self.path, raw, **({"content_type": "application/json"} | headers))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, sent: bytes) -> bytes:
        """Everything that comes back until the server closes, or is silent."""
        with self.connect() as line:
            line.sendall(sent)
            line.settimeout(2)
            found = b""
            try:
                while part := line.recv(65536):
                    found += part
            except TimeoutError:
                pass
            return found


@pytest.fixture(scope="session")
def on_uvicorn() -> Callable[..., Any]:
    """on_uvicorn(model directory, **options): a context in which its endpoint answers at the port that it yields."""
    return running


@pytest.fixture(scope="session")
def client_of() -> type[Client]:
    return Client


@pytest.fixture(scope="session")
def client(model: Path) -> Iterator[Client]:
    """The endpoint of a tiny encoder, on uvicorn as in a replica, on loopback."""
    with running(model, max_inputs=8, max_body_bytes=20_000, max_body_s=1.0, max_waiting=64) as port:
        yield Client(port)


@contextmanager
def running(model: Path, **options: Any) -> Iterator[int]:
    import uvicorn

    from bigmodel.predictor import Predictor
    from serve_app.keys import digests
    from serve_app.options import read_options
    from serve_app.replica import assemble

    asked = read_options({"model": str(model), **options})
    endpoint = assemble(asked, Predictor.load(model), "only", digests(asked.key_file))
    config = uvicorn.Config(endpoint, "127.0.0.1", 0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()
