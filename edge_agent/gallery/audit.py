"""The audit file: one JSON line for each change of the gallery, without personal data.

A line contains the time, the action, its origin (`command line`, `mqtt`, `agent`, or `page: USER` with the
login name of the operator) and numbers of rows; never the name of a person, an identity or an embedding.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from edge_agent.core.errors import StorageError
from edge_agent.core.files import open_to_write

AUDIT_FILE = "audit.jsonl"


def record(state: Path, action: str, by: str, **counts: int) -> None:
    """Append a line to the audit file in the state folder, and wait until it is on the disk."""
    line = {"time": round(time.time(), 3), "action": action, "by": by, **counts}
    try:
        descriptor = open_to_write(state / AUDIT_FILE, os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # earlier versions and copies left it readable
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise StorageError(f"{state / AUDIT_FILE} cannot be written: {problem.strerror}") from problem
