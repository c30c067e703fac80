"""What distinguishes this machine from others, and which addresses are its own."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
import socket
from pathlib import Path

_DIGITS = 8
_LONGEST_NAME = 40


def this_host(root: Path = Path("/")) -> str | None:
    """Return a digest of the serial number, else of the machine id: 16 hex digits; None without both.

    The serial number is that of the board, so a card that was copied into another board has another digest.
    The digest may be published, unlike the machine id (machine-id(5)).
    """
    for name in ("proc/device-tree/serial-number", "etc/machine-id"):
        with contextlib.suppress(OSError):
            if text := (root / name).read_bytes().strip(b"\0 \n"):
                return hashlib.sha256(b"edge-agent host|" + text).hexdigest()[:16]
    return None


def default_device(root: Path = Path("/"), name: str | None = None) -> str:
    """Return an id for this machine: its host name (`name`), and the first digits of `this_host`."""
    found = socket.gethostname() if name is None else name
    plain = re.sub(r"[^a-z0-9_-]+", "-", found.split(".")[0].lower()).strip("-_")[:_LONGEST_NAME] or "device"
    digest = this_host(root)
    return plain if digest is None else f"{plain}-{digest[:_DIGITS]}"


def is_loopback(host: str) -> bool:
    """Return whether traffic to a host stays on this machine; an IPv6 address may be in brackets.

    A name that only begins like an address, such as `127.example.org`, is one of another machine.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
