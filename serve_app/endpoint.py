"""The HTTP face of one model: a raw ASGI application, because a framework would cost more than the model does.

Routes: POST /models/<name>/predict; GET /healthz /readyz /metrics /docs /openapi.json, each also under /models/<name>.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from bigmodel.tasks.base import Refused, Row
from serve_app import protocol
from serve_app.documents import openapi, page
from serve_app.keys import refuse_strangers
from serve_app.metrics import CONTENT_TYPE, Metrics
from serve_app.protocol import EVENTS, JSON, Answer, Form, Limits
from serve_app.refusal import Refusal, dump

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Ask = Callable[[list[Row]], Awaitable[list[Answer]]]
Stream = Callable[[Row], AsyncGenerator[tuple[str, dict[str, Any] | None]]]
Reply = tuple[bytes, bytes]  # content type, body

logger = logging.getLogger("ray.serve")


class Endpoint:
    """ASGI application. `ask` answers inputs in order; `waiting` counts those queued, refused beyond `max_waiting`.

    `keys` are digests of the keys of which a request must show one; [] lets everybody ask. The probes ask for none.
    """

    def __init__(
        self,
        name: str,
        ask: Ask,
        metrics: Metrics,
        form: Form,
        waiting: Callable[[], int],
        max_waiting: int,
        retry_after_s: int,
        stream: Stream | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self._name, self._ask, self._metrics, self._form = name, ask, metrics, form
        self._waiting, self._max_waiting, self._retry_after_s = waiting, max_waiting, retry_after_s
        self._stream, self._keys = stream, keys
        self._prefix = f"/models/{name}"
        self._predict = f"{self._prefix}/predict"
        probes: dict[str, Callable[[], Reply]] = {
            "/healthz": lambda: (JSON, b'{"status":"ok"}'),
            "/readyz": lambda: (JSON, b'{"status":"ready"}'),
        }
        pages: dict[str, Callable[[], Reply]] = probes | {
            "/metrics": self._render_metrics,
            "/openapi.json": lambda: (JSON, dump(openapi(name, form, bool(keys)))),
            "/docs": lambda: (b"text/html; charset=utf-8", page(name, form, bool(keys))),
        }
        self._probes = probes.keys() | {self._prefix + path for path in probes}
        self._pages = pages | {self._prefix + path: reply for path, reply in pages.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})  # before it is accepted: a 403
        try:
            kind, body = await self._answer(scope, receive, send)
            if kind == EVENTS:
                return None  # sent as it came
            status, headers = 200, []
        except Refusal as refusal:
            self._metrics.refused(refusal.status, refusal.code)
            kind, body, status, headers = JSON, refusal.body(), refusal.status, refusal.headers
        except Exception:
            logger.exception("request failed")
            self._metrics.refused(500, "internal")
            failure = Refusal(500, "internal", "The model failed on this request. The server's log has the reason.")
            kind, body, status, headers = JSON, failure.body(), 500, []
        head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Reply:
        path, method = scope["path"], scope["method"]
        if self._keys and path not in self._probes:
            refuse_strangers(scope["headers"], self._keys)
        if path == self._predict:
            if method != "POST":
                raise _wrong_method(path, method, "POST")
            return await self._predict_inputs(scope, receive, send)
        reply = self._pages.get(path)
        if reply is None:
            raise Refusal(
                404, "no_such_path", f"There is nothing at {path[:200]}. Ask POST {self._predict}, GET /docs."
            )
        if method not in ("GET", "HEAD"):
            raise _wrong_method(path, method, "GET")
        return reply()

    async def _predict_inputs(self, scope: Scope, receive: Receive, send: Send) -> Reply:
        began_s = time.perf_counter()
        declared, kind = _check_headers(scope["headers"], self._form)
        body = await _read(receive, declared, self._form.limits)
        inputs, many, streamed = self._form.parse_streamed(body, kind)
        if self._waiting() + len(inputs) > self._max_waiting:
            raise protocol.overloaded(self._retry_after_s)
        try:
            if streamed:
                await self._send_events(inputs[0], began_s, receive, send)
                return EVENTS, b""
            answers = await self._ask(inputs)
        except Refused as refused:  # what shows only when an input is decoded
            raise Refusal(422, "invalid_value", f"{refused.reason}.") from None
        truncated = sum(1 for answer in answers if "truncated" in answer)
        self._metrics.answered(len(inputs), truncated, time.perf_counter() - began_s)
        return JSON, dump(answers if many else answers[0])

    async def _send_events(self, row: Row, began_s: float, receive: Receive, send: Send) -> None:
        """An event for each piece of the answer, then one that is the answer. A client that leaves is not answered."""
        gone = asyncio.ensure_future(_disconnected(receive))
        events = asyncio.ensure_future(self._events(row, began_s, send))
        try:
            await asyncio.wait({gone, events}, return_when=asyncio.FIRST_COMPLETED)
            if events.done():
                events.result()
        finally:
            for task in (gone, events):
                task.cancel()
            await asyncio.gather(gone, events, return_exceptions=True)

    async def _events(self, row: Row, began_s: float, send: Send) -> None:
        """The status goes with the first token: what the model's thread refuses by then has a status of its own."""
        assert self._stream is not None, "the form lets nobody ask"
        head = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        begun = False
        try:
            async with contextlib.aclosing(self._stream(row)) as pieces:
                async for text, answer in pieces:
                    if not begun:
                        await send({"type": "http.response.start", "status": 200, "headers": head})
                        begun = True
                    if text:
                        await send(_event({"piece": text}, more=True))
                    if answer is not None:
                        self._metrics.answered(1, int("truncated" in answer), time.perf_counter() - began_s)
                        await send(_event(answer, more=False))
        except Exception:
            if not begun:
                raise
            logger.exception("request failed")
            self._metrics.refused(500, "internal")
            await send(
                _event({"error": {"code": "internal", "message": "The model failed on this request."}}, more=False)
            )

    def _render_metrics(self) -> Reply:
        self._metrics.waiting.set(self._waiting())
        return CONTENT_TYPE, self._metrics.render()


def _event(value: Any, more: bool) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + dump(value) + b"\n\n", "more_body": more}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_headers(headers: list[tuple[bytes, bytes]], form: Form) -> tuple[int | None, bytes]:
    """The declared length of the body, if any, and its type. Refuses what can be refused before reading it."""
    length, declared = None, b""
    for key, value in headers:
        if key == b"content-length":
            length = int(value)  # the HTTP parser has checked the digits
            if length > form.limits.max_body_bytes:
                raise protocol.too_large(form.limits)
        elif key == b"content-type":
            declared = value
            if not form.takes(value.partition(b";")[0].strip().lower()):
                other = f", or a file: {form.file[1]}, multipart/form-data" if form.file[0] else ""
                wanted = f"Send the request as JSON, with content-type application/json{other}."
                raise Refusal(415, "unsupported_media", wanted)
        elif key == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "unsupported_media", "Send the body uncompressed, without content-encoding.")
    return length, declared


async def _read(receive: Receive, declared: int | None, limits: Limits) -> bytes:
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(limits.max_body_s):
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limits.max_body_bytes:
                    raise protocol.too_large(limits)
    except TimeoutError:
        raise protocol.too_slow(limits) from None
    if message["type"] == "http.disconnect" or (declared is not None and len(body) < declared):
        raise Refusal(400, "incomplete_body", "The connection ended before the whole body had come.")
    return bytes(body)


def _wrong_method(path: str, method: str, right: str) -> Refusal:
    allow = right if right == "POST" else "GET, HEAD"
    return Refusal(405, "wrong_method", f"{path} takes {right}, not {method}.", [(b"allow", allow.encode())])


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
