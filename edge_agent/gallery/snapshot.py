"""A copy of what decisions depend on in a gallery file, and a gallery file made from one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.core.sqlite import connect, transaction
from edge_agent.gallery.store import Store

Table = tuple[str, tuple[str, ...], Iterable[Sequence[Any]]]
"""Name, columns and rows of a table."""
_TABLES = ("meta", "fact", "identity", "former", "exemplar", "apart", "fleet_mean", "sqlite_sequence")
_BATCH = 4096


class Snapshot:
    """The rows of a gallery file as they were at its creation, whatever is written afterwards.

    It reads by a connection of its own, and keeps the write-ahead log from being emptied until `close`.
    """

    def __init__(self, path: Path, key: bytes | None) -> None:
        self._connection = connect(path, key=key)
        self._open = contextlib.ExitStack()
        self._open.callback(self._connection.close)
        try:
            self._open.enter_context(transaction(self._connection, "DEFERRED"))
            self._connection.execute("SELECT count(*) FROM meta").fetchone()  # from here on
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self._open.close()

    def numbers(self) -> Mapping[str, int]:
        """Return the numbers of all identities by id, former ids too."""
        found = self._connection.execute(
            "SELECT id, number FROM identity UNION SELECT id, number FROM former"
        )
        return dict(found.fetchall())

    def tables(self) -> Iterator[Table]:
        """Yield the tables."""
        for table in _TABLES:
            cursor = self._connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - constants
            yield table, tuple(column[0] for column in cursor.description), _rows(cursor)


def _rows(cursor: Any) -> Iterator[Sequence[Any]]:  # noqa: ANN401 - of sqlite3 or SQLCipher
    while batch := cursor.fetchmany(_BATCH):
        yield from batch


def restore(path: Path, key: bytes | None, tables: Iterable[Table], *, axis: str) -> None:
    """Make a gallery file from a snapshot; `axis` is the id of the clock that has its instants.

    Columns that this version does not know are left out. Values are checked when the file is opened.
    """
    with contextlib.closing(Store(path, key=key)) as store, store.change():
        for table, columns, rows in tables:
            if table not in _TABLES:
                continue
            present = [row[0] for row in store.rows(f"SELECT name FROM pragma_table_info('{table}')")]  # noqa: S608
            used = [place for place, column in enumerate(columns) if column in present]
            names = ", ".join(columns[place] for place in used)
            store.run(f"DELETE FROM {table}")  # noqa: S608 - constants
            if not used:
                continue
            marks = ", ".join("?" * len(used))
            store.run_many(
                f"INSERT INTO {table} ({names}) VALUES ({marks})",  # noqa: S608 - names of columns
                [[row[place] for place in used] for row in rows],
            )
        store.put_meta("clock", axis)
