"""Files next to the outbox that let it survive a full disk, damage and power cuts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

RESERVED_NUMBERS = 1024
"""Reserved by one write of the marks. After damage, at most this many unused numbers are reported lost."""


def boot_check() -> int:
    """Return a number that changes with each boot; 0 where the system has no boot id."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return 0
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


class Marks:
    """Numbers that are needed when the database cannot supply them.

    The file has a fixed size and is written in place, in two alternating slots with a checksum each: this
    works on a full disk, and an incomplete write leaves the other slot intact.

    Attributes:
        generation: counts the writes; the database holds the generation whose range it has recorded.
        reserved: no number above this one was ever given out.
        floor: every number up to this one was settled: acknowledged, parked or dropped.
        first, last: range of numbers that could not be written and is not in the database yet; 0, 0 for none.
        key_check: identifies the key of the database; 0 for none.
        boot: identifies the boot of the last write.
    """

    _FIELDS = ("generation", "reserved", "floor", "first", "last", "key_check", "boot")
    _FORMAT = struct.Struct("<8sQQQQQQQ")
    _MAGIC = b"edgemrk1"
    _SLOT = 512

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = self.reserved = self.floor = self.first = self.last = self.key_check = self.boot = 0
        self._reserve_from = 0
        self._unsynced = False
        self._file = -1

    def open(self) -> None:
        """Read the newer valid slot; create the file where there is none."""
        self._reserve_from = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size < 2 * self._SLOT:
            os.pwrite(self._file, bytes(2 * self._SLOT), 0)
            os.fsync(self._file)
        for slot in range(2):
            raw = os.pread(self._file, self._FORMAT.size + 4, slot * self._SLOT)
            body, check = raw[:-4], raw[-4:]
            if zlib.crc32(body).to_bytes(4, "little") == check and body.startswith(self._MAGIC):
                values = self._FORMAT.unpack(body)[1:]
                if values[0] >= self.generation:
                    for name, value in zip(self._FIELDS, values, strict=True):
                        setattr(self, name, value)

    def write(self) -> None:
        """Write the other slot; `sync` waits for the disk."""
        self.generation += 1
        body = self._FORMAT.pack(self._MAGIC, *(getattr(self, name) for name in self._FIELDS))
        check = zlib.crc32(body).to_bytes(4, "little")
        os.pwrite(self._file, body + check, self.generation % 2 * self._SLOT)

    def sync(self) -> None:
        """Wait until the last write is on the disk."""
        if self._file >= 0:
            os.fdatasync(self._file)

    def reserve(self, seq: int) -> None:
        """Reserve this number; so early that `sync_reserved` comes before its use."""
        if seq > self._reserve_from:
            self.reserved = seq + RESERVED_NUMBERS
            self.write()
            self._reserve_from = seq + RESERVED_NUMBERS // 2
            self._unsynced = True

    def sync_reserved(self) -> None:
        """Write the reservation to the disk, for the case of a power cut. Blocks the calling thread only."""
        if self._unsynced:
            self._unsynced = False
            with contextlib.suppress(OSError):
                self.sync()

    def release(self, last: int) -> None:
        """Give up the reservation of numbers above `last`, at the end."""
        self.reserved = last
        with contextlib.suppress(OSError):
            self.write()
            self.sync()

    def note_unwritten(self, seq: int) -> None:
        """Record that an event could not be written."""
        self.first = self.first or seq
        self.last = seq
        self.write()

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Reserve:
    """Disk space that is kept allocated until no other is left: even a deletion needs space in SQLite's log.

    `size` is in bytes; less where the disk had less than eight times as much free when it was opened.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._file = -1

    def open(self) -> None:
        """Allocate the space, as far as there is any."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        left = os.statvfs(self.path.parent)
        self.size = max(os.fstat(self._file).st_size, min(self.size, left.f_bavail * left.f_frsize // 8))
        self._allocate()

    def _allocate(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full: what was free stays allocated
            os.posix_fallocate(self._file, 0, max(self.size, 1))

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Free the space inside the block; allocate it again afterwards as far as possible."""
        os.ftruncate(self._file, 0)
        try:
            yield
        finally:
            self._allocate()

    def close(self) -> None:
        """Close the file; the space stays allocated for the next start."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
