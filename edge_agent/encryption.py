"""Databases that may be encrypted: sqlite3, or SQLCipher with the same interface when there is a key.

The key is 32 bytes, written as 64 hexadecimal digits (`openssl rand -hex 32`) in a credential file. It
encrypts what stands on the disk; while the agent runs, its memory holds everything in the clear.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError

__all__ = ["KEY_BYTES", "connect", "database_errors", "key_check", "parse_key"]

KEY_BYTES = 32


def parse_key(text: str) -> bytes:
    """The key that a credential holds; its text appears in no message.

    Raises:
        ConfigError: not 64 hexadecimal digits.
    """
    hint = f"make one with `openssl rand -hex {KEY_BYTES}`"
    try:
        key = bytes.fromhex(text.strip())
    except ValueError as problem:
        raise ConfigError(f"the database key is not hexadecimal; {hint}") from problem
    if len(key) != KEY_BYTES:
        raise ConfigError(f"the database key has {len(key)} bytes, it must have {KEY_BYTES}; {hint}")
    return key


def connect(path: Path | str, *, key: bytes | None, **options: Any) -> Any:  # noqa: ANN401 - of either module
    """A connection as `sqlite3.connect` makes it, through SQLCipher when there is a key.

    Raises:
        ConfigError: a key is given, and SQLCipher is not installed.
        sqlite3.Error, or SQLCipher's (see `database_errors`): as from `sqlite3.connect`.
    """
    if key is None:
        return sqlite3.connect(str(path), **options)
    connection = _sqlcipher().connect(str(path), **options)
    # A raw key needs no derivation: opening takes milliseconds, and 32 random bytes need no stretching.
    connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
    return connection


def _sqlcipher() -> Any:  # noqa: ANN401 - a module without types
    try:
        from sqlcipher3 import dbapi2
    except ImportError as problem:
        raise ConfigError(
            "an encrypted database needs SQLCipher: install edge-agent with the extra `encrypt`"
        ) from problem
    return dbapi2


def database_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What a connection may raise, and `more`; SQLCipher's errors are not those of sqlite3."""
    loaded = sys.modules.get("sqlcipher3.dbapi2")
    return (sqlite3.Error, *more) if loaded is None else (sqlite3.Error, loaded.Error, *more)


def key_check(key: bytes | None) -> int:
    """A number below 2**64 that tells keys apart and tells nothing about them; 0 without a key."""
    return 0 if key is None else int.from_bytes(hashlib.sha256(b"edge-agent" + key).digest()[:8], "little")
