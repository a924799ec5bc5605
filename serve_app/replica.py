"""One replica: it loads the model, proves it, and answers HTTP itself. Endpoint, batches and model meet only here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import serve

from bigmodel.errors import CheckpointError
from bigmodel.predictor import Predictor
from bigmodel.tasks.base import Row
from serve_app import ray_host
from serve_app.batching import Batcher, Batching, Ran
from serve_app.endpoint import Endpoint
from serve_app.metrics import Metrics
from serve_app.options import ServeOptions
from serve_app.protocol import Answer, Form, Limits
from serve_app.streaming import PLACES, RUNNING, STREAMED, Streams

SWITCH_S = 0.0005
"""How long a thread may keep Python's lock while another wants it: the model's wants it at every torch call."""


class Replica:
    """Ray Serve calls the constructor, then `__serve_build_asgi_app__`; requests go straight to the endpoint.

    A replica whose model does not reproduce its golden answers, or is not the one that was deployed, raises here and
    never becomes healthy. `weights` are the digests of that one; {} where they are not known. `keys` are those of the
    keys that a request may show.
    """

    def __init__(self, options: ServeOptions, weights: Mapping[str, str], keys: Sequence[str]) -> None:
        ray_host.close_internal_port()
        sys.setswitchinterval(SWITCH_S)
        device = "cuda" if options.num_gpus else "cpu"
        predictor = Predictor.load(options.model, device=device, precision=options.precision)
        refuse_others(predictor, weights)
        predictor.check_golden()
        self._endpoint = assemble(options, predictor, serve.get_replica_context().replica_id.unique_id, keys)

    def __serve_build_asgi_app__(self) -> Endpoint:
        return self._endpoint


def refuse_others(predictor: Predictor, weights: Mapping[str, str]) -> None:
    """CheckpointError where a directory has other weights than when it was deployed: under one name, one model."""
    if weights and predictor.info.get("weights") != weights:
        folder = predictor.model.config.name_or_path
        raise CheckpointError(f"{folder}: the model is another one since it was deployed. Deploy it again to serve it")


def assemble(options: ServeOptions, predictor: Predictor, replica: str, keys: Sequence[str]) -> Endpoint:
    """HTTP in front, the model behind, batches between."""

    def work(inputs: list[Row]) -> Sequence[Answer]:
        """In the model's thread: encoding and the model, both outside the event loop."""
        return predictor.predict(inputs, options.max_batch_tokens)

    async def ask(inputs: list[Row]) -> list[Answer]:
        return await batcher.ask(inputs, [predictor.cost(row) for row in inputs])

    def begin() -> None:
        import torch

        torch.set_num_threads(max(1, int(options.num_cpus) // batcher.threads))

    metrics = Metrics(options.word, replica)
    how = Batching(max_tokens=options.max_batch_tokens or predictor.max_tokens, pads=predictor.pads)
    # with a second batch under way the model does not wait for encoding, nor for the lock that Python's threads share
    batcher: Batcher[Row, Answer] = Batcher(work, how, metrics.ran, 2 if options.num_cpus >= 2 else 1, begin)
    task, processor = predictor.task, predictor.processor
    streams = streamed(predictor, begin, metrics.ran)
    limits = Limits(options.max_inputs, options.max_body_bytes, options.max_body_s)
    form = Form(
        task.request(processor),
        task.answer(processor),
        limits,
        lambda fields: task.asked(fields, processor),
        streams=streams is not None,
    )
    return Endpoint(
        options.word,
        streams.ask if streams and predictor.name in RUNNING else ask,
        metrics,
        form,
        lambda: batcher.num_waiting + (streams.num_waiting if streams else 0),
        options.max_waiting,
        options.retry_after_s,
        streams.stream if streams else None,
        keys,
    )


def streamed(predictor: Predictor, begin: Callable[[], None], ran: Callable[[Ran], None]) -> Streams | None:
    """The running batch of a task that answers a token at a time; None for others."""
    if predictor.name not in STREAMED:
        return None
    decoder: Any = predictor.task
    rows = decoder.decoder(predictor.model, predictor.processor, PLACES)
    return Streams(rows, predictor.encode, predictor.inside, begin, ran)
