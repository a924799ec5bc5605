"""Keys: who may ask an endpoint that others can reach. A file holds them, one a line; a request shows one of them.

As `Authorization: Bearer KEY` (RFC 6750), or as the password of Basic authentication (RFC 7617), by which a browser
opens the page. A replica is given SHA-256 digests, so Ray, its logs and its dashboard never have a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from bigmodel.errors import ConfigError
from serve_app.refusal import Refusal

AUTO, NONE = "auto", "none"
SHORTEST = 16
"""Characters of a key: digests of shorter ones could be guessed."""

WANTED = "This endpoint asks for a key: send the header Authorization: Bearer KEY."
UNKNOWN = "The key in the header Authorization is none of this endpoint's."
SCHEMES = [(b"www-authenticate", scheme + b' realm="bigmodel"') for scheme in (b"Bearer", b"Basic")]


def made() -> Path:
    """The user's own key file, written with a new key if it is not there, readable for the user alone. ConfigError if
    it cannot be."""
    path = Path("~/.bigmodel/keys").expanduser()
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError), open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name a file of keys with --key-file") from None
    return path


def digests(key_file: str) -> list[str]:
    """SHA-256 of each key of a file; [] for `none`. Blank lines and those that begin with # are no keys.

    ConfigError where the file cannot be read or holds no key, or a line that cannot be one.
    """
    if key_file in (AUTO, NONE):
        return []
    try:
        lines = Path(key_file).read_text("ascii").splitlines()
    except OSError as error:
        raise ConfigError(f"key_file {key_file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"key_file {key_file}: a key is of visible ASCII characters") from None
    keys = {number: line.strip() for number, line in enumerate(lines, 1)}
    keys = {number: key for number, key in keys.items() if key and not key.startswith("#")}
    for number, key in keys.items():
        if len(key) < SHORTEST or not (key.isprintable() and " " not in key):
            raise ConfigError(
                f"key_file {key_file}, line {number}: a key has at least {SHORTEST} visible characters and no blank. "
                "A new one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    if not keys:
        raise ConfigError(f"key_file {key_file} holds no key: one a line, {SHORTEST} characters at least")
    return sorted({_digest(key.encode()) for key in keys.values()})


def refuse_strangers(headers: Iterable[tuple[bytes, bytes]], known: Sequence[str]) -> None:
    """Refusal with status 401 where no header shows a known key."""
    shown = [value for name, value in headers if name == b"authorization"]
    if not shown:
        raise Refusal(401, "no_key", WANTED, SCHEMES)
    found = [_digest(key) for value in shown if (key := _key(value))]
    if not any([hmac.compare_digest(one, other) for one in found for other in known]):  # all: none is told by the time
        raise Refusal(401, "unknown_key", UNKNOWN, SCHEMES)


def _key(value: bytes) -> bytes:
    scheme, _, rest = value.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            pass
    return b""


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def is_undecided(key_file: str, host: str) -> bool:
    """Whether others reach a host, and nothing was said of keys."""
    return key_file == AUTO and not is_private(host)


def is_private(host: str) -> bool:
    """Whether nobody but this machine reaches what listens on a host, by name or address. "" is every interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)
