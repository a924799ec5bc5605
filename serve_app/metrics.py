"""What one replica counts about itself, in Prometheus' text format. Each replica is a series of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from serve_app.batching import Ran

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one replica; `render()` is the body of GET /metrics."""

    def __init__(self, model: str, replica: str) -> None:
        self._registry = CollectorRegistry()
        names, values = ["model", "replica"], [model, replica]

        def counter(name: str, text: str) -> Counter:
            return Counter(f"bigmodel_{name}", text, names, registry=self._registry).labels(*values)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(f"bigmodel_{name}", text, names, buckets=buckets, registry=self._registry)
            return metric.labels(*values)

        self._requests = Counter("bigmodel_requests", "HTTP answers.", [*names, "status"], registry=self._registry)
        self._errors = Counter("bigmodel_errors", "Refusals and failures.", [*names, "code"], registry=self._registry)
        self._values = values
        self._ok = self._requests.labels(*values, "200")
        self._latency = histogram("request_seconds", "From the first byte to the answer, predict only.", LATENCY_S)
        self._inputs = counter("inputs", "Inputs answered.")
        self._truncated = counter("truncated_inputs", "Inputs longer than the model reads.")
        self._batch = histogram("batch_inputs", "Inputs in one call of the model.", BATCH)
        self._batch_s = histogram("batch_seconds", "One call of the model.", LATENCY_S)
        self._real = counter("real_tokens", "Tokens of inputs, as estimated for batching, or those written.")
        self._padded = counter("padded_tokens", "The same with padding: what is computed.")
        waiting = Gauge("bigmodel_waiting_inputs", "Inputs that wait for the model.", names, registry=self._registry)
        self.waiting: Gauge = waiting.labels(*values)

    def answered(self, inputs: int, truncated: int, seconds: float) -> None:
        self._ok.inc()
        self._inputs.inc(inputs)
        if truncated:
            self._truncated.inc(truncated)
        self._latency.observe(seconds)

    def refused(self, status: int, code: str) -> None:
        self._requests.labels(*self._values, str(status)).inc()
        self._errors.labels(*self._values, code).inc()

    def ran(self, batch: Ran) -> None:
        self._batch.observe(batch.items)
        self._batch_s.observe(batch.seconds)
        self._real.inc(batch.tokens)
        self._padded.inc(batch.padded_tokens)

    def render(self) -> bytes:
        return generate_latest(self._registry)
