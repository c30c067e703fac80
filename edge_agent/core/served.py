"""How a network on an inference server is named: the one form behind settings, help and messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, get_args

from edge_agent.core.host import is_loopback
from edge_agent.core.setting_types import Backend

FORM = "triton:HOST:PORT/MODEL"
"""`tritons:` is the same with TLS; `/VERSION` may follow the model."""

_FORM = re.compile(
    r"(?P<scheme>tritons?):(?P<host>\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>\d{1,5})"
    r"/(?P<model>[\w.+-]{1,128})(?:/(?P<version>\d{1,9}))?",
    re.ASCII,
)


class ServedModel(NamedTuple):
    """A model on a server that speaks KServe v2 over gRPC; `version` "" is what the server chooses."""

    host: str
    port: int
    model: str
    version: str = ""
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.model} on {self.authority}"

    @property
    def authority(self) -> str:
        """`HOST:PORT`."""
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        return is_loopback(self.host)


def is_served(backend: str) -> bool:
    """Return whether a backend runs its network on a server."""
    return backend.startswith(("triton:", "tritons:"))


def parse_served(text: str) -> ServedModel:
    """Read `FORM`; ValueError, which does not repeat the text, since it may hold a login."""
    found = _FORM.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise ValueError(
            f"not a model on a server: write {FORM}, {FORM.replace('triton', 'tritons', 1)} for TLS; gRPC's"
            " port is 8001 by default; a token is set by engine.triton_token"
        )
    version = found["version"] or ""
    return ServedModel(
        found["host"], int(found["port"]), found["model"], version, found["scheme"] == "tritons"
    )


def checked_backend(value: object) -> object:
    """Return a value of `engine.backend`; ValueError, which lists all forms, where it is in none."""
    text = str(value)
    if is_served(text):
        parse_served(text)
    elif text not in get_args(Backend) and not text.partition("simulated:")[2]:
        known = ", ".join(get_args(Backend))
        raise ValueError(f"no such backend: choose {known}, {FORM} or simulated:TABLE")
    return value


def require_tls(backend: str, files: Iterable[object], *, token: bool) -> None:
    """Raise ValueError where PEM `files` (CA, certificate, key; None: not set) or a token need TLS.

    A token may go to this machine in clear.
    """
    if not is_served(backend):
        return
    server, (authority, certificate, key) = parse_served(backend), files
    if not server.tls and any(file is not None for file in (authority, certificate, key)):
        raise ValueError("certificates need TLS: write tritons:HOST:PORT/MODEL as backend")
    if not server.tls and token and not server.is_loopback:
        raise ValueError("triton_token would be sent in clear: write tritons:HOST:PORT/MODEL as backend")
    if (certificate is None) != (key is None):
        raise ValueError("triton_cert_file and triton_key_file go together: set both or neither")
