"""Requests in, batches out: pure asyncio around a few worker threads. Knows neither HTTP nor Ray nor models.

While the workers run their batches, the event loop keeps accepting; when one is done, its next batch is chosen from all
that wait. Nothing ever waits for a batch to fill: an idle worker starts at once with what is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batching:
    """How batches are chosen. Sizes are in tokens, as far as they are known before tokenisation."""

    max_tokens: int = 4096
    """Tokens of one batch, padding included: its longest item times its number of items."""
    pads: bool = True
    """Whether the model computes padding. If not, lengths do not matter: the oldest items are next."""
    call_tokens: int = 128
    """What one call of the model costs, in tokens. A batch grows while the padding this adds costs less than a call."""
    max_age_s: float = 0.1
    """An item older than this is taken first, whatever its length."""


@dataclass(eq=False, slots=True)
class Waiting(Generic[Item, Result]):
    item: Item
    size: int
    since_s: float
    answer: asyncio.Future[Result]


@dataclass(frozen=True)
class Ran:
    """One batch, for the metrics: real and padded tokens by the sizes given, and the seconds in the worker."""

    items: int
    tokens: int
    padded_tokens: int
    seconds: float


def choose(waiting: Sequence[Waiting[Item, Result]], now_s: float, how: Batching) -> list[Waiting[Item, Result]]:
    """The next batch: neighbours in length, around the oldest item if it waits too long, else from the shortest up."""
    if not how.pads:
        return _oldest(waiting, how.max_tokens)
    by_size = sorted(waiting, key=lambda w: w.size)
    oldest = min(waiting, key=lambda w: w.since_s)
    start = by_size.index(oldest) if now_s - oldest.since_s > how.max_age_s else 0
    batch, longest, padding = [by_size[start]], by_size[start].size, 0
    for next_up in by_size[start + 1 :]:
        padding += (next_up.size - longest) * len(batch)
        longest = next_up.size
        if longest * (len(batch) + 1) > how.max_tokens or padding > how.call_tokens:
            break
        batch.append(next_up)
    return batch


def _oldest(waiting: Sequence[Waiting[Item, Result]], max_tokens: int) -> list[Waiting[Item, Result]]:
    """The first items, which came first, of at most `max_tokens` together; one larger than that is alone."""
    tokens = 0
    for count, item in enumerate(waiting):
        tokens += item.size
        if count and tokens > max_tokens:
            return list(waiting[:count])
    return list(waiting)


@dataclass
class Batcher(Generic[Item, Result]):
    """Runs `work(items) -> results` (same order) in `threads` at a time, on batches it chooses.

    A cancelled request is dropped before it costs anything. When a batch raises, its items run again one by one, so
    that only the guilty one fails.
    """

    work: Callable[[list[Item]], Sequence[Result]]
    how: Batching = Batching()
    ran: Callable[[Ran], None] = lambda _: None
    threads: int = 1
    begin: Callable[[], None] = lambda: None
    """Called once in each thread, before its first batch."""

    def __post_init__(self) -> None:
        self._waiting: list[Waiting[Item, Result]] = []
        self._running = 0
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="model", initializer=self.begin)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def ask(self, items: Sequence[Item], sizes: Sequence[int]) -> list[Result]:
        """The results of all items, in their order."""
        loop = asyncio.get_running_loop()
        now_s = time.monotonic()
        mine = [Waiting(i, size, now_s, loop.create_future()) for i, size in zip(items, sizes, strict=True)]
        if not self._waiting and self._running < self.threads:
            loop.call_soon(self._start)  # after the requests that the same turn of the loop brings
        self._waiting.extend(mine)
        try:
            return [await waiting.answer for waiting in mine]
        finally:
            for waiting in mine:
                if not waiting.answer.cancel() and not waiting.answer.cancelled():
                    waiting.answer.exception()  # seen: of several errors in one request the first is reported

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        self._waiting = [w for w in self._waiting if not w.answer.done()]
        while self._waiting and self._running < self.threads:
            batch = choose(self._waiting, time.monotonic(), self._share())
            chosen = {id(w) for w in batch}
            self._waiting = [w for w in self._waiting if id(w) not in chosen]
            self._running += 1
            self._pool.submit(self._run, batch, asyncio.get_running_loop())

    def _share(self) -> Batching:
        """What waits is divided among the idle workers, as far as a batch is still worth a call."""
        idle = self.threads - self._running
        if idle == 1:
            return self.how
        part = -(-sum(w.size for w in self._waiting) // idle)
        return replace(self.how, max_tokens=min(self.how.max_tokens, max(part, self.how.call_tokens)))

    def _run(self, batch: list[Waiting[Item, Result]], loop: asyncio.AbstractEventLoop) -> None:
        began_s = time.monotonic()
        outcomes = self._outcomes([w.item for w in batch])
        tokens, longest = sum(w.size for w in batch), max(w.size for w in batch)
        padded = longest * len(batch) if self.how.pads else tokens
        told = Ran(len(batch), tokens, padded, time.monotonic() - began_s)
        loop.call_soon_threadsafe(self._done, batch, outcomes, told)

    def _outcomes(self, items: list[Item]) -> Sequence[Result | Exception]:
        try:
            results = self.work(items)
            assert len(results) == len(items), f"{len(results)} results for {len(items)} items"
            return results
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [self._outcomes([item])[0] for item in items]

    def _done(self, batch: list[Waiting[Item, Result]], outcomes: Sequence[Result | Exception], told: Ran) -> None:
        self._running -= 1
        self._start()  # the model first: answers are written while it works
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(outcome, Exception):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(outcome)
        self.ran(told)
