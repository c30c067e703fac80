"""Files of a crop folder: which are complete, when to list them again, and a record of those read."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core import sqlite
from edge_agent.core.errors import InputError
from edge_agent.core.files import native_path
from edge_agent.core.pictures import PICTURE_SUFFIXES
from edge_agent.core.private import private_folder

MAX_LISTED = 4096
"""Crops taken from one scan, oldest first; the others are taken by the next."""

_FULL_SCAN_SECONDS = 60.0
"""Files overwritten in place do not change the folder's modification time: scan after this time."""
_PRUNE_SECONDS = 86_400.0
_CLOCK_TICK_SECONDS = 2.0
"""Coarsest modification time: a file of the same tick as the last scan leaves the folder's time unchanged."""
_NAMES_PER_QUERY = 500
_LARGEST = (1 << 63) - 1
"""Of the numbers that SQLite stores."""


@dataclass(frozen=True, slots=True)
class CropFile:
    """One picture in the folder, as listed by the directory."""

    modified_ns: int
    name: str
    size: int
    is_link: bool = False


def crop_file(entry: os.DirEntry[str]) -> CropFile | None:
    """Return a directory entry that is a picture, or a link with the name of one; None for all others.

    Also None for one that has just vanished. Links are not followed.
    """
    if entry.name.startswith(".") or f".{entry.name.rpartition('.')[2].lower()}" not in PICTURE_SUFFIXES:
        return None
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    return CropFile(modified_ns(status), entry.name, status.st_size, stat.S_ISLNK(status.st_mode))


def modified_ns(status: os.stat_result) -> int:
    """Return the time of modification as a database can store it: after the year 2262, that year."""
    return max(-_LARGEST, min(status.st_mtime_ns, _LARGEST))


def remove_crop(path: Path) -> None:
    """Delete the JSON file of a picture, where there is one, and the picture; OSError where that fails."""
    try:
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError as problem:
        if problem.errno != errno.ENAMETOOLONG:  # ".json" may be one letter more than a name can have
            raise
    path.unlink(missing_ok=True)


class FolderScan:
    """State between two scans of a folder.

    `moment` is a clock without jumps, see `core.clock`. The wall clock may jump, and a file has the time of
    the clock with which it was written. So a file counts as old only where both clocks say so; of all others,
    the time since they were first seen counts.
    """

    def __init__(self, moment: Callable[[], float]) -> None:
        self.unfinished = True
        """Whether crops were left for the next scan."""
        self._moment = moment
        self._modified_ns = -1
        self._scanned = self._pruned = self._noticed = -math.inf
        self._young: dict[str, tuple[CropFile, float]] = {}
        self._young_before: dict[str, tuple[CropFile, float]] = {}
        self._unusable: dict[CropFile, float] = {}

    def due(self, modified_ns: int) -> bool:
        """Whether anything can be new: 100,000 names need not be listed twice a second."""
        stale = time.monotonic() - self._scanned > _FULL_SCAN_SECONDS
        fresh = time.monotonic() - self._noticed < _CLOCK_TICK_SECONDS
        return self.unfinished or fresh or stale or modified_ns != self._modified_ns

    def begin(self, modified_ns: int) -> None:
        """Start a scan of all names."""
        self.unfinished = False
        self._scanned = time.monotonic()
        if modified_ns != self._modified_ns:
            self._modified_ns, self._noticed = modified_ns, self._scanned
        self._young, self._young_before = {}, self._young

    def pruning_due(self) -> bool:
        """Whether a day has passed since the last removal of files that are gone; starts the next day."""
        if time.monotonic() - self._pruned < _PRUNE_SECONDS:
            return False
        self._pruned = time.monotonic()
        return True

    def settled(self, file: CropFile, seconds: float) -> bool:
        """Whether the file has not changed for `seconds`, by its own time or between scans."""
        if self._age(file) >= seconds:
            return True
        # Its time is recent, or in the future because of another clock.
        now = time.monotonic()
        before, since = self._young_before.get(file.name, (None, now))
        if before != file:
            self._young[file.name] = (file, now)
            return False
        if now - since < seconds:
            self._young[file.name] = (file, since)
            return False
        return True

    def out_of_patience(self, file: CropFile, seconds: float) -> bool:
        """Whether a file that is not usable yet has had `seconds` to become so."""
        if self._age(file) >= seconds:
            return True
        if len(self._unusable) > MAX_LISTED:
            self._unusable.clear()  # they wait a little longer
        return time.monotonic() - self._unusable.setdefault(file, time.monotonic()) >= seconds

    def _age(self, file: CropFile) -> float:
        """Return the seconds since its modification; negative where another clock is ahead."""
        return min(time.time(), self._moment()) - file.modified_ns / 1e9


class CropLedger:
    """Which crops of a folder were acknowledged or refused, in the file `path` that `opened` makes.

    Any thread may call at any time.
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
        """Keep a connection for calls inside the block (others open their own); create a missing table.

        Raises:
            StorageError: the file cannot be used.
        """
        with self._errors.translated():
            private_folder(self.path.parent)
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
                    [_key(file.name) for file in chunk],
                ).fetchall()
            known = {name: (size, modified_ns) for name, size, modified_ns in rows}
            yield from (file for file in chunk if known.get(_key(file.name)) != (file.size, file.modified_ns))

    def record(self, files: Iterable[CropFile], outcome: str) -> None:
        """Store the outcome of `files` in one transaction."""
        now = time.time()
        rows = [(_key(file.name), file.size, file.modified_ns, outcome, now) for file in files]
        with self._connected() as database, sqlite.transaction(database):
            database.executemany("INSERT OR REPLACE INTO crops VALUES (?, ?, ?, ?, ?)", rows)

    def acknowledged(self) -> list[CropFile]:
        """The crops that were acknowledged, without names that lead out of a folder."""
        with self._connected() as database:
            rows = database.execute("SELECT modified_ns, name, size FROM crops WHERE outcome = 'read'")
            found = [CropFile(modified_ns, _name(key), size) for modified_ns, key, size in rows.fetchall()]
        return [file for file in found if not set("/\0") & set(file.name)]

    def forget(self, files: Iterable[CropFile]) -> None:
        """Remove `files` from the record."""
        with self._connected() as database:
            with sqlite.transaction(database):
                database.executemany(
                    "DELETE FROM crops WHERE name = ?", [(_key(file.name),) for file in files]
                )
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # it holds copies of the names

    def prune(self, folder: Path) -> None:
        """Remove the records of files that are no longer in the folder, to bound the size of the record.

        Not where all are gone: a network share that is not mounted looks like that.
        """
        with self._connected() as database:
            database.execute("CREATE TEMP TABLE there (name TEXT PRIMARY KEY) WITHOUT ROWID")
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                database.executemany(
                    "INSERT INTO there VALUES (?)", ((_key(entry.name),) for entry in entries)
                )
            query = "SELECT total(name NOT IN (SELECT name FROM there)), count(*) FROM crops"
            [(gone, total)] = database.execute(query).fetchall()
            if 0 < gone < total:
                database.execute("DELETE FROM crops WHERE name NOT IN (SELECT name FROM there)")
            database.execute("DROP TABLE there")

    def _connect(self) -> sqlite3.Connection:
        return sqlite.connect(self.path, pragmas={"synchronous": "NORMAL", "secure_delete": "ON"})

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors.translated():
            if self._shared is not None:
                yield self._shared
                return
            with contextlib.closing(self._connect()) as own:
                yield own


def _key(name: str) -> str | bytes:
    """The name of a file in the record, the same in every locale: text, or bytes that are not UTF-8."""
    try:
        return native_path(name)
    except InputError:
        return os.fsencode(name)


def _name(key: str | bytes) -> str:
    return os.fsdecode(key.encode() if isinstance(key, str) else key)
