"""Answers a token at a time: requests join and leave a running batch between two tokens. Knows neither HTTP nor Ray.

A task joins with a function in its module:

    decoder(model, processor, places) -> Decoder    for as many rows at once

and a line in STREAMED here. Its decoder is called in one thread, by one caller at a time. A task that makes its answers
whole may still stream them: `step` then gives the pieces of what it made, and the answer with the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from bigmodel.tasks.base import Row
from serve_app.batching import Ran
from serve_app.protocol import Answer

STREAMED = ("text-generation", "translation")
"""Tasks whose module has a decoder."""
RUNNING = ("text-generation",)
"""Those of them whose whole answers come from the running batch too; of others they are batched when they are whole."""
PLACES = 16
"""Rows under way at once; others wait for a place."""

logger = logging.getLogger("ray.serve")


class Piece(Protocol):
    """What one step brought for one row."""

    @property
    def key(self) -> Hashable: ...
    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> dict[str, Any] | None:
        """The whole answer, with the last piece."""


class Decoder(Protocol):
    places: int

    @property
    def num_rows(self) -> int: ...
    def join(self, key: Hashable, sample: Any) -> None:
        """An encoded row, where there is a free place."""

    def leave(self, key: Hashable) -> None:
        """Nobody wants it any more."""

    def step(self) -> Sequence[Piece]:
        """One token for every row that is there."""


class Asked:
    """A row that waits, or is under way, and where its pieces go."""

    def __init__(self, row: Row, loop: asyncio.AbstractEventLoop) -> None:
        self.row, self._loop = row, loop
        self.left = False
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def put(self, piece: Piece | Exception) -> None:
        """From the model's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Streams:
    """Runs a decoder in a thread of its own, as long as there is something to do.

    encode  rows -> samples, what the decoder takes
    run     a step inside whatever the model wants around it, such as its precision
    ran     told of each step: a token for every row
    """

    def __init__(
        self,
        decoder: Decoder,
        encode: Callable[[Sequence[Row]], Sequence[Any]],
        run: Callable[[Callable[[], Sequence[Piece]]], Sequence[Piece]],
        begin: Callable[[], None] = lambda: None,
        ran: Callable[[Ran], None] = lambda _: None,
    ) -> None:
        self._decoder, self._encode, self._run, self._ran = decoder, encode, run, ran
        self._waiting: deque[Asked] = deque()
        self._under_way: dict[Hashable, Asked] = {}
        self._lock = threading.Lock()
        self._running = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=begin)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def stream(self, row: Row) -> AsyncGenerator[tuple[str, dict[str, Any] | None]]:
        """(piece of text, None) a token, then (last piece, answer). To leave it early frees the row's place."""
        asked = Asked(row, asyncio.get_running_loop())
        with self._lock:
            self._waiting.append(asked)
            if not self._running:
                self._running = True
                self._pool.submit(self._work)
        try:
            while True:
                piece = await asked.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece.text, piece.answer
                if piece.answer is not None:
                    return
        finally:
            asked.left = True
            with self._lock, contextlib.suppress(ValueError):  # it has had its place
                self._waiting.remove(asked)

    async def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """Whole answers, in the order of the rows. When one is refused the others are left."""
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._whole(row)) for row in rows]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [one.result() for one in asked]

    async def _whole(self, row: Row) -> Answer:
        async with contextlib.aclosing(self.stream(row)) as pieces:
            async for _, answer in pieces:
                if answer is not None:
                    return answer
        raise AssertionError("the last piece has the answer")

    # ---- in the model's thread

    def _work(self) -> None:
        while self._admit():
            rows, began_s = self._decoder.num_rows, time.monotonic()
            try:
                pieces = self._run(self._decoder.step)
                self._ran(Ran(rows, rows, rows, time.monotonic() - began_s))
                for piece in pieces:
                    self._under_way[piece.key].put(piece)
                    if piece.answer is not None:
                        del self._under_way[piece.key]
            except Exception as error:
                logger.exception("a step failed")
                for key, asked in self._under_way.items():
                    self._decoder.leave(key)
                    asked.put(error)
                self._under_way.clear()

    def _admit(self) -> bool:
        """Who left goes, who waits takes a place. Whether there is anything to do."""
        for key in [key for key, asked in self._under_way.items() if asked.left]:
            self._decoder.leave(key)
            del self._under_way[key]
        while self._decoder.num_rows < self._decoder.places:
            with self._lock:
                if not self._waiting:
                    break
                asked = self._waiting.popleft()
            if asked.left:
                continue
            try:
                (sample,) = self._encode([asked.row])
                self._decoder.join(id(asked), sample)
                self._under_way[id(asked)] = asked
            except Exception as error:
                asked.put(error)
        with self._lock:
            self._running = bool(self._under_way or self._waiting)
            return self._running
