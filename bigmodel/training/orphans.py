"""Servers of processes whose worker has died: each waits a while for the next worker of its run, and spares it imports.

They meet at a socket in a folder that is this user's alone.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

WAIT_S = 60.0  # for Ray to notice a loss and to start another worker
GREET_S = 2.0  # for a server that waits to say so


def key(run: str, paths: str) -> str:
    """Of servers that are as good as one begun now: the same run, the same code."""
    return hashlib.sha256("\0".join([sys.executable, paths, run]).encode()).hexdigest()[:16]


def wait(name: str) -> socket.socket | None:
    """In a server with that key: the connection of the next worker; None if none comes."""
    folder = _folder()
    if folder is None:
        return None
    place = folder / f"{name}-{os.getpid()}"
    with suppress(OSError), socket.socket(socket.AF_UNIX) as listens:
        try:
            listens.bind(str(place))
            listens.listen()
            listens.settimeout(WAIT_S)
            return listens.accept()[0]
        finally:
            place.unlink(missing_ok=True)
    return None


def greet(worker: socket.socket) -> None:
    with suppress(ConnectionError):
        worker.sendall(b"%d\n" % os.getpid())


def greeted(server: socket.socket) -> int:
    """The number of the server's process."""
    told = b""
    while not told.endswith(b"\n"):
        got = server.recv(1)
        if not got:
            raise ConnectionResetError
        told += got
    return int(told)


def adopt(name: str) -> tuple[socket.socket, int] | None:
    """In a worker: the connection to a server that waits, and the number of its process."""
    for place in _places(name):
        server = socket.socket(socket.AF_UNIX)
        try:
            server.settimeout(GREET_S)
            server.connect(str(place))
            pid = greeted(server)
        except OSError:  # it has just ended or found another worker, was killed, or stands still
            server.close()
            continue
        server.settimeout(None)
        return server, pid
    return None


def _places(name: str) -> Iterator[Path]:
    folder = _folder()
    if folder is not None:
        yield from sorted(folder.glob(f"{name}-*"))


def _folder() -> Path | None:
    """None if somebody else could be there."""
    folder = Path(tempfile.gettempdir()) / f"bigmodel-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return folder if own else None
