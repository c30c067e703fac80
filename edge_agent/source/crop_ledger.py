"""Record of the crops that were acknowledged or refused, in SQLite."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge_agent.core import sqlite
from edge_agent.source.crop_scan import CropFile

__all__ = ["CropLedger"]

_NAMES_PER_QUERY = 500


class CropLedger:
    """Which crops of a folder were acknowledged or refused. Any thread may call at any time.

    Args:
        path: SQLite file, made by `opened`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._shared: sqlite3.Connection | None = None
        self._errors = sqlite.Description(
            path,
            damaged="remove it (the crops still in the folder will be read again)",
            role="the record of crops already read,",
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep one connection for all calls inside the block; create the table if needed.

        Calls after it open a connection of their own, which is slower; there are few of them.

        Raises:
            StorageError: the file cannot be used.
        """
        with self._errors.translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = self._connect()
        with contextlib.closing(database):
            with self._errors.translated():
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS crops (name TEXT PRIMARY KEY, size INTEGER NOT NULL, "
                    "modified_ns INTEGER NOT NULL, outcome TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
                )
            with self._lock:
                self._shared = database
            try:
                yield
            finally:
                with self._lock:  # no call is using it
                    self._shared = None

    def unknown(self, files: Iterable[CropFile]) -> Iterator[CropFile]:
        """Those of `files` that were neither acknowledged nor refused."""
        rest = iter(files)
        while chunk := list(itertools.islice(rest, _NAMES_PER_QUERY)):
            marks = ",".join("?" * len(chunk))
            with self._connected() as database:
                rows = database.execute(
                    f"SELECT name, size, modified_ns FROM crops WHERE name IN ({marks})",  # noqa: S608 - marks
                    [file.name for file in chunk],
                ).fetchall()
            known = {name: (size, modified_ns) for name, size, modified_ns in rows}
            yield from (file for file in chunk if known.get(file.name) != (file.size, file.modified_ns))

    def record(self, files: Iterable[CropFile], outcome: str) -> None:
        """Store the outcome of `files` in one transaction."""
        now = time.time()
        rows = [(file.name, file.size, file.modified_ns, outcome, now) for file in files]
        with self._connected() as database, sqlite.transaction(database):
            database.executemany("INSERT OR REPLACE INTO crops VALUES (?, ?, ?, ?, ?)", rows)

    def acknowledged(self) -> list[CropFile]:
        """The crops that were acknowledged."""
        with self._connected() as database:
            rows = database.execute("SELECT modified_ns, name, size FROM crops WHERE outcome = 'read'")
            return [CropFile(*row) for row in rows.fetchall()]

    def forget(self, files: Iterable[CropFile]) -> None:
        """Remove `files` from the record."""
        with self._connected() as database, sqlite.transaction(database):
            database.executemany("DELETE FROM crops WHERE name = ?", [(file.name,) for file in files])

    def prune(self, folder: Path) -> None:
        """Remove the records of files that are no longer in the folder, to bound the size of the record.

        Not where all are gone: a network share that is not mounted looks like that.
        """
        with self._connected() as database:
            database.execute("CREATE TEMP TABLE there (name TEXT PRIMARY KEY) WITHOUT ROWID")
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                database.executemany("INSERT INTO there VALUES (?)", ((entry.name,) for entry in entries))
            query = "SELECT total(name NOT IN (SELECT name FROM there)), count(*) FROM crops"
            [(gone, total)] = database.execute(query).fetchall()
            if 0 < gone < total:
                database.execute("DELETE FROM crops WHERE name NOT IN (SELECT name FROM there)")
            database.execute("DROP TABLE there")

    def _connect(self) -> sqlite3.Connection:
        return sqlite.connect(self.path, pragmas={"synchronous": "NORMAL"})

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors.translated():
            if self._shared is not None:
                yield self._shared
                return
            with contextlib.closing(self._connect()) as own:
                yield own
