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
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

WAIT_S = 60.0  # for another worker, once the last one is gone
LOOK_S = 0.25  # between two looks at who has gone
QUIT = b"q"  # to a server: nobody needs it any more
OUTPUT = [1, 2]  # descriptors that are handed over: where a worker's words go, those of who trains for it go too
NAMED = sys.platform == "linux"


@contextmanager
def kept(name: str, module: str) -> Iterator[None]:
    """For as long as a command runs: workers that it will start find all imported, or nearly so."""
    connection = None
    if NAMED:
        with suppress(OSError, subprocess.SubprocessError):  # workers try again, and say what is wrong
            connection = _reach_or_begin(name, module)
    try:
        yield
    finally:
        if connection:
            with connection, suppress(OSError):
                connection.sendall(QUIT)


def connect(name: str, module: str) -> socket.socket:
    """The connection to a server, which says the number of its process, and a line's end, as soon as it has imported.

    name     of the command, not to be guessed
    module   as a program it calls `keep`
    """
    try:
        connection = _reach_or_begin(name, module) if NAMED else _begin_own(module)
    except OSError:  # where names of sockets are forbidden, or another user has this one
        connection = _begin_own(module)
    with suppress(ConnectionError):  # it has just ended: no number comes
        socket.send_fds(connection, [b"."], OUTPUT)
    return connection


def environment() -> dict[str, str]:
    """This process's, its modules included: Ray brings a job's own."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _reach_or_begin(name: str, module: str) -> socket.socket:
    files = os.stat("/proc/self/ns/mnt").st_ino  # containers may share a network, but not these
    address = f"\0bigmodel-{name}-{files}"
    while True:
        with suppress(ConnectionRefusedError):
            return _reach(address)
        with socket.socket(socket.AF_UNIX) as listens:
            try:
                listens.bind(address)
            except OSError as e:
                if e.errno == errno.EADDRINUSE:  # another worker was quicker
                    continue
                raise
            listens.listen(socket.SOMAXCONN)  # before it has imported
            _begin(module, listens)


def _begin_own(module: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        _begin(module, theirs)
    return ours


def _begin(module: str, its: socket.socket) -> None:
    subprocess.run(
        [sys.executable, "-P", "-m", module],
        stdin=its.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
        check=True,
    )


def _reach(address: str) -> socket.socket:
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
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    if user != os.getuid():
        raise PermissionError(f"user {user} has a socket that is this command's")


# ---- the process itself


def keep(serve: Callable[[socket.socket], None]) -> None:
    """Fork a server for each connection, until all are gone and the last one was told to end, or none has come for a
    while. Standard input is the socket that listens, or the only connection there is."""
    given = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        _serve(given, serve)
    num_servers, since, told = 0, time.monotonic(), False
    while num_servers or not (told or time.monotonic() - since > WAIT_S):
        if select.select([given], [], [], LOOK_S)[0]:
            connection = given.accept()[0]
            if not os.fork():
                given.close()
                _serve(connection, serve)
            connection.close()
            num_servers += 1
        while num_servers:
            server, status = os.waitpid(-1, os.WNOHANG)
            if not server:
                break
            num_servers, since, told = num_servers - 1, time.monotonic(), status == 0


def _serve(connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """In the process of a server: it ends here, with 0 if it was told to."""
    code = 1
    try:
        if NAMED:
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
