"""One file of a recording: SQLite with a write-ahead log, encrypted with the key of the gallery.

It begins with a copy of the gallery, so that the decisions of its entries can be made again. What is erased
is overwritten with zeros (`secure_delete`).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.core.arrays import MOST_NUMBERS
from edge_agent.core.encryption import check_plainness
from edge_agent.core.errors import InputError, MissingFile, StorageError
from edge_agent.core.files import parse_json
from edge_agent.core.private import private_folder
from edge_agent.core.sqlite import Description, connect, foreign_content, transaction
from edge_agent.core.structures import Decision
from edge_agent.record.entries import (
    Entry,
    pack_frame,
    pack_vectors,
    to_json,
    unpack_vectors,
    without_tracks,
)

SUFFIX = ".rec"
_APPLICATION = 0x45415231  # "EAR1"
_LAYOUT = 1
_BUSY_S = 10.0
_PRAGMAS = {
    "secure_delete": "ON",
    "auto_vacuum": "INCREMENTAL",  # takes effect in a new file only
    "journal_mode": "WAL",
    "journal_size_limit": "0",
    "synchronous": "NORMAL",  # a power cut may undo the last second
}
_BATCH = 500
"""Rows read, and frames erased, at a time: others write between them."""
_DIGITS = 18
"""Of the number of a track."""
_NAME = re.compile(r"[a-z_]{1,40}")
TABLES = ("meta", "fact", "identity", "former", "exemplar", "apart", "sqlite_sequence")
"""Tables of the gallery that are copied."""
_SCHEMA = """
CREATE TABLE header (value TEXT NOT NULL);
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, camera TEXT NOT NULL, at REAL NOT NULL,
    body BLOB NOT NULL, vectors BLOB NOT NULL
);
CREATE TABLE decision (
    seq INTEGER NOT NULL, place INTEGER NOT NULL, kind TEXT NOT NULL, camera TEXT NOT NULL,
    track INTEGER NOT NULL, identity TEXT, body TEXT NOT NULL, PRIMARY KEY (seq, place)
) WITHOUT ROWID;
CREATE TABLE picture (
    seq INTEGER NOT NULL, track INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (seq, track)
) WITHOUT ROWID;
"""
_RULES = {
    "header": "typeof(value) = 'text'",
    "entry": "seq > 0 AND kind IN ('frame', 'call', 'change') AND typeof(camera) = 'text'"
    " AND typeof(at) = 'real' AND typeof(body) = 'blob' AND typeof(vectors) = 'blob'",
    "decision": "typeof(seq) = 'integer' AND typeof(kind) = 'text' AND typeof(camera) = 'text'"
    " AND typeof(track) = 'integer' AND typeof(identity) IN ('text', 'null')"
    " AND typeof(body) = 'text'",
    "picture": "typeof(seq) = 'integer' AND typeof(track) = 'integer' AND typeof(data) = 'blob'",
}


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored, with the JSON of its decisions."""

    seq: int
    kind: str
    camera: str
    at: float
    body: bytes
    vectors: bytes
    decisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Copied:
    """Rows of one table of a gallery."""

    table: str
    columns: tuple[str, ...]
    rows: Iterable[Sequence[Any]]


class RecordingFile:
    """An open file of a recording; closed by `with`. Methods raise StorageError, or DiskFull."""

    def __init__(self, path: Path, connection: sqlite3.Connection, description: Description) -> None:
        """Use `create` or `existing`."""
        self.path = path
        self._connection = connection
        self._description = description

    @classmethod
    def create(cls, path: Path, key: bytes | None, header: Mapping[str, Any]) -> RecordingFile:
        """Make a new file, mode 0600, in a folder of mode 0700."""
        description = _described(path, key)
        with description.translated():
            private_folder(path.parent)
            connection = connect(path, key=key, timeout_s=_BUSY_S, pragmas=_PRAGMAS)
            try:
                with transaction(connection):
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {_LAYOUT}")
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute("INSERT INTO header VALUES (?)", (to_json(header),))
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, description)

    @classmethod
    def existing(cls, path: Path, key: bytes | None, *, check: bool = True) -> RecordingFile:
        """Open a file; with `check`, all of it is searched for damage.

        MissingFile: there is none. StorageError: it is no recording, damaged, of a newer version, or of
        another key. ConfigError: SQLCipher is missing for the key.
        """
        if not path.is_file():
            raise MissingFile(f"there is no recording at {path}; record.enabled makes the agent record")
        description = _described(path, key)
        with description.translated():
            _check_plainness(path, key)
            connection = connect(path, key=key, timeout_s=_BUSY_S, pragmas={"secure_delete": "ON"})
            try:
                _check(connection, path, description, check=check)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, description)

    def __enter__(self) -> RecordingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    @property
    def header(self) -> dict[str, Any]:
        """What it states of itself: see `agent.recording`."""
        with self._description.translated():
            found = self._connection.execute("SELECT value FROM header").fetchone()
        try:
            header = parse_json(found[0] if found else "null", "its header")
        except InputError as problem:
            raise self.damage(str(problem)) from problem
        dimension = header.get("dimension") if isinstance(header, dict) else None
        if type(dimension) is not int or not 0 < dimension <= MOST_NUMBERS:
            raise self.damage("its header states no embeddings")
        return dict(header)

    def damage(self, text: str) -> StorageError:
        """Return the error for content that cannot be used."""
        return self._description.damage(text)

    # --- write --------------------------------------------------------------------------------------------

    def copy(self, tables: Iterable[Copied]) -> None:
        """Store the rows of a gallery, in one transaction."""
        with self._description.translated(), transaction(self._connection):
            for one in tables:
                names = ", ".join(map(_checked_name, one.columns))
                marks = ", ".join("?" * len(one.columns))
                self._connection.execute(f"CREATE TABLE start_{_checked_name(one.table)} ({names})")
                self._connection.executemany(
                    f"INSERT INTO start_{one.table} VALUES ({marks})",  # noqa: S608 - constants
                    one.rows,
                )

    def append(
        self, rows: Sequence[tuple[int, Entry, Sequence[Mapping[str, Any]], Mapping[int, bytes]]]
    ) -> None:
        """Store entries in one transaction: number, entry, its decisions as JSON values, its pictures."""
        with self._description.translated(), transaction(self._connection):
            for seq, entry, decisions, pictures in rows:
                if entry.update is not None:
                    camera, (body, vectors) = entry.update.camera, pack_frame(entry.update)
                else:
                    camera, body, vectors = "", to_json(entry.body).encode(), pack_vectors(entry.vectors)
                self._connection.execute(
                    "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
                    (seq, entry.kind, camera, float(entry.at), body, vectors),
                )
                self._connection.executemany(
                    "INSERT INTO decision VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (seq, place, *_indexed(one), to_json(plain))
                        for place, (one, plain) in enumerate(zip(entry.decisions, decisions, strict=True))
                    ],
                )
                self._connection.executemany(
                    "INSERT INTO picture VALUES (?, ?, ?)", [(seq, *one) for one in pictures.items()]
                )

    def add_pictures(self, seq: int, pictures: Mapping[int, bytes]) -> None:
        """Store pictures of an entry by track."""
        with self._description.translated(), transaction(self._connection):
            self._connection.executemany(
                "INSERT INTO picture VALUES (?, ?, ?)", [(seq, *one) for one in pictures.items()]
            )

    def size(self) -> int:
        """Return the size on the disk, with the write-ahead log."""
        return size_of(self.path)

    # --- read ---------------------------------------------------------------------------------------------

    def start(self) -> list[Copied]:
        """Return the tables of the gallery as they were at the start."""
        found = []
        with self._description.translated():
            for table in TABLES:
                columns = [
                    row[1] for row in self._connection.execute(f"PRAGMA table_info(start_{table})").fetchall()
                ]
                if not columns or not all(_NAME.fullmatch(name) for name in columns):
                    raise self.damage(f"its copy of the table {table} of the gallery")
                rows = self._connection.execute(f"SELECT * FROM start_{table}").fetchall()  # noqa: S608
                found.append(Copied(table, tuple(columns), rows))
        return found

    def rows(self) -> Iterator[Row]:
        """Yield the entries in their order."""
        last = 0
        while True:
            with self._description.translated():
                batch = self._connection.execute(
                    "SELECT * FROM entry WHERE seq > ? ORDER BY seq LIMIT ?", (last, _BATCH)
                ).fetchall()
                if not batch:
                    return
                first, last = batch[0][0], batch[-1][0]
                decided = self._connection.execute(
                    "SELECT seq, body FROM decision WHERE seq BETWEEN ? AND ? ORDER BY seq, place",
                    (first, last),
                ).fetchall()
            decisions: dict[int, list[str]] = {}
            for seq, body in decided:
                decisions.setdefault(seq, []).append(body)
            for row in batch:
                seq, kind, camera, at, body, vectors = row
                yield Row(seq, kind, camera, at, body, vectors, tuple(decisions.get(seq, ())))

    def pictures(self, seq: int) -> dict[int, bytes]:
        """Return the pictures of an entry by track."""
        with self._description.translated():
            found = self._connection.execute("SELECT track, data FROM picture WHERE seq = ?", (seq,))
            return dict(found.fetchall())

    def has_pictures(self) -> bool:
        """Return whether crops were kept."""
        with self._description.translated():
            return self._connection.execute("SELECT 1 FROM picture LIMIT 1").fetchone() is not None

    def decisions(self, most: int) -> list[str]:
        """Return the newest decisions as JSON, oldest first."""
        with self._description.translated():
            found = self._connection.execute(
                "SELECT body FROM decision ORDER BY seq DESC, place DESC LIMIT ?", (most,)
            ).fetchall()
        return [body for (body,) in reversed(found)]

    # --- erase --------------------------------------------------------------------------------------------

    def erase(self, identity: str) -> int:
        """Erase the embeddings and pictures of a person by id; return the number of frames with them.

        All of every track that ever had this identity are erased. A track can be given itself, as the origin
        that exemplars state.
        """
        header = self.header
        dimension = header["dimension"]
        with self._description.translated():
            with transaction(self._connection):
                known = self._erase_start(identity)
                known += self._erase_changes(identity, dimension)
                tracks: dict[str, set[int]] = {}
                for camera, track in self._connection.execute(
                    "SELECT DISTINCT camera, track FROM decision WHERE identity = ?", (identity,)
                ).fetchall():
                    tracks.setdefault(camera, set()).add(track)
                self._connection.execute(
                    "UPDATE decision SET identity = NULL WHERE identity = ?", (identity,)
                )
                if (own := _track(identity, header.get("session"))) is not None:
                    tracks.setdefault(own[0], set()).add(own[1])
            frames = sum(self._erase_tracks(camera, gone, dimension) for camera, gone in tracks.items())
            if known or tracks:
                self._note_erased()
                self._remove_copies()
        return frames + known

    def erase_pictures(self) -> int:
        """Erase the pictures of everybody; return their number. The rest can be replayed as before."""
        erased = 0
        with self._description.translated():
            while True:
                with transaction(self._connection):
                    gone = self._connection.execute(
                        "DELETE FROM picture WHERE seq IN (SELECT seq FROM picture ORDER BY seq LIMIT ?)",
                        (_BATCH,),
                    ).rowcount
                if not gone:
                    break
                erased += gone
            if erased:
                self._remove_copies()
        return erased

    def _remove_copies(self) -> None:
        """Leave no copy of erased rows in free pages and in the log."""
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _erase_start(self, identity: str) -> int:
        tables = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master").fetchall()}
        if not {"start_identity", "start_former", "start_exemplar"} <= tables:
            return 0
        numbers = self._connection.execute(
            "SELECT number FROM start_identity WHERE id = ?"
            " UNION SELECT number FROM start_former WHERE id = ?",
            (identity, identity),
        ).fetchall()
        for table in ("identity", "former", "exemplar"):
            self._connection.executemany(f"DELETE FROM start_{table} WHERE number = ?", numbers)  # noqa: S608
        self._connection.executemany("DELETE FROM start_apart WHERE ? IN (first, second)", numbers)
        gone = self._connection.execute("DELETE FROM start_exemplar WHERE origin = ?", (identity,))
        return len(numbers) + gone.rowcount

    def _erase_changes(self, identity: str, dimension: int) -> int:
        """Take a person out of the changes that others made."""
        changed = 0
        for seq, body, blob in self._connection.execute(
            "SELECT seq, body, vectors FROM entry WHERE kind = 'change'"
        ).fetchall():
            found = parse_json(body, "a change")
            vectors, kept, rows, first = unpack_vectors(blob, dimension), [], [], 0
            for person in found["people"]:
                last = first + len(person["exemplars"])
                if identity not in (person["id"], *person.get("ids", ())):
                    others = [at for at, one in enumerate(person["exemplars"]) if one[1] != identity]
                    kept.append({**person, "exemplars": [person["exemplars"][at] for at in others]})
                    rows.append(vectors[first:last][others])
                first = last
            if sum(map(len, rows)) < len(vectors) or len(kept) < len(found["people"]):
                changed += 1
                left = np.concatenate(rows) if rows else None
                self._connection.execute(
                    "UPDATE entry SET body = ?, vectors = ? WHERE seq = ?",
                    (to_json({**found, "people": kept}).encode(), pack_vectors(left), seq),
                )
        return changed

    def _erase_tracks(self, camera: str, tracks: set[int], dimension: int) -> int:
        frames, last = 0, 0
        while True:
            with transaction(self._connection):
                batch = self._connection.execute(
                    "SELECT seq, body, vectors FROM entry WHERE camera = ? AND kind = 'frame' AND seq > ?"
                    " ORDER BY seq LIMIT ?",
                    (camera, last, _BATCH),
                ).fetchall()
                for seq, body, vectors in batch:
                    left = without_tracks(body, vectors, tracks, dimension)
                    if left is None:
                        continue
                    frames += 1
                    self._connection.execute("UPDATE entry SET vectors = ? WHERE seq = ?", (left, seq))
                    self._connection.executemany(
                        "DELETE FROM picture WHERE seq = ? AND track = ?", [(seq, one) for one in tracks]
                    )
            if not batch:
                return frames
            last = batch[-1][0]

    def _note_erased(self) -> None:
        header = self.header
        erased = {**header, "erased": int(header.get("erased", 0)) + 1}
        self._connection.execute("UPDATE header SET value = ?", (to_json(erased),))


def _indexed(one: Decision) -> tuple[str, str, int, str | None]:
    return one.kind.value, one.camera, one.track_id, one.identity


def _described(path: Path, key: bytes | None) -> Description:
    return Description(
        path,
        role="the recording",
        keyed=key is not None,
        damaged="nothing can be replayed from it: delete it, or name another",
    )


def _check_plainness(path: Path, key: bytes | None) -> None:
    try:
        check_plainness(path, key)
    except StorageError as problem:
        if key is None:
            raise StorageError(
                f"the recording {path} is encrypted, and no key is given, or it is no recording; put the key"
                " of the gallery into the credential file storage__key"
            ) from problem
        raise StorageError(
            f"the recording {path} is not encrypted, but storage.key is set; leave the key out for it"
        ) from problem


def _check(connection: sqlite3.Connection, path: Path, description: Description, *, check: bool) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise StorageError(f"{path} is an SQLite file, but not a recording; name another path")
    layout = connection.execute("PRAGMA user_version").fetchone()[0]
    if layout != _LAYOUT:
        raise StorageError(
            f"the recording {path} has layout {layout}, this edge-agent reads {_LAYOUT}; replay it with the"
            " version that wrote it"
        )
    if not check:
        return
    result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise description.damage(str(result).splitlines()[-1])
    if (foreign := foreign_content(connection, _RULES)) is not None:
        raise description.damage(foreign)


def _track(origin: str, session: str | None) -> tuple[str, int] | None:
    """Return camera and track of an origin of this session; None for another text."""
    of, _, rest = origin.partition(":")
    camera, _, track = rest.rpartition(":")
    usable = of == session and track.isascii() and track.isdecimal() and len(track) <= _DIGITS
    return (camera, int(track)) if usable else None


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"no name of a table or column: {name!r}")
    return name


def size_of(path: Path) -> int:
    """Return the size of a recording on the disk, with its write-ahead log."""
    total = 0
    for suffix in ("", "-wal"):
        with contextlib.suppress(OSError):
            total += path.with_name(path.name + suffix).stat().st_size
    return total
