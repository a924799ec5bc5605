"""A small Ray cluster on this machine for tests: a head and more nodes, one CPU each, behind a token, on its own ports.

Only processes that were started here are ever ended. `ray start --block` stays the parent of its node, so the processes
of a cluster are the descendants of those parents, and those that an ending parent has left behind carry the cluster's
own mark in their environment. If the tests themselves are killed, the kernel ends those parents (`setpriv
--pdeathsig`), and they their nodes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

MARK = "BIGMODEL_TEST_CLUSTER"
PORTS = (
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--node-manager-port",
    "--object-manager-port",
)


@dataclass
class Cluster:
    folder: Path
    """Private (0700) and short: Ray's socket names must stay below 107 characters."""
    gcs: int
    dashboard: int
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gcs}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def home(self) -> Path:
        """Where a job's relative outputs begin."""
        return self.folder / "home"

    @property
    def token(self) -> str:
        return (self.folder / "token").read_text()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to speak to this cluster and to no other."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return inherited | {
            "PATH": path,
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "BIGMODEL_HOME": str(self.home),
            MARK: self.folder.name,
        }

    def add_node(self, *arguments: str) -> None:
        """`ray start` in the background, its words in a log file beside the token."""
        ports = [f"{option}={port}" for option, port in zip(PORTS, free_ports(len(PORTS)), strict=True)]
        command = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        command += apart()
        command += [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"]
        environment = {k: v for k, v in self.environment.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
        with open(self.folder / f"node{len(self.nodes)}.log", "wb") as log:
            self.nodes.append(
                subprocess.Popen(
                    [*command, *ports, *arguments],
                    env=environment,
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def join(self) -> None:
        """One node more. Its folder is its own, as on a machine of its own: a node deletes a job's files when it needs
        them no more."""
        away = f"--temp-dir={self.folder / f'ray{len(self.nodes)}-{secrets.token_hex(2)}'}"
        self.add_node(f"--address={self.address}", "--include-log-monitor=false", away)

    def lose(self, number: int) -> None:
        """A node as its machine goes: SIGKILL for its raylet, and for all that runs there."""
        parent = self.nodes.pop(number)
        [raylet] = [process for process, of in running().items() if of == parent.pid and "raylet" in said(process)]
        there = machine(parent.pid)
        others = [process for process in processes_of(self) if machine(process.pid) == there != machine(os.getpid())]
        for process in (raylet, *others):
            end(process)
        parent.wait(60)

    def get(self, path: str, token: str | None = None) -> object:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
            return json.load(answer)

    def alive(self) -> int:
        """Nodes that have joined."""
        summary = self.get("/nodes?view=summary")["data"]["summary"]  # type: ignore[index]
        return sum(node["raylet"]["state"] == "ALIVE" for node in summary)

    def listens(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.gcs)) == 0

    def wait(self, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and all(node.poll() is None for node in self.nodes):
            try:
                if ready():
                    return
            except (OSError, KeyError):
                pass  # the dashboard is not up yet, or has not yet heard of its node
            time.sleep(0.2)
        logs = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self.folder.glob("node*.log"))
        raise RuntimeError(f"The cluster did not come up in {timeout_s:.0f} s, or a node has ended.\n{logs}")

    def ray(self, *arguments: str, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """The `ray` command as a user of this cluster would type it."""
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        return self.run(command, timeout_s, **environment)

    def run(self, command: Sequence[str], timeout_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def close(self) -> None:
        ours = processes_of(self)
        for node in self.nodes:
            if node.poll() is None:
                node.terminate()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(node.poll() is None for node in self.nodes):
            time.sleep(0.1)
        while ours := (ours | processes_of(self)) & running().keys():
            for process in ours:
                end(process)
            time.sleep(0.1)
        for node in self.nodes:
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def cluster(num_nodes: int = 2) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="bm-", dir="/tmp"))
    gcs, dashboard, client = free_ports(3)
    it = Cluster(folder, gcs, dashboard)
    try:
        os.close(os.open(folder / "token", os.O_CREAT | os.O_WRONLY, 0o600))
        (folder / "token").write_text(secrets.token_hex(32))
        it.home.mkdir()
        it.add_node(
            "--head",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={folder / 'ray'}",
        )
        it.wait(it.listens)
        for _ in range(num_nodes - 1):
            it.join()
        it.wait(lambda: it.alive() == num_nodes)
        yield it
    finally:
        it.close()


@cache
def apart() -> list[str]:
    """What gives a node mounts of its own, by which its processes are told from others', if this user may."""
    command = ["unshare", "--mount"]
    may = shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if may else []


def machine(pid: int) -> int:
    """0 if it has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class Process(NamedTuple):
    pid: int
    started: int
    """Clock ticks since the machine started: tells a process from a later one with the same number."""


def running() -> dict[Process, int]:
    """Process -> number of its parent, zombies left out."""
    parents = {}
    for pid in (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # has ended since
        if fields[0] != "Z":
            parents[Process(pid, int(fields[19]))] = int(fields[1])
    return parents


def parents() -> dict[int, int]:
    """Number of each process -> that of its parent."""
    return {process.pid: parent for process, parent in running().items()}


def that_run(module: str) -> set[int]:
    """Numbers of the processes with the module as their program, or in their arguments."""
    found = set()
    for pid in parents():
        with suppress(OSError):  # it has just ended
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def below(pid: int) -> set[int]:
    """The process, and everything that it has started."""
    parents, found = running(), {pid}
    while more := {process.pid for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: Iterable[int]) -> dict[str, int]:
    """Address and port, as /proc/net has them -> which of the processes listens there."""
    owners: dict[str, int] = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                owners[os.readlink(link)] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and (owner := owners.get(f"socket:[{fields[9]}]")):
                found[fields[1]] = owner
    return found


LOOPBACK = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
"""What addresses of /proc/net begin with that this machine alone can reach."""


def processes_of(it: Cluster) -> set[Process]:
    """Everything the cluster has started: descendants of its nodes, and orphans that carry its mark."""
    parents = running()
    nodes = {node.pid for node in it.nodes if node.returncode is None}
    found = {process for process in parents if process.pid in nodes or carries(process, f"{MARK}={it.folder.name}")}
    while more := {process for process, parent in parents.items() if parent in {p.pid for p in found}} - found:
        found |= more
    return found


def carries(process: Process, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # has ended, or is another user's


def said(process: Process) -> str:
    """Its name, or the program it runs."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""  # has ended


def end(process: Process) -> None:
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # has ended by itself
