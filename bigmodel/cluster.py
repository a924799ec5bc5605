"""Ray's surroundings: the environment it reads, the token it wants, and whether to start one or join one.

Everything here that Ray reads must stand before Ray is imported. Ray's defaults are half-way to token authentication
(on for a Ray that `ray.init` starts, off for one that `ray start` starts without a token), so it is said explicitly.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import stat
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bigmodel.errors import ResourceError, first_line

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a worker stays where the experiment's relative paths start
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon a lost worker, and the end, is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "4",  # how long workers are waited for that have no room any more
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "60",  # for workers that have lost one of them to wait for one that stands still
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOOPBACK = {
    # Ray takes 127.0.0.1 for this machine's address, as it does by itself on macOS, and binds its ports to it; on Linux
    # it opens them to the whole network. For a Ray that one process starts for itself, not for one that others join.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that each start of workers would wait for
    "RAY_prestart_worker_first_driver": "0",  # idle processes: Tune's and Train's have environments of their own
    # how soon the object store is asked again, which is seldom ready at once: after a second, ten times, if not said
    "RAY_raylet_client_connect_timeout_milliseconds": "100",
    "RAY_raylet_client_num_connect_attempts": "100",
}
OWN = LOOPBACK | {
    "RAY_worker_niceness": "0",  # of 15 in Ray: whatever else runs here would take the cores from trials and workers
}

ANSWER_S = 10.0  # for a cluster to take a connection
_changing = threading.Lock()
"""Held while Ray starts or stops."""


class Ahead:
    """A Ray that starts while the caller does something else; `connect` waits for it and joins it.

        with Ahead() as ray:
            ray.start()
            ...
            ray.stop()  # once nobody needs it; at the latest the end does it

    What goes wrong is left to `connect`, which tries again and says it when it is asked.
    """

    def __init__(self) -> None:
        self._unneeded = threading.Event()
        self._thread = threading.Thread(target=self._own, daemon=True)

    def _own(self) -> None:
        """Start, and stop too: Linux ends Ray's processes with the thread that started them."""
        ours = False
        with suppress(Exception):
            ours = connect()
        self._unneeded.wait()
        try:
            if ours:
                import ray

                gc.collect()  # whoever lets a Ray object go while Ray shuts down has his process ended by it
                ray.shutdown()
        finally:
            _changing.release()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let it go, without waiting until it is gone. Who connects from now on waits, and gets another one."""
        if self._thread.is_alive() and not self._unneeded.is_set():
            _changing.acquire()
            self._unneeded.set()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread.is_alive():
            self._thread.join()


def connect(num_cpus: int | None = None) -> bool:
    """Join the Ray that RAY_ADDRESS names, or this process is connected to; else start one. -> it is ours to stop."""
    with _changing:
        return _connect(num_cpus)


def _connect(num_cpus: int | None) -> bool:
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (ENVIRONMENT | ({} if address else OWN)).items():
        os.environ.setdefault(name, value)
    secure_token()
    import ray

    if ray.is_initialized():
        return False
    if address:
        check_answers(address)
    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else num_cpus,
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as e:
        where = f"the Ray at RAY_ADDRESS={address}" if address else "a Ray on this machine"
        raise ResourceError(f"{where} cannot be reached: {first_line(e)}") from None
    return not address


def nodes() -> list[dict[str, float]]:
    """What each node of the Ray that we are connected to has: `{"CPU": 4.0, "GPU": 1.0, ...}`."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def total(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    """What all nodes have together of a resource, such as CPU."""
    return sum(node.get(name, 0) for node in nodes)


def places(nodes: Sequence[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many there is room for that want `each`, none of them on two nodes."""
    return sum(min(int(node.get(name, 0) / count) for name, count in each.items() if count) for node in nodes)


def check_answers(address: str) -> None:
    """ResourceError where nobody listens at host:port, which Ray would wait for. Other forms of address are Ray's."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as e:
        raise ResourceError(
            f"no Ray answers at RAY_ADDRESS={address}: {e.strerror or e}. Start one there, name another, or unset "
            "RAY_ADDRESS: then one is started on this machine"
        ) from None


def secure_token() -> None:
    """Token authentication on, with a token that only its owner can read (Ray itself writes it with mode 0644)."""
    if os.environ.get("RAY_AUTH_MODE"):
        return
    if "ray" not in sys.modules:  # it read the mode when it was imported; now only its own default, the same, is left
        os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    if stat.S_IMODE(path.stat().st_mode) & 0o077 and path.stat().st_uid == os.getuid():
        path.chmod(0o600)
