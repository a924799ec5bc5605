"""A process that has imported what training needs, and forks one that trains whenever it is asked.

Importing torch and transformers takes seconds, forking milliseconds: so a worker that was killed trains again almost at
once. It forks before anything has computed, and has neither threads nor a GPU then. Requests and answers are lines of
JSON on a socket, whose end tells each side that the other one has died.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from bigmodel.imports import lighten
from bigmodel.training import orphans

LOOK_S = 0.25  # between two looks at what happens elsewhere
KILL_S = 5.0  # for a server to end
BEAT_S = 1.0  # between two signs of life of a process that trains, whatever it is at
BEGIN_S = 240.0  # for the first one: the server may have to import
PR_SET_PDEATHSIG = 1  # prctl(2)
LEAVE, END, QUIT = b"l", b"e", b"q"  # what may follow a request; the last one, any time
BEAT = b" "  # what may come before an answer


class ForkServer:
    """The process as who asks it sees it, a worker of a run. One that failed or was killed leaves it to the next."""

    def __init__(self, run: str) -> None:
        self._paths = os.pathsep.join(path for path in sys.path if path)  # Ray brings a job's own modules so
        self._key = orphans.key(run, self._paths)

    def __enter__(self) -> ForkServer:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        else:
            self._socket.close()

    def _end(self) -> None:
        """Of the server, and of who trains for it."""
        with self._socket, suppress(OSError):
            self._socket.sendall(QUIT)
            self._socket.settimeout(KILL_S)
            try:
                self._until_closed()
            except TimeoutError:  # it stands still
                os.kill(self._pid, signal.SIGKILL)
                self._until_closed()

    def _until_closed(self) -> None:
        while self._socket.recv(65_536):
            pass

    def _anew(self) -> None:
        self._end()
        self._start()

    def _start(self) -> None:
        self._socket, self._pid = orphans.adopt(self._key) or self._begun()

    def _begun(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        with theirs:
            subprocess.run(
                [sys.executable, "-P", "-m", __name__, self._key],
                stdin=theirs.fileno(),
                env=self._environment(),
                start_new_session=True,
                check=True,
            )
        return ours, orphans.greeted(ours)

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": self._paths}

    def run(
        self, request: dict[str, Any], leaves: Callable[[], bool], ends: Callable[[], bool], timeout: float
    ) -> dict[str, Any] | None:
        """What `member.train(**request)` returns in a process of its own; None if that process died. It learns it when
        `leaves` says that its machine will be taken away, and is killed when `ends` says so, or where it stands still:
        no sign of life comes for `timeout` seconds."""
        place = {"environment": self._environment(), "folder": os.getcwd()}
        try:
            self._socket.sendall(json.dumps(request | place).encode() + b"\n")
            answer, left = b"", {LEAVE: leaves, END: ends}
            heard, silence = time.monotonic(), max(timeout, BEGIN_S)
            while not answer.endswith(b"\n"):
                for word in [word for word, happened in left.items() if happened()]:
                    self._socket.sendall(word)
                    del left[word]
                if select.select([self._socket], [], [], LOOK_S)[0]:
                    got = self._socket.recv(65_536)
                    if not got:
                        raise ConnectionResetError
                    answer = (answer + got).lstrip(BEAT)
                    heard, silence = time.monotonic(), timeout
                elif time.monotonic() - heard > silence:
                    self._anew()
                    return {"lost": f"silent for {silence:g} s"}
        except ConnectionError:  # the server itself was killed
            self._anew()
            return None
        found: dict[str, Any] | None = json.loads(answer)
        return found


# ---- the process itself


def serve(asks: socket.socket, key: str) -> None:
    """Answer one worker of a run after the other until none comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal is meant for who asks
    orphans.greet(asks)
    lighten()
    from bigmodel.training import member

    gc.freeze()  # no collection touches, and so copies, what is shared
    worker: socket.socket | None = asks
    while worker:
        with worker:
            while line := _line(worker):
                request, _, words = line.lstrip(LEAVE + END).partition(b"\n")  # those that crossed the last answer
                answer = _forked(member.train, json.loads(request), worker, words)
                with suppress(ConnectionError):  # who asked has gone
                    worker.sendall((answer or b"null") + b"\n")
        if worker := orphans.wait(key):
            orphans.greet(worker)


def _line(asks: socket.socket) -> bytes:
    """The next line, with what has come after it; nothing at the end."""
    line = b""
    while b"\n" not in line:
        got = _heard(asks)
        if not got:
            return b""
        line += got
        if line.lstrip(LEAVE + END).startswith(QUIT):
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
    answer, open_ = b"", True
    while open_:
        if LEAVE in words:
            with suppress(BrokenPipeError):  # it has just ended
                os.write(lives, LEAVE)
        if END in words or QUIT in words:
            os.kill(child, signal.SIGKILL)
        if QUIT in words:
            sys.exit()
        words = b""
        ready, _, _ = select.select([answers, asks.fileno()], [], [])
        if asks.fileno() in ready:
            words = _heard(asks) or END
        if answers in ready:
            got = os.read(answers, 65_536)
            answer, open_ = (answer + got).lstrip(BEAT), bool(got)
            if got and not answer:
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


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # what is left is no child of the worker, whose children Ray ends with it
    serve(socket.socket(fileno=0), sys.argv[1])
