"""Damaged files of the outbox: set them aside, read what can be read, delete them; and change the key."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from edge_agent.core.encryption import key_check, rewrite
from edge_agent.core.sqlite import SIDE_FILES, database_errors, is_damage, remove_database
from edge_agent.deliver.database import Damaged, OutboxDatabase, Row
from edge_agent.deliver.marks import Marks

__all__ = ["indicates_damage", "marks_path", "move_aside", "rekey", "remove_damaged", "salvage"]

KEPT_DAMAGED = 3
"""Damaged files that are kept for inspection; the oldest are deleted."""


def indicates_damage(problem: Exception) -> bool:
    """Return whether an error means that the file is damaged."""
    return isinstance(problem, Damaged) or is_damage(problem)


def marks_path(path: Path) -> Path:
    """Return the path of the marks of an outbox."""
    return path.with_name(path.name + ".marks")


def _damaged_files(path: Path) -> list[Path]:
    """Files of the outbox of this path that were set aside, the oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(one for one in found if not one.name.endswith(SIDE_FILES))


def remove_damaged(path: Path) -> None:
    """Delete all files that were set aside."""
    for damaged in _damaged_files(path):
        remove_database(damaged)


def move_aside(path: Path) -> Path:
    """Rename the database and its side files; return the new path."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", *SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    for old in _damaged_files(path)[:-KEPT_DAMAGED]:
        remove_database(old)
    return aside


def salvage(database: OutboxDatabase) -> list[Row]:
    """Return the complete rows of all files that were set aside, in ascending order.

    Each file is read from both ends up to the damage.
    """
    saved: dict[int, Row] = {}
    for damaged in _damaged_files(database.path):
        for order in ("ASC", "DESC"):
            with (
                contextlib.suppress(*database_errors()),
                contextlib.closing(database.connect(damaged)) as connection,
            ):
                query = f"SELECT seq, topic, body, created FROM event ORDER BY seq {order}"  # noqa: S608
                rows = (Row(*values) for values in connection.execute(query))
                saved.update((row.seq, row) for row in rows if _is_complete(row))
    return [row for _, row in sorted(saved.items())]


def _is_complete(row: Row) -> bool:
    """Whether the body of a row from a damaged file is a JSON object."""
    try:
        return isinstance(json.loads(row.body), dict)
    except (ValueError, TypeError):
        return False


def rekey(path: Path, old: bytes | None, new: bytes | None) -> bool:
    """Rewrite the outbox of a stopped agent under another key (None: plain); see `encryption.rewrite`.

    Damaged files that were set aside are deleted, since they have the old key.

    Returns:
        False where it had the new key already.

    Raises:
        ConfigError, StorageError: as in `rewrite`; the file is unchanged.
    """
    done = rewrite(path, old, new)
    marks = Marks(marks_path(path))
    marks.open()
    try:
        marks.key_check = key_check(new)
        marks.write()
        marks.sync()
    finally:
        marks.close()
    remove_damaged(path)
    return done
