"""What stands beside the outbox so that it gets through a full disk, damage and power cuts.

`Marks` are the few numbers that must be known when the database cannot say them, in a file of fixed size
that is written in place, in two alternating slots with a checksum each: this works on a full disk, and a
write that was cut short leaves the slot before it. `Reserve` is room that is given up when nothing else is
left, since
even deleting needs room in the log of SQLite.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Marks", "Reserve", "boot_check"]


def boot_check() -> int:
    """A number that is another one after the machine was started again; 0 where the system does not say."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return 0
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


class Marks:
    """Numbers beside the database.

    Attributes:
        reserved: no number above this one was ever given out.
        floor: every number up to this one was settled: acknowledged, parked or dropped.
        first, last: range of numbers that could not be written and is not in the database yet; 0, 0 for none.
        key_check: tells which key the database was made with; 0 for none.
        boot: which start of the machine wrote this last.
        generation: counts the writes; the database holds the one whose range it has taken over.
    """

    _FORMAT = struct.Struct("<8sQQQQQQQ")
    _MAGIC = b"edgemrk1"
    _SLOT = 512

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = self.reserved = self.floor = self.first = self.last = self.key_check = self.boot = 0
        self._file = -1

    def open(self) -> None:
        """Read the newer valid slot; make and fill the file where there is none."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size < 2 * self._SLOT:
            os.pwrite(self._file, bytes(2 * self._SLOT), 0)
            os.fsync(self._file)
        for slot in range(2):
            raw = os.pread(self._file, self._FORMAT.size + 4, slot * self._SLOT)
            body, check = raw[:-4], raw[-4:]
            if zlib.crc32(body).to_bytes(4, "little") == check and body.startswith(self._MAGIC):
                self._take(self._FORMAT.unpack(body)[1:])

    def _take(self, values: tuple[int, ...]) -> None:
        if values[0] >= self.generation:
            self.generation, self.reserved, self.floor, self.first, self.last, self.key_check, self.boot = (
                values
            )

    def write(self) -> None:
        """Write the other slot; see `sync`."""
        self.generation += 1
        values = (
            self.generation,
            self.reserved,
            self.floor,
            self.first,
            self.last,
            self.key_check,
            self.boot,
        )
        body = self._FORMAT.pack(self._MAGIC, *values)
        check = zlib.crc32(body).to_bytes(4, "little")
        os.pwrite(self._file, body + check, self.generation % 2 * self._SLOT)

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        if self._file >= 0:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Let the file go; calling it twice does no harm."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Reserve:
    """Bytes on the disk that nobody else can take, until they are needed."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        """Bytes; less where the disk had not eight times as much left when it was opened."""
        self._file = -1

    def open(self) -> None:
        """Take the room, as far as there is any."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        left = os.statvfs(self.path.parent)
        self.size = max(os.fstat(self._file).st_size, min(self.size, left.f_bavail * left.f_frsize // 8))
        self._take()

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full: as much as there was stays taken
            os.posix_fallocate(self._file, 0, max(self.size, 1))

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """The room is free inside the block, and taken again after it as far as possible."""
        os.ftruncate(self._file, 0)
        try:
            yield
        finally:
            self._take()

    def close(self) -> None:
        """Let the file go; the room stays taken for the next start."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
