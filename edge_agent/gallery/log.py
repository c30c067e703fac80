"""The write-ahead log of a gallery file: when its changes would survive a power cut."""

from __future__ import annotations

import contextlib
import os

from edge_agent.core.errors import StorageError
from edge_agent.core.sqlite import Description


class WriteAheadLog:
    """The log of a database. Any thread may call its methods beside a change.

    Raises:
        StorageError: the disk failed.
    """

    def __init__(self, database: Description) -> None:
        self._database = database
        self._waits = False

    def committed(self) -> None:
        """Note that durable changes were committed without waiting for the disk."""
        self._waits = True

    def settle(self) -> None:
        """Wait until all noted changes would survive a power cut; an error leaves them noted."""
        if not self._waits:
            return
        self._waits = False  # before the log is written: a change that comes meanwhile sets it again
        try:
            self.flush()
        except StorageError:
            self._waits = True
            raise

    def flush(self) -> None:
        """Wait until the log is on the disk."""
        path = self._database.path
        if path is None:
            return
        log = path.with_name(path.name + "-wal")
        with self._database.translated(), contextlib.suppress(FileNotFoundError):
            descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)  # unlike the database, it has no locks
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
