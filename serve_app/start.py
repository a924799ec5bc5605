"""`bigmodel serve`: start or join Ray, deploy one model, say where it answers; on Ctrl-C take down what was started."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bigmodel.cores import available_cores
from bigmodel.errors import ResourceError, ServeError
from bigmodel.predictor import check_directory
from serve_app import ray_host
from serve_app.keys import digests, is_undecided, made
from serve_app.options import DIGITS, ServeOptions, read_options
from serve_app.ray_host import Host


def tell(line: str) -> None:
    print(line, flush=True)  # also into a file, where it would wait for the end


def serve(
    model_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], None] = tell,
    **options: Any,
) -> None:
    """Serve a model directory until Ctrl-C or SIGTERM. `options` are fields of ServeOptions.

    RAY_ADDRESS joins a running Ray, otherwise one is started here and stopped at the end.
    Raises ConfigError, ResourceError or ServeError.
    """
    given = {key: value for key, value in options.items() if value is not None}
    checked = read_options({"model": str(Path(model_dir).absolute())} | given)
    with signals_interrupt(), serving(checked, host, port, os.environ.get("RAY_ADDRESS"), say) as url:
        say(f"{checked.word} answers at {url}/models/{checked.word}/predict")
        say(f"Page to try it: {url}/models/{checked.word}/docs    Stop: Ctrl-C")
        with suppress(KeyboardInterrupt):
            signal.pause()
        say("Stopping: requests in flight are answered first.")


@contextmanager
def serving(
    options: ServeOptions, host: str, port: int, address: str | None = None, say: Callable[[str], None] = tell
) -> Iterator[str]:
    """The application up and answering inside the block; yields the base URL. Leaves nothing behind that it started."""
    check_directory(Path(options.model))
    digests(options.key_file)  # a mistake in it is told before Ray starts
    if address:
        ray = ray_host.join(address, host, port)
    else:
        cpus = available_cores()
        there: dict[str, float] = {"CPU": cpus, "GPU": num_gpus() if options.num_gpus else 0}
        options = fit_machine(share_cpus(options, cpus), there, say)
        ray = ray_host.start(host, port, cpus)
    deployed = False
    try:
        options = closed(options, ray.listens, say)
        check_new(ray, options)
        deployed = True
        deploy(ray, options)
        yield ray.url
    finally:
        ray_host.stop(ray, options.word if deployed else None)


def closed(options: ServeOptions, host: str, say: Callable[[str], None]) -> ServeOptions:
    """Where others reach the endpoint, and nothing was said of keys, the user's own key is asked for."""
    if not is_undecided(options.key_file, host):
        return options
    path = made()
    say(f'Others reach {host or "it"}, so a key is asked for: -H "authorization: Bearer $(cat {path})"')
    return options.model_copy(update={"key_file": str(path)})


def share_cpus(options: ServeOptions, cpus: int) -> ServeOptions:
    """The CPUs of a machine of its own are the replicas', unless it is said how many each gets."""
    if "num_cpus" in options.model_fields_set:
        return options
    return options.model_copy(update={"num_cpus": max(1, cpus // options.max_replicas)})


def fit_machine(options: ServeOptions, there: dict[str, float], say: Callable[[str], None]) -> ServeOptions:
    """The options as far as a machine of its own can do them: fewer replicas at most, or ResourceError if too few."""
    check_resources(options, there, "this machine")
    room = [int(round(there[kind] / each, DIGITS)) for kind, each in needs(options).items() if each]
    most = min(room, default=options.max_replicas)
    if most >= options.max_replicas:
        return options
    say(f"This machine has room for {most} of {options.max_replicas} replicas; there will not be more.")
    return options.model_copy(update={"max_replicas": most})


def check_resources(options: ServeOptions, there: dict[str, float], where: str) -> None:
    """ResourceError where the least number of replicas does not fit: Ray would wait for ever."""
    for kind, each in needs(options).items():
        need, have = round(each * options.min_replicas, DIGITS), there.get(kind, 0)
        if need > have:
            raise ResourceError(
                f"{options.min_replicas} replicas of {each:g} {kind} each need {need:g}; {where} has {have:g}. "
                f"Lower min_replicas or num_{kind.lower()}s, or join a larger cluster (RAY_ADDRESS)."
            )


def needs(options: ServeOptions) -> dict[str, float]:
    return {"CPU": options.num_cpus, "GPU": options.num_gpus}


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def check_new(ray: Host, options: ServeOptions) -> None:
    """ServeError where somebody else's application has the name: deploying would replace it, and stopping remove it."""
    from ray import serve as ray_serve

    if not ray.ours and options.word in ray_serve.status().applications:
        raise ServeError(f"The Ray at {ray.url} already serves an application '{options.word}'. Choose another --name.")


def deploy(ray: Host, options: ServeOptions) -> None:
    """Run the application and wait until it answers through the front door."""
    import ray as running
    from ray import serve as ray_serve

    from serve_app.app import application

    if not ray.ours:
        check_resources(options, running.cluster_resources(), f"the Ray at {ray.url}")
    prefix = route_prefix(ray, options)
    try:
        ray_serve.run(application(options), name=options.word, route_prefix=prefix)
    except RuntimeError:
        status = ray_serve.status().applications[options.word]
        raise ServeError(f"{options.model} cannot be served: {ray_host.failure(status)}") from None
    _wait_until_it_answers(ray, f"{ray.url}{prefix.rstrip('/')}/readyz")


def route_prefix(ray: Host, options: ServeOptions) -> str:
    """A Ray of our own serves one model from the root; on a shared one each model has its own path."""
    return "/" if ray.ours else f"/models/{options.word}"


def _wait_until_it_answers(ray: Host, url: str, patience_s: float = 30) -> None:
    deadline = time.monotonic() + patience_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    reason: object = "its front end has not found it"
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=5):
                if ray_host.settled(ray):
                    return
        except (urllib.error.URLError, OSError) as error:
            reason = error
        time.sleep(0.05)
    raise ServeError(f"The model is up but {url} does not answer: {reason}")


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM, and a terminal that closes, are KeyboardInterrupts like Ctrl-C: what was started is taken down."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
