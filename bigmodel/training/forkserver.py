"""A process that has imported what training needs, and forks one that trains whenever it is asked.

Importing torch and transformers takes seconds, forking milliseconds: so a worker that was killed trains again almost at
once. It forks before anything has computed, and has neither threads nor a GPU then. Requests and answers are lines of
JSON on a socket, whose end tells each side that the other one has died.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from bigmodel.imports import lighten

LOOK_S = 0.25  # between two looks whether the machine is to be left
LEAVE = b"leave\n"


class ForkServer:
    """The process as who asks it sees it."""

    def __enter__(self) -> ForkServer:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()  # it ends, and who trains for it
        self._process.wait()

    def _start(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)  # Ray brings a job's own modules so
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=theirs.fileno(), env=os.environ | {"PYTHONPATH": paths}
            )

    def run(self, request: dict[str, Any], leaves: Callable[[], bool]) -> dict[str, Any] | None:
        """What `member.train(**request)` returns in a process of its own; None if that process died. It gets SIGUSR1 as
        soon as `leaves` says so."""
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer, told = b"", False
            while not answer.endswith(b"\n"):
                if not told and (told := leaves()):
                    self._socket.sendall(LEAVE)
                if select.select([self._socket], [], [], LOOK_S)[0]:
                    answer += self._socket.recv(65_536) or _gone()
        except ConnectionError:  # the server itself was killed
            self.__exit__(None, None, None)
            self._start()
            return None
        found: dict[str, Any] | None = json.loads(answer)
        return found


def _gone() -> bytes:
    raise ConnectionResetError


# ---- the process itself


def serve(asks: socket.socket) -> None:
    """Answer one request after the other until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal is meant for who asks
    lighten()
    from bigmodel.training import member

    gc.freeze()  # no collection touches, and so copies, what is shared
    while line := _line(asks):
        request, _, more = line.partition(b"\n")
        answer = _forked(member.train, json.loads(request), asks, leave=bool(more))
        asks.sendall((answer or b"null") + b"\n")


def _line(asks: socket.socket) -> bytes:
    """The next line, with what has come after it; nothing at the end."""
    line = b""
    while b"\n" not in line:
        got = asks.recv(65_536)
        if not got:
            return b""
        line += got
    return line


def _forked(train: Callable[..., dict[str, Any]], request: dict[str, Any], asks: socket.socket, leave: bool) -> bytes:
    """The answer of a process forked for the request; nothing if it died. Where nobody asks any more, its end and this
    one's."""
    answers, tells = os.pipe()
    alive, lives = os.pipe()
    child = os.fork()
    if not child:
        for handle in (asks.fileno(), answers, lives):
            os.close(handle)
        _train(train, request, tells, alive)
    for handle in (tells, alive):
        os.close(handle)
    answer, open_ = b"", True
    while open_:
        if leave:
            os.kill(child, signal.SIGUSR1)
            leave = False
        ready, _, _ = select.select([answers, asks.fileno()], [], [])
        if asks.fileno() in ready:
            leave = bool(asks.recv(65_536))
            if not leave:
                os.kill(child, signal.SIGKILL)
                sys.exit()
        if answers in ready:
            got = os.read(answers, 65_536)
            answer, open_ = answer + got, bool(got)
    for handle in (answers, lives):
        os.close(handle)
    os.waitpid(child, 0)
    return answer


def _train(train: Callable[..., dict[str, Any]], request: dict[str, Any], tells: int, alive: int) -> None:
    """In the process that was forked: it ends here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with, args=[alive], daemon=True).start()
    try:
        answer = json.dumps(train(**request)).encode()
        while answer:
            answer = answer[os.write(tells, answer) :]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with(alive: int) -> None:
    """As soon as the server has died, which holds the other end of the pipe."""
    os.read(alive, 1)
    os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=0))
