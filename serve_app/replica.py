"""One replica: it loads the model, proves it, and answers HTTP itself. Endpoint, batches and model meet only here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ray import serve

from serve_app import ray_host
from serve_app.batching import Batcher, Batching
from serve_app.endpoint import Endpoint
from serve_app.metrics import Metrics
from serve_app.options import ServeOptions
from serve_app.protocol import Answer, Limits

SWITCH_S = 0.0005
"""How long a thread may keep Python's lock while another wants it: the model's wants it at every torch call."""


class Replica:
    """Ray Serve calls the constructor, then `__serve_build_asgi_app__`; requests go straight to the endpoint.

    A replica whose model does not reproduce its golden answers raises here and never becomes healthy.
    """

    def __init__(self, options: ServeOptions) -> None:
        import torch

        from bigmodel.predictor import Predictor

        ray_host.close_internal_port()
        torch.set_num_threads(max(1, int(options.num_cpus)))
        sys.setswitchinterval(SWITCH_S)
        device = "cuda" if options.num_gpus else "cpu"
        self._predictor = Predictor.load(options.model, device=device, precision=options.precision)
        self._predictor.check_golden()
        self._metrics = Metrics(options.word, serve.get_replica_context().replica_id.unique_id)
        how = Batching(max_tokens=options.max_batch_tokens, pads=self._predictor.pads)
        self._batcher: Batcher[str, Answer] = Batcher(self._work, how, self._metrics.ran)
        self._options = options

    def __serve_build_asgi_app__(self) -> Endpoint:
        options = self._options
        return Endpoint(
            options.word,
            self._ask,
            self._metrics,
            Limits(options.max_texts, options.max_body_bytes),
            lambda: self._batcher.num_waiting,
            options.max_waiting,
            options.retry_after_s,
        )

    async def _ask(self, texts: list[str]) -> list[Answer]:
        return await self._batcher.ask(texts, [len(text) for text in texts])

    def _work(self, texts: list[str]) -> Sequence[Answer]:
        """In the model's thread: tokenisation and the model, both outside the event loop."""
        return self._predictor.predict([{"text": text} for text in texts], self._options.max_batch_tokens)

    def __del__(self) -> None:
        self._batcher.close()
