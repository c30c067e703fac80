"""The few numbers that the outbox must know when its database cannot say them.

They stand in a file of fixed size that is written in place, in two alternating slots with a checksum each:
this works on a full disk, and a write that was cut short leaves the slot before it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

__all__ = ["Marks", "boot_check"]


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

    def write(self, *, sync: bool = False) -> None:
        """Write the other slot; with `sync`, wait until the disk has it."""
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
        if sync:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Let the file go; calling it twice does no harm."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
