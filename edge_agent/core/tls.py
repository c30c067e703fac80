"""TLS connections to a broker or a store."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(ca_file: Path | str | None) -> ssl.SSLContext:
    """Return a context of TLS 1.2 or newer that checks certificate and host name of the server.

    `ca_file` holds the authorities; None: those of the system. OSError (SSLError) where it cannot be used.
    """
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # From Python 3.13 on, the default refuses certificates without extensions that private authorities often
    # leave out (authority key identifier, key usage). A newer Python must not cut off a device.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
