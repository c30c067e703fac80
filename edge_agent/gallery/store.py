"""The gallery file: SQLite with a write-ahead log.

Each change is one transaction: a `kill -9` leaves the state before or after it. Deleted content is
overwritten with zeros (`secure_delete`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.encryption import check_plainness
from edge_agent.core.errors import StorageError
from edge_agent.core.private import private_folder
from edge_agent.core.sqlite import (
    Description,
    connect,
    database_errors,
    end_transaction,
    foreign_content,
    savepoint,
    transaction,
)
from edge_agent.gallery.log import WriteAheadLog

_APPLICATION = 0x45414731  # "EAG1": distinguishes a gallery from other SQLite files
_LAYOUT = 2
_BUSY_S = 10.0  # another process holds the lock for one small change; an import may take longer
_PRAGMAS = {
    "foreign_keys": "ON",
    "secure_delete": "ON",
    "auto_vacuum": "INCREMENTAL",  # takes effect in a new file only
    "journal_mode": "WAL",
    "journal_size_limit": "0",  # after a checkpoint the log takes no space
}

# `seen` is the instant of the last sighting, see `gallery.ages`; `created`, `last_seen` and `exemplar.time`
# are labels for people. `expires` is for earlier versions, to which an upgrade may have to return.
# `ttl` is an identity's own time to live in seconds, 0 for ever; NULL: that of its kind.
# `pictures` are the tracks of crop folders that show a person. When the identity is erased, `number` becomes
# NULL, and the pictures have to be deleted.
# `notice` has the changes that subscribers have to learn of, see `gallery.notices`; files of earlier versions
# lack it, and these versions ignore it.
# `crop` has the pictures of `gallery.crops`; `apart` the pairs of identities that are two people, the lower
# number first; `_PAST` belongs to `gallery.reembedding`.
# The tables `fleet_...` belong to `gallery.fleet_rows`.
# `epoch` states which view of its camera an exemplar is from, see `gallery.means`; the meta value `site` is
# random and distinguishes cameras of the same name in other galleries; `cameras` counts how often all that
# was known of cameras was replaced.
# `revision` changes with an identity's exemplars: another process reloads only what changed.
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE identity (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('auto', 'enrolled')),
    created REAL NOT NULL,
    last_seen REAL NOT NULL,
    expires REAL,
    ttl REAL,
    sightings INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    seen REAL
);
CREATE INDEX identity_by_expiry ON identity (expires) WHERE expires IS NOT NULL;
CREATE INDEX identity_by_age ON identity (kind, last_seen);
CREATE TABLE former (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX former_by_number ON former (number);
CREATE TABLE exemplar (
    row INTEGER PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    vector BLOB NOT NULL,
    quality REAL NOT NULL,
    origin TEXT NOT NULL,
    camera TEXT NOT NULL,
    time REAL NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX exemplar_by_number ON exemplar (number);
"""
_SINCE_LAYOUT_2 = """
CREATE TABLE pictures (
    camera TEXT NOT NULL,
    track INTEGER NOT NULL,
    since REAL NOT NULL,
    number INTEGER REFERENCES identity (number) ON DELETE SET NULL,
    PRIMARY KEY (camera, track, since)
) WITHOUT ROWID;
CREATE INDEX pictures_by_number ON pictures (number);
"""
_NOTICE = """
CREATE TABLE IF NOT EXISTS notice (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    number INTEGER NOT NULL,
    other TEXT,
    other_number INTEGER,
    reason TEXT NOT NULL
);
"""
_CROP = """
CREATE TABLE IF NOT EXISTS crop (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    role TEXT NOT NULL,
    origin TEXT NOT NULL,
    camera TEXT NOT NULL,
    time REAL NOT NULL,
    quality REAL NOT NULL,
    vector BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    jpeg BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS crop_by_number ON crop (number, role, bytes);
CREATE INDEX IF NOT EXISTS crop_by_origin ON crop (origin);
CREATE INDEX IF NOT EXISTS crop_by_role ON crop (role);
"""
_APART = """
CREATE TABLE IF NOT EXISTS apart (
    first INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    second INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    reason TEXT NOT NULL,
    PRIMARY KEY (first, second)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS apart_by_second ON apart (second);
"""
_PAST = """
CREATE TABLE IF NOT EXISTS reembedded (
    row INTEGER PRIMARY KEY REFERENCES crop (row) ON DELETE CASCADE,
    vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS past_fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS past_exemplar (
    row INTEGER PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    vector BLOB NOT NULL,
    quality REAL NOT NULL,
    origin TEXT NOT NULL,
    camera TEXT NOT NULL,
    time REAL NOT NULL,
    epoch INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS past_exemplar_by_number ON past_exemplar (number);
"""
_FLEET = """
CREATE TABLE IF NOT EXISTS fleet_change (
    number INTEGER PRIMARY KEY REFERENCES identity (number) ON DELETE CASCADE,
    count INTEGER NOT NULL,
    name INTEGER NOT NULL,
    ttl INTEGER NOT NULL,
    content INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS fleet_apart_change (
    first INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    second INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE,
    PRIMARY KEY (first, second)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fleet_apart_change_by_second ON fleet_apart_change (second);
CREATE TABLE IF NOT EXISTS fleet_shared (
    number INTEGER PRIMARY KEY REFERENCES identity (number) ON DELETE CASCADE,
    seen REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS fleet_known (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL REFERENCES identity (number) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fleet_known_by_number ON fleet_known (number);
CREATE TABLE IF NOT EXISTS fleet_erased (id TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fleet_tombstone (
    id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fleet_tombstone_by_version ON fleet_tombstone (version);
CREATE TABLE IF NOT EXISTS fleet_copied (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fleet_mean (
    camera TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    people REAL NOT NULL,
    total BLOB NOT NULL,
    PRIMARY KEY (camera, epoch)
) WITHOUT ROWID;
"""
_LATER = {"notice": _NOTICE, "crop": _CROP, "apart": _APART, "past_exemplar": _PAST, "fleet_known": _FLEET}
"""Tables that files of earlier versions lack, and these versions ignore; they delete their rows, too, with
the identity."""
_SITE = "INSERT OR IGNORE INTO meta VALUES ('site', lower(hex(randomblob(8))))"
_RULES = {
    "notice": "kind IN ('merged', 'forgotten', 'named', 'split') AND typeof(id) = 'text'"
    " AND typeof(number) = 'integer' AND typeof(other) IN ('text', 'null')"
    " AND typeof(other_number) IN ('integer', 'null') AND typeof(reason) = 'text'",
    "meta": "typeof(key) = 'text'",
    "fact": "typeof(key) = 'text' AND typeof(value) = 'text'",
    "identity": "number > 0 AND typeof(id) = 'text' AND typeof(name) IN ('text', 'null')"
    " AND kind IN ('auto', 'enrolled') AND typeof(created) = 'real' AND typeof(last_seen) = 'real'"
    " AND typeof(expires) IN ('real', 'null') AND typeof(ttl) IN ('real', 'null')"
    " AND typeof(seen) IN ('real', 'null')"
    " AND typeof(sightings) = 'integer' AND typeof(revision) = 'integer'",
    "former": "typeof(id) = 'text' AND typeof(number) = 'integer'",
    "exemplar": "typeof(number) = 'integer' AND typeof(vector) = 'blob' AND typeof(quality) = 'real'"
    " AND typeof(origin) = 'text' AND typeof(camera) = 'text' AND typeof(time) = 'real'"
    " AND typeof(epoch) = 'integer'",
    "crop": "typeof(number) = 'integer' AND role IN ('kept', 'evidence') AND typeof(origin) = 'text'"
    " AND typeof(camera) = 'text' AND typeof(time) = 'real' AND typeof(quality) = 'real'"
    " AND typeof(vector) = 'blob' AND typeof(bytes) = 'integer' AND typeof(jpeg) = 'blob'",
    "apart": "typeof(first) = 'integer' AND typeof(second) = 'integer' AND typeof(reason) = 'text'",
    "reembedded": "typeof(vector) = 'blob'",
    "past_fact": "typeof(key) = 'text' AND typeof(value) = 'text'",
    "past_exemplar": "typeof(number) = 'integer' AND typeof(vector) = 'blob' AND typeof(quality) = 'real'"
    " AND typeof(origin) = 'text' AND typeof(camera) = 'text' AND typeof(time) = 'real'"
    " AND typeof(epoch) = 'integer'",
    "fleet_change": "typeof(count) = 'integer' AND typeof(name) = 'integer' AND typeof(ttl) = 'integer'"
    " AND typeof(content) = 'integer'",
    "fleet_apart_change": "typeof(first) = 'integer' AND typeof(second) = 'integer'",
    "fleet_shared": "typeof(seen) = 'real'",
    "fleet_known": "typeof(id) = 'text' AND typeof(number) = 'integer'",
    "fleet_erased": "typeof(id) = 'text' AND reason IN ('request', 'expired')",
    "fleet_tombstone": "typeof(id) = 'text' AND reason IN ('request', 'expired')"
    " AND typeof(version) = 'integer'",
    "fleet_copied": "typeof(key) = 'text'",
    "fleet_mean": "typeof(camera) = 'text' AND typeof(epoch) = 'integer' AND typeof(people) = 'real'"
    " AND typeof(total) = 'blob'",
    "pictures": "typeof(camera) = 'text' AND typeof(track) = 'integer' AND typeof(since) = 'real'"
    " AND typeof(number) IN ('integer', 'null')",
}


class Store:
    """An open gallery file. Queries go through `rows` and, inside `change`, changes through `run`."""

    def __init__(self, path: Path | None, *, key: bytes | None = None, check: bool = True) -> None:
        """Open or create the file, with mode 0600 (its folder with 0700); None keeps everything in memory.

        With `check`, the whole file is searched for damage. StorageError when it is not a gallery, damaged,
        of a newer layout, of another key, or not accessible; ConfigError when SQLCipher is missing for a key.
        """
        self.path = path
        self._key = key
        self._description = Description(
            path,
            keyed=key is not None,
            damaged="move it away together with its -wal and -shm files, then restore the last export:"
            " edge-agent gallery import FILE",
        )
        self.log = WriteAheadLog(self._description)
        self.where = self._description.name
        self.damage = self._description.damage
        with self._description.translated():
            if path is not None:
                check_plainness(path, key)
                private_folder(path.parent)
            self._connection = connect(path, key=key, timeout_s=_BUSY_S, pragmas=_PRAGMAS)
            self._is_full: bool | None = None  # whether commits wait for the disk; not set yet
            self._together = False
            self._to_settle = False
            """Whether the transaction of `together` has durable changes."""
            try:
                self._prepare(check=check)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file; SQLite empties the write-ahead log when this was the last connection."""
        with contextlib.suppress(StorageError):
            self.log.settle()
        self._connection.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self._description.translated():
            return self._connection.execute(statement, values).fetchall()

    def batches(self, statement: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows of a query in lists of at most `size`: a large table never becomes one list."""
        with self._description.translated():
            cursor = self._connection.execute(statement)
            with contextlib.closing(cursor):
                while rows := cursor.fetchmany(size):
                    yield rows

    def value(self, statement: str, values: Sequence[Any] = ()) -> Any:  # noqa: ANN401 - any SQL value
        """Return the first column of the first row; None when there is no row."""
        rows = self.rows(statement, values)
        return rows[0][0] if rows else None

    def run(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Execute one statement of a change."""
        return self._connection.execute(statement, values)

    def run_many(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        """Execute one statement of a change for each row of values."""
        self._connection.executemany(statement, values)

    @contextlib.contextmanager
    def change(self, *, durable: bool = True) -> Iterator[bool]:
        """Run the block in one transaction, and with `durable` wait until it would survive a power cut.

        Otherwise a power cut may undo the last changes as a whole; a kill loses nothing either way. Inside
        `together`, the block becomes part of its transaction. Yields whether a transaction began.
        """
        with self._description.translated():
            if not self._together:
                self._synchronise(durable)
                with transaction(self._connection):
                    yield True
                return
            began = self._join(durable)
            with savepoint(self._connection):
                yield began

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Commit all changes of the block at its end, at once; an exception undoes that of one change only.

        The commit does not wait for the disk: those that are to be durable are so after `log.settle`. A block
        inside another one is part of it. StorageError: they could not be committed, and are undone.
        """
        if self._together:
            yield
            return
        self._together = True
        try:
            yield
        finally:
            self._together = False
            with self._description.translated():
                end_transaction(self._connection)
            if self._to_settle:
                self._to_settle = False
                self.log.committed()

    def _join(self, durable: bool) -> bool:
        """Begin a transaction, unless there is one; return whether one was begun."""
        began = not self._connection.in_transaction
        if began:
            self._synchronise(durable=False)
            self._connection.execute("BEGIN IMMEDIATE")
        self._to_settle = self._to_settle or durable
        return began

    def _synchronise(self, durable: bool) -> None:
        """Choose whether commits wait for the disk."""
        if durable is not self._is_full:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_full = durable

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Give all queries of the block the same state of the file."""
        with self._description.translated(), transaction(self._connection, "DEFERRED"):
            yield

    def data_version(self) -> int:
        """Return a number that changes when another connection changes the file."""
        return int(self.value("PRAGMA data_version"))

    def changes(self) -> int:
        """Return the number of rows that this connection has changed since it was opened."""
        return self._connection.total_changes

    def meta(self, key: str) -> Any:  # noqa: ANN401 - any SQL value
        """Return a property of the gallery itself; None when it was never set."""
        return self.value("SELECT value FROM meta WHERE key = ?", (key,))

    def put_meta(self, key: str, value: Any) -> None:  # noqa: ANN401 - any SQL value
        """Set a property of the gallery itself, inside a change."""
        self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def scrub(self, *, wait: bool) -> bool:
        """Free the pages of deleted rows, and empty the write-ahead log, which contains copies of them.

        `secure_delete` has zeroed the rows; VACUUM would rewrite the file, which takes seconds at 10,000
        identities and wears flash. Uses its own connection, so this store stays usable. With `wait`, waits up
        to ten seconds for other processes that are reading the log. Returns whether the log was emptied.
        """
        if self.path is None:
            return True
        wait_s = _BUSY_S if wait else 0.0
        deadline = time.monotonic() + wait_s
        with self._description.translated(), contextlib.ExitStack() as stack:
            connection = connect(self.path, key=self._key, timeout_s=wait_s, pragmas=_PRAGMAS)
            stack.callback(connection.close)
            while not _empty_log(connection):
                # SQLite's own timeout does not cover every kind of conflict between two connections.
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
        return True

    def file_bytes(self) -> int:
        """Return the size on disk, with the write-ahead log; 0 in memory."""
        if self.path is None:
            return 0
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def _prepare(self, *, check: bool) -> None:
        if not self.value("SELECT count(*) FROM sqlite_master"):
            self._create()
            return
        if self.value("PRAGMA application_id") != _APPLICATION:
            raise StorageError(f"{self.where} is an SQLite file, but not a gallery; name another path")
        layout = self.value("PRAGMA user_version")
        if layout == 1:
            self._migrate_layout_1()
        elif layout != _LAYOUT:
            raise StorageError(
                f"{self.where} has layout {layout}, this edge-agent reads {_LAYOUT}; "
                "run the version that wrote it, export the gallery there and import it here"
            )
        result = self.value("PRAGMA quick_check(1)") if check else "ok"
        if result != "ok":
            raise self.damage(str(result))
        self._add_column("identity", "seen", "REAL")
        self._add_column("exemplar", "epoch", "INTEGER NOT NULL DEFAULT 0")
        if self.meta("site") is None:
            with self.change():
                self.run(_SITE)
        present = {name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in _LATER.keys() - present:
            with self.change():
                self._run_all(_LATER[table])
        if check and (foreign := foreign_content(self._connection, _RULES)) is not None:
            raise self.damage(foreign)

    def _migrate_layout_1(self) -> None:
        with self.change():
            if self.value("PRAGMA user_version") == _LAYOUT:
                return  # another process was faster
            self.run("ALTER TABLE identity ADD COLUMN ttl REAL")
            self._add_tables(_SINCE_LAYOUT_2)

    def _add_column(self, table: str, column: str, kind: str) -> None:
        """Add a column that earlier versions ignore, if it is missing; so the layout is still theirs."""
        present = f"SELECT count(*) FROM pragma_table_info('{table}') WHERE name = '{column}'"  # noqa: S608
        if self.value(present):
            return
        with self.change():
            if not self.value(present):  # no other process was faster
                self.run(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")

    def _create(self) -> None:
        with self.change():
            if self.value("SELECT count(*) FROM sqlite_master"):
                return  # another process was faster
            self.run(f"PRAGMA application_id = {_APPLICATION}")
            self._add_tables(_SCHEMA + _SINCE_LAYOUT_2 + "".join(_LATER.values()))
            self.run(_SITE)

    def _add_tables(self, schema: str) -> None:
        self._run_all(schema)
        self.run(f"PRAGMA user_version = {_LAYOUT}")

    def _run_all(self, statements: str) -> None:
        for statement in statements.split(";"):
            self.run(statement)


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Free unused pages and copy the log into the file; False while another connection prevents it."""
    try:
        with transaction(connection):
            connection.execute("PRAGMA incremental_vacuum").fetchall()
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except database_errors() as problem:
        if "locked" not in str(problem):
            raise
        return False
    return not busy
