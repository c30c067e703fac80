"""A TLS handshake with a PostgreSQL server, without a login: its certificate, and whether it takes ours."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.fleet.postgres.connection import Login

_TLS_REQUEST = struct.pack("!II", 8, 80_877_103)
"""Asks for TLS (protocol documentation, SSLRequest)."""
_ALERT_S = 0.3
"""Wait for an alert: with TLS 1.3 the server refuses a client's certificate after the handshake."""


def server_certificate(login: Login, seconds: float = 1.0) -> dict[str, Any]:
    """Return the certificate of the server, as `ssl.SSLSocket.getpeercert`; empty without TLS.

    It blocks for `seconds` per step. Raises OSError, and ssl.SSLError with the alert of a server that refuses
    the client's certificate.
    """
    context = login.tls()
    if context is None:
        return {}
    address = login.address
    with socket.create_connection((address.host, address.port), seconds) as plain:
        plain.settimeout(seconds)
        plain.sendall(_TLS_REQUEST)
        if plain.recv(1) != b"S":
            return {}
        with context.wrap_socket(plain, server_hostname=address.host) as secure:
            secure.settimeout(_ALERT_S)
            with contextlib.suppress(TimeoutError, ssl.SSLEOFError, ConnectionError):
                secure.recv(1)  # nothing comes before a login but an alert
            return dict(secure.getpeercert() or {})
