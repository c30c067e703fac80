"""Hiding of logins in this process's arguments, which `ps`, /proc and messages about wrong usage show."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from edge_agent.core.redaction import MASK, public_address, redact

_ARG_START, _ARG_END = 45, 46
"""Fields 48 and 49 of /proc/PID/stat (proc(5)), counted after the name in brackets."""


def hide_logins() -> None:
    """Overwrite the logins of addresses among this process's arguments, on Linux; elsewhere do nothing.

    Python keeps its own copy. Logins are visible until this runs, some tenths of a second.
    """
    try:
        shown = Path("/proc/self/cmdline").read_bytes()
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    except (OSError, IndexError, ValueError):
        return
    hidden = b"\0".join(_masked(argument) for argument in shown.split(b"\0"))
    if hidden != shown and end - start == len(shown) and ctypes.string_at(start, len(shown)) == shown:
        ctypes.memmove(start, hidden, len(hidden))


def mask_arguments(message: str) -> str:
    """Mask the logins of this process's arguments in a message that repeats some of them."""
    logins = [one for one in sys.argv[1:] if re.search("://|:.*@", one)]
    return redact(message, [*logins, *(str(Path(one)) for one in logins)])  # a path has no double slash


def _masked(argument: bytes) -> bytes:
    """Mask a login; the result has the length of the argument."""
    plain = os.fsdecode(argument)
    option, equals, value = plain.partition("=") if plain.startswith("--") else ("", "", plain)
    masked = public_address(value) if "://" in value else MASK if "@" in value else value
    if masked == value:
        return argument
    return os.fsencode(f"{option}{equals}{masked}")[: len(argument)].ljust(len(argument), b"*")
