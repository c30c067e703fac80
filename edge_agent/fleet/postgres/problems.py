"""What the errors of PostgreSQL, of asyncpg and of TLS mean for a device.

Messages are this program's: those of the server may contain values, and details always do.
"""

from __future__ import annotations

import os
import socket
import ssl

import asyncpg

from edge_agent.fleet.store import StoreDown, StoreRefused

_DOWN = {
    "08": "the connection was lost",
    "53100": "its disk is full: free space there, or enlarge it",
    "53200": "it has no memory left",
    "53300": "it has no connection left: raise max_connections there, or put PgBouncer before it",
    "53": "it lacks resources",
    "57014": "it took too long and was cancelled",
    "57P01": "it shuts down, or an administrator ended the connection",
    "57P02": "it crashed and restarts",
    "57P03": "it starts, or shuts down",
    "57P05": "it ended the idle connection",
    "25P03": "it ended the connection, since this device was silent inside a change",
    "25P04": "it took too long and was cancelled",
    "25006": "it is read-only: a standby, or default_transaction_read_only is on",
    "40": "others changed the same at the same time",
    "55P03": "another device kept the site locked for too long",
    "58": "it cannot read or write its files; see its log",
    "XX": "it has an internal error; see its log",
}
"""SQLSTATE or its class: what passes, or what the administrator of the server mends."""

_REFUSED = {
    **dict.fromkeys(
        ("26000", "42P05"),
        "a connection pooler before it does not keep prepared statements: use PgBouncer 1.21 or later with"
        " max_prepared_statements",
    ),
    "28P01": "the password of the role is wrong: write the right one to the credential file fleet__password",
    "28000": "it does not admit this role from here: it left the fleet, its certificate is not that of the"
    " role, or pg_hba.conf has no line for it",
    "3D000": "it has no such database: correct fleet.store, or create it and run `edge-agent fleet init`",
    "3F000": "it has no tables of a fleet: run `edge-agent fleet init` as administrator",
    "42501": "the role lacks rights: run `edge-agent fleet join` for this device as administrator",
    "42P01": "it lacks tables of the fleet: run `edge-agent fleet init` as administrator",
    "42704": "the database lacks the extension `vector` (pgvector): run `edge-agent fleet init` as its"
    " administrator",
    "42": "its tables are not those of this program: run `edge-agent fleet init` as administrator",
    "22": "it refuses a value of this device",
    "23": "it refuses a value of this device",
    "54": "a change is larger than it accepts",
    "0A": "it lacks a function: PostgreSQL 14 or later with pgvector 0.8 or later is needed",
    "58P01": "it cannot load pgvector: install the package of pgvector for its version of PostgreSQL",
}
"""SQLSTATE or its class: what stays until somebody changes something."""

_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted: fleet.ca_file must hold the authority that"
    " signed it, it must be valid now, and name the host in fleet.store",
    "UNKNOWN_CA": "it does not trust the certificate of this device: fleet.cert_file must be signed by its"
    " authority (ssl_ca_file there)",
    "CERTIFICATE_EXPIRED": "the certificate of this device has expired: renew fleet.cert_file",
    "CERTIFICATE_REQUIRED": "it wants a certificate of this device: set fleet.cert_file and fleet.key_file",
    "CERTIFICATE_REVOKED": "the certificate of this device is revoked",
}


def problem_of(error: Exception, where: str) -> StoreDown | StoreRefused | None:
    """Return what an error means; None: nothing that is known here, a fault of this program.

    Args:
        error: what was raised while the store was used.
        where: database and host.
    """
    start = f"fleet store {where}: "
    if isinstance(error, (StoreDown, StoreRefused)):
        return error
    tls = _tls_error(error)
    if tls is not None:
        return _of_tls(tls, start)
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None:
        return _of_state(error.sqlstate, start)
    return _of_network(error, start)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the error of TLS that caused another one: an alert of the server ends the connection."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _of_network(error: Exception, start: str) -> StoreDown | StoreRefused | None:
    if isinstance(error, ConnectionError) and "SSL upgrade" in str(error):
        return StoreRefused(f"{start}it does not offer TLS: set ssl = on there, with a certificate")
    if isinstance(error, TimeoutError):
        return StoreDown(f"{start}it did not answer in time")
    if isinstance(error, OSError):
        return StoreDown(f"{start}it cannot be reached: {_reason(error)}")
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return StoreDown(f"{start}the connection was lost")
    return None


def _reason(error: OSError) -> str:
    """Return why no connection came about; the texts of asyncio repeat addresses."""
    if isinstance(error, socket.gaierror):
        return f"the name of the host is not known here ({error.strerror})"
    return os.strerror(error.errno) if error.errno else "no address of the host takes a connection"


def _of_state(state: str, start: str) -> StoreDown | StoreRefused:
    for key in (state, state[:2]):
        if key in _DOWN:
            return StoreDown(f"{start}{_DOWN[key]} (SQLSTATE {state})")
        if key in _REFUSED:
            return StoreRefused(f"{start}{_REFUSED[key]} (SQLSTATE {state})")
    return StoreDown(f"{start}it reported SQLSTATE {state}; see its log")


def _of_tls(error: ssl.SSLError, start: str) -> StoreDown | StoreRefused:
    reason = error.reason or type(error).__name__
    for key, text in _REASONS.items():
        if key in reason:
            return StoreRefused(start + text)
    return StoreDown(f"{start}TLS failed: {reason}; compare fleet.ca_file, cert_file and key_file")
