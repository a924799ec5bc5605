"""`bigmodel serve` as a person runs it: a Ray of its own, two replicas, HAProxy; what it opens, survives and leaves."""

import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import LOOPBACK, listening

from bigmodel.errors import ConfigError, ResourceError, ServeError

PATIENCE_S = 180


class Served:
    """A running command, the processes it started and what it said."""

    def __init__(self, process, port, said):
        self.process, self.port, self.said = process, port, said

    def processes(self) -> dict[int, str]:
        """Number and name of every process below the command's, and its own."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
            except OSError:
                continue
        ours = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return {pid: name(pid) for pid in ours}

    def stop(self, number=signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def environment(folder: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return inherited | {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "TMPDIR": str(folder)}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serve(model: Path, folder: Path, *arguments: str, port: int = 0, **more: str) -> Iterator[Served]:
    """The command until it answers, or has ended."""
    port = port or free_port()
    command = [sys.executable, "-m", "bigmodel", "serve", str(model), "--port", str(port), *arguments]
    with open(folder / f"said-{port}", "w+b") as file:
        process = subprocess.Popen(
            command, env=environment(folder) | more, stdout=file, stderr=file, start_new_session=True
        )
        said = lambda: Path(file.name).read_text()  # noqa: E731
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "answers at" not in said() and process.poll() is None:
                assert time.monotonic() < deadline, said()
                time.sleep(0.05)
            yield Served(process, port, said)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


# ---- refused before anything starts


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (ConfigError, "not a model directory: it has no config.json", {"model_dir": "/nothing/here"}),
        (ConfigError, "there is no 'max_replica'. Did you mean 'max_replicas'", {"max_replica": 2}),
        (ResourceError, "99 replicas of 1 CPU each need 99; this machine", {"min_replicas": 99, "max_replicas": 99}),
        (ResourceError, "1 replicas of 1000 CPU each need 1000", {"num_cpus": 1000}),
        (ResourceError, "1 replicas of 1000 GPU each need 1000", {"num_gpus": 1000}),
        (ServeError, "cannot be listened on: Address already in use. Choose another --port", {"port": "taken"}),
        (ServeError, "--host 203.0.113.1 is no address of this machine", {"host": "203.0.113.1"}),
        (ConfigError, "name may have letters", {"name": "a/b"}),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_starts(model, error, says, options):
    from serve_app.start import serve as run

    before = set(Path("/tmp").glob("bigmodel-*"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asked = {"model_dir": model, "port": free_port()} | options
        if asked["port"] == "taken":
            asked["port"] = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(error, match=re.escape(says)) as told:
            run(**asked)
        assert "\n" not in str(told.value) and time.monotonic() - began < 10
    assert set(Path("/tmp").glob("bigmodel-*")) <= before


# ---- one service for the tests that follow, in their order


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    few = ("--min-replicas", "2", "--max-replicas", "2", "--num-cpus", "0.5")
    with serve(model, folder, *few) as it:
        assert it.process.poll() is None, it.said()
        it.folder = folder
        yield it


@pytest.fixture(scope="module")
def front(served, client_of):
    return client_of(served.port)


def test_it_says_where_it_answers(served):
    assert f"reviews answers at http://127.0.0.1:{served.port}/models/reviews/predict" in served.said()


def test_it_answers_what_the_predictor_says(front, model):
    from bigmodel.predictor import Predictor

    texts = ["a good film", "bad " * 80, "the boat was great today", "🙂"]
    expected = Predictor.load(model).predict([{"text": text} for text in texts])
    for one, other in zip(front.ask({"texts": texts}).body, expected, strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one.get("truncated") == other.get("truncated")


def test_refusals_pass_the_front_unchanged(front):
    assert front.ask(b"{").body["error"]["code"] == "invalid_json"
    assert front.ask({"text": " "}).status == 422
    assert front.ask({"texts": ["a"] * 65}).status == 413
    assert front.ask({"text": "a" * 2_000_000}).status == 413
    assert front.ask({"text": "a"}, content_encoding="gzip").status == 415
    assert front.get("/models/reviews/predict").headers["allow"] == "POST"
    assert front.get("/nothing").body["error"]["code"] == "no_such_path"
    assert front.get("/readyz").body == {"status": "ready"}
    assert front.request("HEAD", "/models/reviews/healthz").status == 200
    assert b"<textarea" in front.get("/docs").body


@pytest.mark.parametrize("value", [b"\xff", b"0.000001"])
@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds",
        b"X-Request-Disconnect-Disabled",
        b"x-session-id",
        b"x_session_id",
        b"x-request-id",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    ],
)
def test_what_ray_would_read_of_a_head_does_not_reach_it(front, name, value):
    body = json.dumps({"texts": ["a good film " * 10] * 32}).encode()
    head = b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%s: %s\r\ncontent-length: %d\r\n\r\n"
    assert front.raw(head % (front.path.encode(), name, value, len(body)) + body).startswith(b"HTTP/1.1 200")


def test_odd_clients_are_answered(front):
    pieces = iter([b'{"te', b'xt": "go', b'od"}'])
    assert front.request("POST", front.path, pieces, transfer_encoding="chunked").status == 200
    body = b'{"text": "good"}'
    old = b"POST %s HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (front.path.encode(), len(body), body)
    assert b" 200 OK" in front.raw(old).split(b"\r\n")[0]
    assert front.raw(b"\x00\x01\x02 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    large = f"POST {front.path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    assert front.raw(large.encode()).startswith(b"HTTP/1.1 413")
    for sent in (old[:-8], old):
        line = front.connect()
        line.sendall(sent)
        line.close()
    assert front.ask({"text": "good"}).status == 200


def test_nothing_listens_beyond_loopback(served):
    """Not even Ray: its gcs, raylet, agents, workers, HAProxy's statistics, a replica's port for other deployments."""
    ours = served.processes()
    found = listening(ours)
    assert len(found) > 10, "Ray's own processes were not found"
    assert not {where: ours[pid] for where, pid in found.items() if not where.startswith(LOOPBACK)}


def test_its_files_are_its_owners_alone(served):
    assert stat.S_IMODE((served.folder / "token").stat().st_mode) == 0o600
    [folder] = {match for text in served.processes().values() for match in re.findall(r"/tmp/bigmodel-\w+", text)}
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700


def test_a_second_one_on_the_same_port_is_refused(served, model):
    with serve(model, served.folder, port=served.port) as other:
        assert other.process.wait(30) == 2
    assert f"127.0.0.1:{served.port} cannot be listened on" in served.said() + other.said()
    assert served.process.poll() is None


def replicas(served) -> list[int]:
    return [pid for pid, text in served.processes().items() if text.startswith("ray::ServeReplica:reviews")]


def test_a_replica_that_is_killed_comes_back_and_its_requests_are_answered_by_the_other(served, front):
    done, statuses, stop = [], [], threading.Event()

    def ask_on():
        while not stop.is_set():
            try:
                statuses.append(front.ask({"text": "a good film " * 3}).status)
            except (OSError, http.client.HTTPException) as error:
                statuses.append(repr(error))

    threads = [threading.Thread(target=ask_on) for _ in range(8)]
    for thread in threads:
        thread.start()
    before = replicas(served)
    assert len(before) == 2
    time.sleep(1)
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not done:
        time.sleep(0.2)
        done = [pid for pid in replicas(served) if pid not in before] if len(replicas(served)) == 2 else []
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert done, "no new replica"
    failed = [status for status in statuses if status != 200]
    print(f"{len(statuses)} requests, failed: {failed}")
    assert len(statuses) > 100 and len(failed) <= 2, failed


def test_ctrl_c_answers_what_is_in_flight_and_leaves_nothing(served, front, model):
    ours = served.processes()
    found = []
    body = {"texts": ["a good film " * 15] * 64}
    threads = [threading.Thread(target=lambda: found.append(front.ask(body).status)) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    assert served.stop() == 0
    for thread in threads:
        thread.join()
    assert found == [200] * 6
    assert "Stopping" in served.said() and "Traceback" not in served.said()
    deadline = time.monotonic() + 10
    while (left := {pid: text for pid, text in ours.items() if name(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    folders = {match for text in ours.values() for match in re.findall(r"/tmp/bigmodel-\w+", text)}
    assert folders and not any(Path(folder).exists() for folder in folders)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", served.port))


@pytest.fixture(scope="module")
def completing(decoder, tmp_path_factory, client_of):
    """On all interfaces, so that it asks for a key."""
    home = tmp_path_factory.mktemp("completing")
    with serve(decoder, home, "--num-cpus", "0.5", "--host", "0.0.0.0", HOME=str(home)) as it:
        assert it.process.poll() is None, it.said()
        keys = home / ".bigmodel" / "keys"
        assert f'-H "authorization: Bearer $(cat {keys})"' in it.said()
        assert stat.S_IMODE(keys.stat().st_mode) == 0o600
        [key] = keys.read_text().split()
        assert key not in it.said() and not any(key in text for text in it.processes().values())
        yield client_of(it.port, authorization=f"Bearer {key}")


def test_beyond_this_machine_a_key_is_asked_for(completing, client_of):
    stranger = client_of(completing.port)
    assert stranger.ask({"text": "the"}).status == stranger.get("/docs").status == 401
    assert stranger.get("/readyz").status == 200
    assert completing.ask({"text": "the", "max_new_tokens": 2}).status == 200


def test_a_stream_passes_the_front_as_it_comes(completing):
    asked = {"text": "the quick", "max_new_tokens": 300}
    whole, streamed = completing.ask(asked), completing.ask(asked | {"stream": True})
    assert whole.status == streamed.status == 200 and streamed.headers["content-type"] == "text/event-stream"
    *pieces, last = [json.loads(event.removeprefix(b"data: ")) for event in streamed.body.split(b"\n\n") if event]
    assert last == whole.body and "".join(piece["piece"] for piece in pieces) == last["text"]
    began, came = time.monotonic(), []
    line = http.client.HTTPConnection("127.0.0.1", completing.port, timeout=20)
    line.request("POST", completing.path, json.dumps(asked | {"stream": True}), completing.headers)
    answer = line.getresponse()
    while answer.read1():
        came.append(time.monotonic() - began)
    line.close()
    assert came[0] < came[-1] / 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion_ends_when_its_client_leaves(completing, stream):
    from serve_app.streaming import PLACES

    def seconds(max_new_tokens: int) -> float:
        began = time.monotonic()
        assert completing.ask({"text": "the", "max_new_tokens": max_new_tokens}).status == 200
        return time.monotonic() - began

    long_s = seconds(4096)
    lines = [http.client.HTTPConnection("127.0.0.1", completing.port, timeout=20) for _ in range(PLACES)]
    body = json.dumps({"text": "the", "max_new_tokens": 4096, "stream": stream})
    for line in lines:
        line.request("POST", completing.path, body, completing.headers)
    time.sleep(long_s / 4)  # all are under way
    for line in lines:
        line.close()
    assert seconds(2) < long_s / 2


def test_a_replica_with_a_tampered_weight_never_answers_and_the_command_says_why(make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_model()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    info = json.loads((folder / "bigmodel.json").read_text())
    (folder / "bigmodel.json").write_text(json.dumps({k: v for k, v in info.items() if k != "weights"}))
    with serve(folder, tmp_path) as it:
        assert it.process.wait(60) == 2
    [line] = it.said().splitlines()
    assert line.startswith("bigmodel: ") and "cannot be served" in line
    assert "this machine does not reproduce the stored answers: " in line
    assert not [pid for pid in it.processes() if name(pid)]
