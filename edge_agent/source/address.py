"""Addresses of sources, as typed after `--source`: kinds and ids. `core.redaction` masks them.

====================================  =============================================
address                                kind
====================================  =============================================
`clip.mp4`, `file:///data/clip.mp4`    `file`
`rtsp://`, `rtsps://`, `http(s)://`    `stream`
`/dev/video0`, `usb:0`                 `usb`
`csi:0`                                `csi`
`crops:FOLDER`                         `crops`
`deepstream:SENSOR`                    `deepstream`
====================================  =============================================
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from edge_agent.core.errors import SourceError
from edge_agent.core.redaction import may_hide_login, parse_address, public_source

SourceKind = Literal["file", "stream", "usb", "csi", "crops", "deepstream"]

_ID_LENGTH = 64
_MESSAGES = "deepstream:"
_STREAM = re.compile(r"(?:rtsps?|https?)://[^/?#]", re.IGNORECASE)
_REMOTE = re.compile(r"//|:[^/]*@")
"""A folder with this may be an address with a login, as in `smb://user:password@host/share`."""
FORMS: Mapping[SourceKind, str] = {
    "file": "a file",
    "stream": "rtsp://, rtsps://, http://, https://",
    "usb": "/dev/videoN or usb:N",
    "csi": "csi:N",
    "crops": "crops:FOLDER",
    "deepstream": "deepstream:SENSOR",
}
"""How the address of each kind is written, for messages."""
_VALID = ", ".join(FORMS.values())


def source_kind(address: str) -> SourceKind:
    """Return the kind of source that an address names.

    Raises:
        SourceError: unknown kind; the message names the known ones.
    """
    if re.fullmatch(r"usb:\d+|/dev/.+", address) and not (may_hide_login(address) and not _exists(address)):
        return "usb"
    if re.fullmatch(r"csi(:\d+)?", address):
        return "csi"
    if address.startswith("crops:") and len(address) > len("crops:"):
        return "crops"
    if address.startswith(_MESSAGES) and len(address) > len(_MESSAGES):
        return "deepstream"
    if not address:
        raise SourceError(f"an empty source; expected {_VALID}")
    if _STREAM.match(address):
        return "stream"
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", address)
    doubtful = may_hide_login(address) or (scheme is not None and scheme[1].lower() != "file")
    if doubtful and not _exists(address):  # a file may have a name like `a:b.mp4`
        raise SourceError(f"unknown kind of source {public_source(address)!r}; expected {_VALID}")
    return "file"


def no_pictures(addresses: Iterable[str]) -> bool:
    """Whether all sources, one at least, are read without pictures; errors as in `source_kind`."""
    return {source_kind(address) for address in addresses} == {"deepstream"}


def source_id(address: str, *, taken: Collection[str] = ()) -> str:
    """Make an id from what may be shown of an address; a number makes it differ from those in `taken`.

    Raises:
        SourceError: see `source_kind`.
    """
    kind = source_kind(address)
    if kind == "stream":
        shown = parse_address(address)
        parts = [] if shown is None or shown.host is None else [shown.host, *shown.harmless_path]
        text = "-".join(parts)
    elif kind == "usb":
        text = address.replace("usb:", "usb").removeprefix("/dev/")
    elif kind == "csi":
        text = f"csi{device_number(address)}"
    elif kind == "deepstream":
        text = sensor_name(address)
    elif kind == "crops":
        folder = address.removeprefix("crops:")
        doubtful = may_hide_login(folder) and not _exists(folder)
        text = "" if doubtful or _REMOTE.search(folder) else local_path(address).absolute().name
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


def sensor_name(address: str) -> str:
    """Return the SENSOR of `deepstream:SENSOR`."""
    return address.removeprefix(_MESSAGES)


def device_number(address: str) -> int:
    """Return the number of `usb:N` or `csi:N`; 0 without one."""
    return int(address.rpartition(":")[2]) if ":" in address else 0


def _exists(address: str) -> bool:
    path = local_path(address) if address.lower().startswith("file:") else Path(address)
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return False
