"""Addresses of sources, as typed after `--source`, and the ids made from them.

====================================  =============================================
address                                kind
====================================  =============================================
`clip.mp4`, `file:///data/clip.mp4`    `file`
`rtsp://`, `rtsps://`, `http(s)://`    `stream`
`/dev/video0`, `usb:0`                 `usb`
`csi:0`                                `csi`
`crops:FOLDER`                         `crops`
====================================  =============================================
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from edge_agent.core.errors import SourceError
from edge_agent.source.redact import redact_url

__all__ = ["SourceKind", "device_number", "local_path", "source_id", "source_kind"]

SourceKind = Literal["file", "stream", "usb", "csi", "crops"]

_ID_LENGTH = 64
_STREAM_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https"})
_VALID = "a file, rtsp://, rtsps://, http://, https://, /dev/videoN or usb:N, csi:N, crops:FOLDER"


def source_kind(address: str) -> SourceKind:
    """Return the kind of source that an address names.

    Raises:
        SourceError: unknown kind; the message names the known ones.
    """
    if re.fullmatch(r"usb:\d+|/dev/.+", address):
        return "usb"
    if re.fullmatch(r"csi(:\d+)?", address):
        return "csi"
    if address.startswith("crops:") and len(address) > len("crops:"):
        return "crops"
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", address)
    if scheme is None or scheme[1].lower() == "file":
        if not address:
            raise SourceError(f"an empty source; expected {_VALID}")
        return "file"
    if scheme[1].lower() in _STREAM_SCHEMES and _host(address):
        return "stream"
    if Path(address).exists():  # a file may have a name like `a:b.mp4`
        return "file"
    raise SourceError(f"unknown kind of source {redact_url(address)!r}; expected {_VALID}")


def source_id(address: str, *, taken: Collection[str] = ()) -> str:
    """Make an id from an address, without its credentials.

    Args:
        address: as typed.
        taken: ids in use; a number makes the new one differ.

    Raises:
        SourceError: see `source_kind`.
    """
    kind = source_kind(address)
    # Redacted first: a password with an unquoted slash would otherwise be parsed as a path.
    shown = redact_url(address)
    if kind == "stream":
        text = f"{_host(shown)}-{urlsplit(shown).path}"
    elif kind == "usb":
        text = address.replace("usb:", "usb").removeprefix("/dev/")
    elif kind == "csi":
        text = f"csi{device_number(address)}"
    elif kind == "crops":
        text = local_path(address).absolute().name
    else:
        text = local_path(address).stem
    base = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:_ID_LENGTH].strip("-") or kind
    found, count = base, 1
    while found in taken:
        count += 1
        found = f"{base[: _ID_LENGTH - len(str(count)) - 1]}-{count}"
    return found


def local_path(address: str) -> Path:
    """Return the path of a file, a `file://` URL or a `crops:` folder; `~` is the home folder."""
    address = address.removeprefix("crops:")
    if address.lower().startswith("file:"):
        return Path(unquote(urlsplit(address).path))
    try:
        return Path(address).expanduser()
    except RuntimeError:  # ~unknown
        return Path(address)


def device_number(address: str) -> int:
    """Return the number of `usb:N` or `csi:N`; 0 without one."""
    return int(address.rpartition(":")[2]) if ":" in address else 0


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # e.g. a broken IPv6 address
        return None
