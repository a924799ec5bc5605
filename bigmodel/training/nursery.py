"""One process for all workers of a command on a machine: it has imported what they need, and forks a server for each.

It outlives them by a minute. So importing, which takes seconds, is done once a machine, and not again where Ray starts
workers anew. Who wants a server connects to a socket that has a name and no file, which Linux alone has: elsewhere
each worker has a process of its own. Nobody but this user is let in, or believed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

WAIT_S = 60.0  # for another worker, once the last one is gone
LOOK_S = 0.25  # between two looks at who has gone
QUIT = b"q"  # to a server: nobody needs it any more
OUTPUT = [1, 2]  # descriptors that are handed over: where a worker's words go, those of who trains for it go too
NAMED = sys.platform == "linux"


class Kept:
    """For as long as a command runs: workers that it will start find all imported, or nearly so."""

    def __init__(self, name: str, module: str) -> None:
        self._connection: socket.socket | None = None
        if NAMED:
            with suppress(OSError):
                self._connection = _connected(name, module)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection:
            with self._connection, suppress(OSError):
                self._connection.sendall(QUIT)


def connect(name: str, module: str) -> socket.socket:
    """The connection to a server, which says the number of its process, and a line's end, as soon as it has imported.

    name     of the command, not to be guessed
    module   as a program it calls `keep`
    """
    connection = _connected(name, module)
    socket.send_fds(connection, [b"."], OUTPUT)
    return connection


def environment() -> dict[str, str]:
    """This process's, its modules included: Ray brings a job's own."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _connected(name: str, module: str) -> socket.socket:
    if not NAMED:
        with tempfile.TemporaryDirectory(prefix="bigmodel-") as folder:
            _begun(f"{folder}/socket", module)
            return _reached(f"{folder}/socket")
    files = os.stat("/proc/self/ns/mnt").st_ino  # containers may share a network, but not these
    address = f"\0bigmodel-{name}-{files}"
    while True:
        with suppress(ConnectionRefusedError):
            return _reached(address)
        try:
            _begun(address, module)
        except OSError as e:
            if e.errno != errno.EADDRINUSE:  # another worker was quicker
                raise


def _reached(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: socket.socket) -> None:
    """PermissionError if it is another user at the other end."""
    if NAMED:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        if user != os.getuid():
            raise PermissionError(f"user {user} has a socket that is this command's")


def _begun(address: str, module: str) -> None:
    """It listens before it has imported."""
    with socket.socket(socket.AF_UNIX) as listens:
        listens.bind(address)
        listens.listen(socket.SOMAXCONN)
        subprocess.run(
            [sys.executable, "-P", "-m", module],
            stdin=listens.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
            check=True,
        )


# ---- the process itself


def keep(serve: Callable[[socket.socket], None]) -> None:
    """Fork a server for each connection, until all are gone and one of them was told to end, or none has come for a
    while. Standard input is the socket that listens."""
    listens = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    servers: set[int] = set()
    since, told = time.monotonic(), False
    while servers or not (told or time.monotonic() - since > WAIT_S):
        if select.select([listens], [], [], LOOK_S)[0]:
            connection = listens.accept()[0]
            server = os.fork()
            if not server:
                listens.close()
                _serve(connection, serve)
            connection.close()
            servers.add(server)
            told = False
        while servers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            server, status = ended
            servers.discard(server)
            since, told = time.monotonic(), told or status == 0


def _serve(connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """In the server that was forked: it ends here, with 0 if it was told to."""
    code = 1
    try:
        _check(connection)
        word, output, _, _ = socket.recv_fds(connection, 1, len(OUTPUT))
        if word == QUIT:
            sys.exit()
        for own, theirs in zip(OUTPUT, output, strict=True):
            os.dup2(theirs, own)
            os.close(theirs)
        serve(connection)
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
