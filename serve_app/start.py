"""`bigmodel serve`: start or join Ray, deploy one model, say where it answers, and take down on Ctrl-C what was started."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel.errors import ConfigError, ResourceError, ServeError
from serve_app import ray_host
from serve_app.options import ServeOptions, read_options
from serve_app.ray_host import Host


def serve(
    model_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve a model directory until Ctrl-C or SIGTERM. `options` are fields of ServeOptions.

    `address` or RAY_ADDRESS joins a running Ray, otherwise one is started here and stopped at the end.
    Raises ConfigError, ResourceError or ServeError.
    """
    given = {key: value for key, value in options.items() if value is not None}
    checked = read_options({"model": str(Path(model_dir).absolute())} | given)
    with serving(checked, host, port, address or os.environ.get("RAY_ADDRESS")) as url:
        say(f"{checked.word} answers at {url}/models/{checked.word}/predict")
        say(f"Page to try it: {url}/models/{checked.word}/docs    Stop: Ctrl-C")
        wait_for_signal()
        say("Stopping: requests in flight are answered first.")


@contextmanager
def serving(options: ServeOptions, host: str, port: int, address: str | None = None) -> Iterator[str]:
    """The application up and answering inside the block; yields the base URL. Leaves nothing behind that it started."""
    if not (Path(options.model) / "config.json").is_file():
        raise ConfigError(f"{options.model}: not a model directory (it has no config.json).")
    if address:
        ray = ray_host.join(address, host, port)
    else:
        ray = ray_host.start(host, port, options.num_cpus * options.max_replicas)
    try:
        deploy(ray, options)
        yield ray.url
    finally:
        ray_host.stop(ray, options.word)


def deploy(ray: Host, options: ServeOptions) -> None:
    """Run the application and wait until it answers through the front door."""
    from ray import serve as ray_serve

    from serve_app.app import application

    _check_resources(options)
    prefix = route_prefix(ray, options)
    try:
        ray_serve.run(application(options), name=options.word, route_prefix=prefix)
    except RuntimeError:
        status = ray_serve.status().applications[options.word]
        raise ServeError(f"{options.model} cannot be served: {ray_host.failure(status)}") from None
    _wait_until_it_answers(f"{ray.url}{prefix.rstrip('/')}/readyz")


def route_prefix(ray: Host, options: ServeOptions) -> str:
    """A Ray of our own serves one model from the root; on a shared one each model has its own path."""
    return "/" if ray.started else f"/models/{options.word}"


def _check_resources(options: ServeOptions) -> None:
    """Ray would wait for ever for what is not there."""
    import ray

    there = ray.cluster_resources()
    for kind, each in (("CPU", options.num_cpus), ("GPU", options.num_gpus)):
        need, have = each * options.min_replicas, there.get(kind, 0)
        if need > have:
            raise ResourceError(
                f"{options.min_replicas} replicas with {each:g} {kind} each need {need:g}; Ray has {have:g}. "
                f"Lower min_replicas or num_{kind.lower()}s, or join a larger cluster."
            )


def _wait_until_it_answers(url: str, patience_s: float = 30) -> None:
    deadline = time.monotonic() + patience_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise ServeError(f"The model is up but {url} does not answer: {error}") from None
            time.sleep(0.05)


def wait_for_signal() -> None:
    """Sleep until Ctrl-C or SIGTERM."""
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not told.wait(3600):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
