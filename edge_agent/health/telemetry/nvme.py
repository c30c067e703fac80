"""Wear of an NVMe disk, from its SMART log; the kernel requires CAP_SYS_ADMIN."""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path

__all__ = ["percentage_used", "used_of_log", "whole_disk"]

_ADMIN_COMMAND = 0xC0484E41
"""`NVME_IOCTL_ADMIN_CMD`: _IOWR('N', 0x41, struct nvme_passthru_cmd), linux/nvme_ioctl.h; 72 bytes."""

_GET_LOG_PAGE = 0x02
_SMART = 0x02
_ALL_NAMESPACES = 0xFFFFFFFF
_LOG_BYTES = 512
_USED_AT = 5
"""NVM Express Base Specification, SMART / Health Information log: byte 5 is Percentage Used, 255 at most."""


class _Command(ctypes.Structure):
    """`struct nvme_passthru_cmd`."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("rsvd1", ctypes.c_uint16),
        ("nsid", ctypes.c_uint32),
        ("cdw2", ctypes.c_uint32),
        ("cdw3", ctypes.c_uint32),
        ("metadata", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("metadata_len", ctypes.c_uint32),
        ("data_len", ctypes.c_uint32),
        ("cdw10", ctypes.c_uint32),
        ("cdw11", ctypes.c_uint32),
        ("cdw12", ctypes.c_uint32),
        ("cdw13", ctypes.c_uint32),
        ("cdw14", ctypes.c_uint32),
        ("cdw15", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
    )


def whole_disk(root: Path, number: int) -> str | None:
    """Return the NVMe controller (`nvme0`) of a file system by device number; None for other disks."""
    block = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    parts = block.resolve().parts if block.exists() else ()
    return next((part for part in parts if part.startswith("nvme") and part[4:].isdecimal()), None)


def percentage_used(controller: str, devices: Path = Path("/dev")) -> float | None:
    """Return the used percentage of the rated life, may exceed 100; None where it cannot be read."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    command = _Command(
        opcode=_GET_LOG_PAGE,
        nsid=_ALL_NAMESPACES,
        addr=ctypes.addressof(log),
        data_len=_LOG_BYTES,
        cdw10=_SMART | (_LOG_BYTES // 4 - 1) << 16,
        timeout_ms=1000,
    )
    try:
        descriptor = os.open(devices / controller, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = fcntl.ioctl(descriptor, _ADMIN_COMMAND, command)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return used_of_log(log.raw) if status == 0 else None


def used_of_log(log: bytes) -> float | None:
    """Return Percentage Used of a SMART log of 512 bytes; None for an empty log."""
    return float(log[_USED_AT]) if len(log) == _LOG_BYTES and any(log) else None
