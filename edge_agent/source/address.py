"""Addresses of sources, as typed after `--source`: kinds, ids, and masking of credentials.

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

SourceKind = Literal["file", "stream", "usb", "csi", "crops"]

_ID_LENGTH = 64
_STREAM_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https"})
_VALID = "a file, rtsp://, rtsps://, http://, https://, /dev/videoN or usb:N, csi:N, crops:FOLDER"
# `user:password@` up to the last @ of the authority. Spaces and quotes end a URL inside a longer text.
_USERINFO = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s\"'<>/?#]*@", re.IGNORECASE)
# A password with an unquoted slash, `rtsp://user:pa/ss@host/`: the text after the colon is no port number.
_SLASHED = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s\"'<>/?#@:]+:(?!\d+(?:[/?#]|$))[^\s\"'<>]*@", re.IGNORECASE
)
# Cameras with the login in the query: `?user=admin&password=secret`, or a token.
_QUERY = re.compile(
    r"(?P<key>[?&;](?:user|usr|username|login|pass|passwd|password|pwd|token|key|apikey|api_key|secret|auth)=)"
    r"[^\s\"'<>&;#]+",
    re.IGNORECASE,
)


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
    """Make an id from an address, without its credentials; a number makes it differ from those in `taken`.

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


def redact_url(text: str) -> str:
    """Mask the credentials of every URL in `text`: `rtsp://user:pw@host/1` becomes `rtsp://***@host/1`.

    `text` is a URL or a longer message. Of a malformed URL, too much is masked rather than too little.
    """
    text = _SLASHED.sub(r"\g<scheme>***@", text)
    text = _USERINFO.sub(r"\g<scheme>***@", text)
    return _QUERY.sub(r"\g<key>***", text)
