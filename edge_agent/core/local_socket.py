"""Unix sockets in the state folder, and the messages between the agent and the operator's page.

A message is eight bytes, a JSON object, and bytes that belong to it (a picture, or none): the lengths of the
two parts come first, as big-endian 32-bit numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE_SOCKET = "page.sock"
"""Name of the socket through which the page asks the agent; mode 0600."""
LENGTHS = struct.Struct(">II")
LONGEST_JSON = 8 << 20
LONGEST_BYTES = 32 << 20
"""Limits of the two parts of a message."""


class BadMessage(Exception):
    """What came is no message."""


def pack(values: Mapping[str, Any], attached: bytes = b"") -> bytes:
    """Return a message; values that are no JSON become text."""
    text = json.dumps(values, ensure_ascii=False, default=str).encode("utf-8", "replace")
    return LENGTHS.pack(len(text), len(attached)) + text + attached


def lengths(head: bytes) -> tuple[int, int]:
    """Return the lengths of the two parts; BadMessage: one is beyond its limit."""
    text, attached = LENGTHS.unpack(head)
    if text > LONGEST_JSON or attached > LONGEST_BYTES:
        raise BadMessage(f"a message of {text} and {attached} bytes")
    return text, attached


def unpack(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a message; BadMessage: it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("no JSON") from None
    if not isinstance(found, dict):
        raise BadMessage("no JSON object")
    return found


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None at the end of the connection. BadMessage, OSError: it cannot be read."""
    head = _exactly(connection, LENGTHS.size)
    if head is None:
        return None
    text, attached = lengths(head)
    values, rest = _exactly(connection, text), _exactly(connection, attached)
    if values is None or rest is None:
        return None
    return unpack(values), rest


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 16))
        if not part:
            return None
        parts += part
    return bytes(parts)


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the socket that fits into the 108 bytes of `sockaddr_un`, for any length of its path."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen_privately(path: Path) -> socket.socket:
    """Return a unix socket that listens at a path, mode 0600, in place of one that is there; OSError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)  # of an agent that was killed
        os.fchmod(listening.fileno(), 0o600)  # `bind` uses this mode
        with short_name(path) as name:
            listening.bind(name)
    except BaseException:
        listening.close()
        raise
    return listening
