"""The server of processes that train: who is killed, who notices, and that nobody is left behind."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import parents, that_run

from bigmodel.data.prepare import prepare
from bigmodel.training import forkserver, nursery
from bigmodel.training.events import read
from bigmodel.training.fit import fit
from bigmodel.training.forkserver import ForkServer
from bigmodel.training.run import STOP, Run

CHANGES = ("train.epochs=25", "train.checkpoint_every=7")
TIMEOUT = 300


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(secrets.token_hex(16)) as it:
        yield it
        it.end()


@pytest.fixture
def name() -> str:
    """Of a command."""
    return secrets.token_hex(16)


@pytest.fixture
def request_(experiment, tmp_path) -> dict[str, Any]:
    """Of the only worker."""
    wanted = experiment(*CHANGES)
    data = prepare(wanted)
    Run(tmp_path / "run").begin(wanted, data.fingerprint, data.path, {}, {})
    return {
        "experiment": wanted.model_dump(mode="json"),
        "prepared": str(data.path),
        "run": str(tmp_path / "run"),
        "rank": 0,
        "world": 1,
        "device": "cpu",
        "threads": 1,
        "host": "127.0.0.1",
        "port": 1,
    }


def never() -> bool:
    return False


def once_it_trains(run: Path, do: Callable[[int], object]) -> threading.Thread:
    """With the number of the process that trains, in a thread of its own."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            events = read(run / "events.jsonl") if (run / "events.jsonl").exists() else []
            saved = any((run / "checkpoints").glob("step-*/manifest.json"))  # beside the steps, so it may come later
            if saved and sum(event["kind"] == "step" for event in events) > 10:
                do(next(event["pid"] for event in reversed(events) if event["kind"] == "start"))
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def gone(pid: int, within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and pid in parents():
        time.sleep(0.02)
    return pid not in parents()


def weights(run: Path) -> bytes:
    """Of the checkpoint of the last step."""
    newest = max((run / "checkpoints").glob("step-*"))
    return (newest / "model.safetensors").read_bytes()


def test_a_process_that_is_killed_is_noticed_and_the_next_one_goes_on(server, request_, tmp_path, experiment):
    run = tmp_path / "run"
    killed = once_it_trains(run, lambda pid: os.kill(pid, signal.SIGKILL))
    assert server.run(request_, never, never, TIMEOUT) is None
    killed.join()
    begin = time.monotonic()
    found = server.run(request_, never, never, TIMEOUT)
    assert found is not None and found["step"] == max(e["step"] for e in read(run / "events.jsonl") if "step" in e)
    starts = [event for event in read(run / "events.jsonl") if event["kind"] == "start"]
    assert len(starts) == 2 and starts[1]["step"] > 0 and starts[0]["pid"] != starts[1]["pid"]
    assert time.monotonic() - begin < 60
    alone = fit(experiment(*CHANGES, f"output={tmp_path / 'alone'}")).path
    assert weights(run) == weights(alone)


def test_a_server_that_is_killed_takes_its_process_along_and_is_begun_anew(server, request_, tmp_path):
    pids: list[int] = []

    def kill(pid: int) -> None:
        pids.extend([pid, parents()[pid]])
        os.kill(pids[1], signal.SIGKILL)

    killed = once_it_trains(tmp_path / "run", kill)
    assert server.run(request_, never, never, TIMEOUT) is None
    killed.join()
    assert all(map(gone, pids))
    (tmp_path / "run" / STOP).touch()
    found = server.run(request_, never, never, TIMEOUT)
    assert found is not None and "the state is saved" in found["interrupted"]


ASKS = """
import json, sys
from bigmodel.training.forkserver import ForkServer
with ForkServer(sys.argv[1]) as server:
    server.run(json.load(sys.stdin), lambda: False, lambda: False, 300)
"""


def test_nobody_trains_on_when_who_asked_is_killed_and_the_next_worker_of_the_run_is_spared_imports(
    request_, tmp_path, monkeypatch, name
):
    pids: list[int] = []
    noted = once_it_trains(tmp_path / "run", lambda pid: pids.extend([pid, parents()[pid], parents()[parents()[pid]]]))
    with subprocess.Popen([sys.executable, "-c", ASKS, name], stdin=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(request_))
        worker.stdin.close()
        noted.join()
        os.kill(pids[0], signal.SIGSTOP)  # nor one that stands still
        worker.kill()
    assert gone(pids[0]) and gone(pids[1])
    monkeypatch.chdir(tmp_path)  # where this worker is, who trains for it is
    with ForkServer(name) as heir:
        heir._greet()
        assert parents()[heir._pid] == pids[2]
        found = heir.run(request_ | {"run": "run"}, never, never, TIMEOUT)
        heir.end()
    assert found is not None and found["step"]
    assert gone(pids[2])


def test_workers_that_begin_together_share_imports_and_the_last_one_to_end_ends_them(name):
    with ThreadPoolExecutor() as together:
        servers = [ForkServer(name) for _ in range(4)]
        list(together.map(ForkServer.__enter__, servers))
    for server in servers:
        server._greet()
    [kept] = {parents()[server._pid] for server in servers}
    for server in servers:
        server.__exit__(None, None, None)
    assert all(gone(server._pid) for server in servers) and kept in parents()  # for a minute
    with ForkServer(name) as first, ForkServer(name) as second:
        first._greet()
        second._greet()
        assert parents()[first._pid] == parents()[second._pid] == kept
        first.end()
        assert gone(first._pid) and kept in parents()
        second.end()
    assert gone(kept)


def test_after_one_that_stood_still_the_next_worker_is_still_waited_for(request_, tmp_path, name):
    stopped = once_it_trains(tmp_path / "run", lambda pid: os.kill(pid, signal.SIGSTOP))
    with ForkServer(name) as server:
        assert server.run(request_, never, never, 3) == {"lost": "silent for 3 s"}
        stopped.join()
        server._greet()
        last, kept = server._pid, parents()[server._pid]
    assert gone(last) and not gone(kept, 1)
    with ForkServer(name) as heir:
        heir._greet()
        assert parents()[heir._pid] == kept
        heir.end()


def test_where_it_was_killed_while_it_imports_another_is_begun(name):
    before = that_run(forkserver.__name__)
    with nursery.kept(name, forkserver.__name__), ForkServer(name) as server:
        [kept] = that_run(forkserver.__name__) - before
        os.kill(kept, signal.SIGKILL)
        server._greet()
        other = parents()[server._pid]
        server.end()
    assert other != kept and gone(other)


def test_nothing_is_left_of_a_command_that_ends_before_anybody_has_come(name):
    before = that_run(forkserver.__name__)
    with nursery.kept(name, forkserver.__name__):
        [kept] = that_run(forkserver.__name__) - before
    assert gone(kept)


def test_where_sockets_have_no_names_each_worker_has_its_own(request_, name, monkeypatch, tmp_path):
    monkeypatch.setattr(nursery, "NAMED", False)
    with nursery.kept(name, "none"), ForkServer(name) as one, ForkServer(name) as other:
        (tmp_path / "run" / STOP).touch()
        found = one.run(request_, never, never, TIMEOUT)
        other._greet()
        assert (
            not {parents()[one._pid], parents()[other._pid]} & that_run(forkserver.__name__) and one._pid != other._pid
        )
    assert found is not None and "the state is saved" in found["interrupted"]
    assert gone(one._pid) and gone(other._pid)


def test_it_is_told_that_its_machine_will_be_taken_away(server, request_, tmp_path):
    leave = threading.Event()
    told = once_it_trains(tmp_path / "run", lambda pid: leave.set())
    found = server.run(request_, leave.is_set, never, TIMEOUT)
    told.join()
    assert found is not None and "is to be taken away" in found["preempted"]


def test_a_notice_before_it_is_there_is_not_lost(request_, name):
    with ForkServer(name) as server:
        found = server.run(request_, lambda: True, never, TIMEOUT)
    assert found is not None and "is to be taken away" in found["preempted"]


def test_it_is_ended_where_another_worker_is_lost(server, request_, tmp_path):
    lost = threading.Event()
    told = once_it_trains(tmp_path / "run", lambda pid: (os.kill(pid, signal.SIGSTOP), lost.set()))
    assert server.run(request_, never, lost.is_set, TIMEOUT) is None
    told.join()


@pytest.mark.parametrize("whole", [False, True])
def test_one_that_stands_still_is_ended_alone_or_with_its_server(server, request_, tmp_path, whole):
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.extend([pid, parents()[pid]])
        for each in pids[: 1 + whole]:
            os.kill(each, signal.SIGSTOP)

    stopped = once_it_trains(tmp_path / "run", stop)
    found = server.run(request_, never, never, 3)
    stopped.join()
    assert found == {"lost": "silent for 3 s"} and all(map(gone, pids))


def test_to_wait_for_long_is_no_silence(server, request_):
    """For another worker, which never comes."""
    request_["experiment"]["train"]["timeout"] = 8
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        request_ |= {"world": 2, "port": free.getsockname()[1]}
    found = server.run(request_, never, never, 4)
    assert found is not None and "Timed out" in found["lost"]


def test_what_goes_wrong_is_an_answer(server, request_):
    blind = server.run(request_ | {"prepared": "/nowhere"}, never, never, TIMEOUT)
    assert blind is not None and "/nowhere is not to be seen on" in blind["error"]
    lost = server.run(request_ | {"run": "/proc/nowhere"}, never, never, TIMEOUT)
    assert lost is not None and "/proc/nowhere" in lost["lost"]
