"""A server of processes that train: it has imported what they need, and forks one whenever it is asked.

Importing torch and transformers takes seconds, forking milliseconds: so a worker that was killed trains again almost at
once. It forks before anything has computed, and has neither threads nor a GPU then. Requests and answers are lines of
JSON on a socket, whose end tells each side that the other one has died. The server itself is forked from a process that
outlives its worker (nursery.py).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from bigmodel.imports import lighten
from bigmodel.training import nursery

LOOK_S = 0.25  # between two looks at what happens elsewhere
KILL_S = 5.0  # for a server to end
BEGIN_S = 240.0  # for a server to have imported
BEAT_S = 1.0  # between two signs of life of a process that trains, whatever it is at
PR_SET_PDEATHSIG = 1  # prctl(2)
LEAVE, END = b"l", b"e"  # what may follow a request
BEAT = b" "  # what may come before an answer


class ForkServer:
    """The server as who asks it sees it, a worker. Unless it is told that nobody of the command needs one any more, the
    next worker finds all imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> ForkServer:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _start(self) -> None:
        self._socket, self._pid = nursery.connect(self._name, __name__), 0

    def end(self) -> None:
        """Of the server, and of who trains for it."""
        with self._socket, suppress(OSError):
            self._socket.sendall(nursery.QUIT)
            self._socket.settimeout(KILL_S)
            try:
                self._until_closed()
            except TimeoutError:  # it stands still, or imports
                if self._pid:
                    os.kill(self._pid, signal.SIGKILL)
                    self._until_closed()

    def _until_closed(self) -> None:
        while self._socket.recv(65_536):
            pass

    def _anew(self) -> None:
        self.end()
        self._start()

    def run(
        self, request: dict[str, Any], leaves: Callable[[], bool], ends: Callable[[], bool], timeout: float
    ) -> dict[str, Any] | None:
        """What `member.train(**request)` returns in a process of its own; None if that process died. It learns it when
        `leaves` says that its machine will be taken away, and is killed when `ends` says so, or where it stands still:
        no sign of life comes for `timeout` seconds."""
        place = {"environment": nursery.environment(), "folder": os.getcwd()}
        try:
            self._greet()
            self._socket.sendall(json.dumps(request | place).encode() + b"\n")
            answer, left = b"", {LEAVE: leaves, END: ends}
            heard = time.monotonic()
            while not answer.endswith(b"\n"):
                for word in [word for word, happened in left.items() if happened()]:
                    self._socket.sendall(word)
                    del left[word]
                if select.select([self._socket], [], [], LOOK_S)[0]:
                    got = self._socket.recv(65_536)
                    if not got:
                        raise ConnectionResetError
                    answer = (answer + got).lstrip(BEAT)
                    heard = time.monotonic()
                elif time.monotonic() - heard > timeout:
                    self._anew()
                    return {"lost": f"silent for {timeout:g} s"}
        except ConnectionError:  # the server itself was killed
            self._anew()
            return None
        found: dict[str, Any] | None = json.loads(answer)
        return found

    def _greet(self) -> None:
        if not self._pid:
            try:
                self._pid = self._number()
            except ConnectionError:  # it had just ended: nobody was lost
                self._anew()
                self._pid = self._number()

    def _number(self) -> int:
        """Of the server's process, which says it once it has imported."""
        line, deadline = b"", time.monotonic() + BEGIN_S
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            got = self._socket.recv(1) if select.select([self._socket], [], [], left)[0] else b""
            if not got:
                raise ConnectionResetError
            line += got
        return int(line)


# ---- the process itself


def serve(asks: socket.socket, problem: Exception | None) -> None:
    """Answer one request after the other until nobody asks any more; raise what went wrong with importing."""
    if problem:
        raise problem
    from bigmodel.training import member

    with suppress(ConnectionError):
        asks.sendall(b"%d\n" % os.getpid())
    while line := _line(asks):
        request, _, words = line.lstrip(LEAVE + END).partition(b"\n")  # those that crossed the last answer
        answer = _forked(member.train, json.loads(request), asks, words)
        with suppress(ConnectionError):  # who asked has gone
            asks.sendall((answer or b"null") + b"\n")


def _line(asks: socket.socket) -> bytes:
    """The next line, with what has come after it; nothing at the end."""
    line = b""
    while b"\n" not in line:
        got = _heard(asks)
        if not got:
            return b""
        line += got
        if line.lstrip(LEAVE + END).startswith(nursery.QUIT):
            sys.exit()
    return line


def _heard(asks: socket.socket) -> bytes:
    """What has come; nothing where nobody asks any more."""
    try:
        return asks.recv(65_536)
    except ConnectionError:
        return b""


def _forked(train: Callable[..., dict[str, Any]], request: dict[str, Any], asks: socket.socket, words: bytes) -> bytes:
    """The answer of a process forked for the request; nothing if it died, or was ended as nobody asks any more."""
    answers, tells = os.pipe()
    alive, lives = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), asks.fileno())
        for handle in (answers, lives):
            os.close(handle)
        _train(train, request, tells, alive)
    for handle in (tells, alive):
        os.close(handle)
    answer, watched = b"", [answers, asks.fileno()]
    while answers in watched:
        if LEAVE in words:
            with suppress(BrokenPipeError):  # it has just ended
                os.write(lives, LEAVE)
        if END in words or nursery.QUIT in words:
            os.kill(child, signal.SIGKILL)
        if nursery.QUIT in words:
            os.waitpid(child, 0)
            sys.exit()
        words = b""
        ready, _, _ = select.select(watched, [], [])
        if asks.fileno() in ready:
            words = _heard(asks)
            if not words:
                words = END
                watched.remove(asks.fileno())
        if answers in ready:
            got = os.read(answers, 65_536)
            answer = (answer + got).lstrip(BEAT)
            if not got:
                watched.remove(answers)
            elif not answer:
                with suppress(ConnectionError):  # who asked has just gone: the next look shows it
                    asks.sendall(BEAT)
    for handle in (answers, lives):
        os.close(handle)
    os.waitpid(child, 0)
    return answer


def _train(train: Callable[..., dict[str, Any]], request: dict[str, Any], tells: int, alive: int) -> None:
    """In the process that was forked: it ends here."""
    try:
        _die_with_parent()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(request.pop("environment"))
        lighten()
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # as Ray has its workers: this one needs the memory
        os.chdir(request.pop("folder"))
        leaving, answered = threading.Event(), threading.Event()
        threading.Thread(target=_listen, args=[alive, leaving], daemon=True).start()
        beating = threading.Thread(target=_beat, args=[tells, answered], daemon=True)
        beating.start()
        answer = json.dumps(train(**request, leaves=leaving.is_set)).encode()
        answered.set()
        beating.join()
        while answer:
            answer = answer[os.write(tells, answer) :]
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _beat(tells: int, answered: threading.Event) -> None:
    """In a thread of its own, so that a long step, validation or save is no silence."""
    while not answered.is_set():
        os.write(tells, BEAT)
        answered.wait(BEAT_S)


def _die_with_parent() -> None:
    """Also where this process stands still; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(alive: int, leaving: threading.Event) -> None:
    """The machine will be taken away, or the server, which holds the other end of the pipe, has died."""
    while os.read(alive, 1):
        leaving.set()
    os._exit(1)


def main() -> None:
    """The process that has imported all."""
    if os.fork():
        os._exit(0)  # what is left is no child of the worker, whose children Ray ends with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal is meant for who asks
    lighten()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray has it for workers; and what forks has no threads
    problem = None
    try:
        importlib.import_module("bigmodel.training.member")
    except Exception as e:
        problem = e
    gc.freeze()  # no collection touches, and so copies, what is shared
    nursery.keep(lambda asks: serve(asks, problem))


if __name__ == "__main__":
    main()
