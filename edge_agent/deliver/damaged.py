"""Damaged files of an outbox: set aside, kept for inspection, and read for the rows that are whole."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

from edge_agent.core import sqlite
from edge_agent.core.sqlite import SIDE_FILES, database_errors, is_damage, remove_database
from edge_agent.deliver.rows import Row

KEPT_DAMAGED = 3
"""Damaged files that are kept for inspection; the oldest are deleted."""


class Damaged(sqlite3.DatabaseError):
    """A check of the database found damage."""


def indicates_damage(problem: Exception) -> bool:
    """Return whether an error means that the file is damaged."""
    return isinstance(problem, Damaged) or is_damage(problem)


def set_aside(path: Path) -> Path:
    """Rename the files of a damaged database, and return the new path; delete the oldest of earlier ones."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", *SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    for old in _damaged_files(path)[:-KEPT_DAMAGED]:
        remove_database(old)
    return aside


def salvage(path: Path, key: bytes | None, timeout_s: float) -> list[Row]:
    """Return the complete rows of all files that were set aside, in ascending order.

    Each file is read from both ends up to the damage.
    """
    saved: dict[int, Row] = {}
    for damaged in _damaged_files(path):
        for order in ("ASC", "DESC"):
            with (
                contextlib.suppress(*database_errors()),
                contextlib.closing(sqlite.connect(damaged, key=key, timeout_s=timeout_s)) as connection,
            ):
                query = f"SELECT seq, topic, body, created FROM event ORDER BY seq {order}"  # noqa: S608
                rows = (Row(*values) for values in connection.execute(query))
                saved.update((row.seq, row) for row in rows if _is_complete(row))
    return [row for _, row in sorted(saved.items())]


def remove_damaged(path: Path) -> None:
    """Delete all files of an outbox that were set aside."""
    for damaged in _damaged_files(path):
        remove_database(damaged)


def _damaged_files(path: Path) -> list[Path]:
    """Files of the outbox of this path that were set aside, the oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(one for one in found if not one.name.endswith(SIDE_FILES))


def _is_complete(row: Row) -> bool:
    """Whether a row of a damaged file has values of the right types, and a JSON object as its body."""
    try:
        return (
            isinstance(row.topic, str)
            and isinstance(row.body, bytes)
            and isinstance(row.created, float)
            and isinstance(json.loads(row.body), dict)
        )
    except (ValueError, RecursionError):
        return False
