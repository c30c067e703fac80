"""Connections, transactions and error texts that gallery, outbox and crop ledger share."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.core.errors import DiskFull, StorageError
from edge_agent.core.sqlite import Description, connect, is_damage, transaction


def test_a_transaction_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    with contextlib.closing(connect(tmp_path / "x.db")) as db:
        db.execute("CREATE TABLE t (a)")
        with transaction(db):
            db.execute("INSERT INTO t VALUES (1)")
        with contextlib.suppress(KeyError), transaction(db):
            db.execute("INSERT INTO t VALUES (2)")
            raise KeyError
        assert db.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_a_deferred_transaction_reads_one_state(tmp_path: Path) -> None:
    with (
        contextlib.closing(connect(tmp_path / "x.db", pragmas={"journal_mode": "WAL"})) as db,
        contextlib.closing(connect(tmp_path / "x.db")) as other,
    ):
        db.execute("CREATE TABLE t (a)")
        with transaction(db, "DEFERRED"):
            assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
            other.execute("INSERT INTO t VALUES (1)")
            assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch(0o644)
    with contextlib.closing(connect(path, pragmas={"journal_mode": "WAL"})) as db:
        db.execute("CREATE TABLE t (a)")
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("problem", "kind", "text"),
    [
        (sqlite3.OperationalError("database is locked"), StorageError, "keeps it locked; stop it"),
        (sqlite3.OperationalError("database or disk is full"), DiskFull, "no space is left on its disk"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "no space is left on its disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFull, "no space is left on its disk"),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            StorageError,
            "denied; check the owner",
        ),
        (sqlite3.OperationalError("unable to open database file"), StorageError, "check the owner"),
        (sqlite3.OperationalError("disk I/O error"), StorageError, "check the disk"),
        (
            sqlite3.IntegrityError("UNIQUE constraint failed"),
            StorageError,
            "cannot change the thing .*: UNIQUE",
        ),
        (sqlite3.DatabaseError("database disk image is malformed"), StorageError, "is damaged .* restore it"),
    ],
)
def test_errors_are_explained(tmp_path: Path, problem: Exception, kind: type[Exception], text: str) -> None:
    described = Description(tmp_path / "x.db", role="the thing", damaged="restore it", locked="stop it")
    with pytest.raises(StorageError, match=text) as caught, described.translated():
        raise problem
    assert type(caught.value) is kind
    assert f"the thing {tmp_path / 'x.db'}" in str(caught.value)


def test_an_io_error_without_space_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(os.statvfs(tmp_path))
    values[4] = 1  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    error = Description(tmp_path / "x.db", damaged="-").error(sqlite3.OperationalError("disk I/O error"))
    assert type(error) is DiskFull


def test_another_key_is_distinguished_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        connect(path, pragmas={"journal_mode": "WAL"})
    assert is_damage(caught.value)
    assert "is damaged" in str(Description(path, damaged="-").error(caught.value))
    assert "does not open with this key" in str(
        Description(path, damaged="-", keyed=True).error(caught.value)
    )


def test_a_second_connection_does_not_end_the_locks_of_the_first(tmp_path: Path) -> None:
    """Else another process that closes the file deletes the write-ahead log that this one writes to."""
    path, pragmas = tmp_path / "a.db", {"journal_mode": "WAL"}
    with contextlib.closing(connect(path, pragmas=pragmas)) as first:
        first.execute("CREATE TABLE t (x)")
        connect(path, pragmas=pragmas).close()
        other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('DELETE FROM t'); c.close()"
        subprocess.run([sys.executable, "-c", other, path], check=True)
        assert (tmp_path / "a.db-wal").exists()
        first.execute("INSERT INTO t VALUES (2)")
        assert first.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    mode = tmp_path.stat().st_mode
    with pytest.raises(IsADirectoryError):
        connect(tmp_path)
    assert tmp_path.stat().st_mode == mode
