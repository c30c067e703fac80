"""NumPy files (`.npy`, `.npz`) from elsewhere: header and size are checked before memory is taken.

`numpy.load` allocates what a header claims, evaluates the header as Python, and unpacks compressed members.
Here a header is matched by a pattern, must claim exactly the bytes that follow it, and has a limit; Python
objects (pickle) and compressed members are refused.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.files import open_regular, read_error

LARGEST_ARRAY = 4 << 30
"""Bytes of an array at most: 2 million embeddings of 512 numbers."""
MOST_NUMBERS = 65_536
"""Numbers in an embedding at most; networks in use give 64 to 12,288."""

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1024
"""Bytes; NumPy writes 118 for any array of plain numbers."""
_LONGEST_DIRECTORY = 1 << 20
"""Bytes of a ZIP file's directory: about 10,000 members."""
_CHUNK = 16 << 20
_ITEM = r"'(?:descr|fortran_order|shape)': *(?:'[^']*'|True|False|\([0-9L, -]*\)) *,? *"
_HEADER = re.compile(rf"\{{ *(?:{_ITEM}){{3}}\}} *\n?")
_KINDS = {"f": "floating point numbers", "i": "integers", "u": "unsigned integers", "U": "text"}

ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)
"""What `zipfile` raises for a damaged file."""

Shape = tuple["int | None", ...]
"""Sizes of axes, None for any."""


def read_array(handle: BinaryIO, size: int, name: str, *, kinds: str, shape: Shape) -> NDArray[Any]:
    """Read an array in NumPy's format from a stream of `size` bytes.

    `kinds` are the expected dtype kinds, such as `f` or `iu`; `shape` are the expected sizes, None for any.
    `name` precedes messages. The array has the byte order of the file.

    Raises:
        InputError: another format, kind or shape, larger than `LARGEST_ARRAY`, or cut off.
    """
    try:
        header = _read_header(handle)
        _check(header, kinds, shape, size - header.length)
        return _filled(handle, header)
    except (_UnusableError, OSError) as problem:
        raise InputError(f"{name} is not a usable NumPy array: {problem}") from problem


def load_array(path: Path, *, kinds: str, shape: Shape) -> NDArray[Any]:
    """Read an `.npy` file; errors as in `read_array`."""
    with _opened(path) as (handle, size):
        return read_array(handle, size, str(path), kinds=kinds, shape=shape)


def map_array(path: Path, *, kinds: str, shape: Shape) -> NDArray[Any]:
    """Map an `.npy` file of the agent's own into memory, read-only; errors as in `read_array`."""
    with _opened(path) as (handle, size):
        try:
            header = _read_header(handle)
            _check(header, kinds, shape, size - header.length, largest=size)
        except _UnusableError as problem:
            raise InputError(f"{path} is not a usable NumPy array: {problem}") from problem
    return np.memmap(path, header.dtype, "r", header.length, header.shape, order=header.order)


class ArrayArchive:
    """An open `.npz` file; see `open_archive`.

    Attributes:
        names: of its arrays.
    """

    def __init__(self, bundle: zipfile.ZipFile, path: Path) -> None:
        self._bundle, self._path = bundle, path
        self.names = tuple(name.removesuffix(".npy") for name in bundle.namelist())

    def read(self, name: str, *, kinds: str, shape: Shape) -> NDArray[Any]:
        """Read one array; InputError where it is missing, compressed, or as in `read_array`."""
        what = f"{self._path}: array {name!r}"
        if name not in self.names:
            raise InputError(f"{self._path} has no array {name}; it contains {', '.join(self.names)[:200]}")
        try:
            member = stored_member(self._bundle, f"{name}.npy")
            with self._bundle.open(member) as handle:
                return read_array(cast("BinaryIO", handle), member.file_size, what, kinds=kinds, shape=shape)
        except ZIP_ERRORS as problem:
            raise InputError(f"{what} cannot be read: {problem}; write it with numpy.savez") from problem


@contextmanager
def open_archive(path: Path) -> Iterator[ArrayArchive]:
    """Open an `.npz` file; InputError where it is none."""
    with _opened(path) as (handle, _):
        try:
            bundle = open_zip(handle)
        except ZIP_ERRORS as problem:
            raise InputError(f"{path} is not a NumPy archive, or damaged: {problem}") from problem
        with bundle:
            yield ArrayArchive(bundle, path)


def open_zip(handle: BinaryIO) -> zipfile.ZipFile:
    """Open a ZIP file whose directory has a sane size; one of `ZIP_ERRORS` where it has not.

    `zipfile` reads the whole directory and makes an object for each entry, ten times its bytes.
    """
    size = handle.seek(0, 2)
    handle.seek(max(0, size - (1 << 16) - 22))
    tail = handle.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < 22:
        raise zipfile.BadZipFile("File is not a zip file")
    (directory,) = struct.unpack_from("<L", tail, place + 12)
    if directory > _LONGEST_DIRECTORY or b"PK\x06\x07" in tail[max(0, place - 20) : place]:
        raise zipfile.BadZipFile("it has too many members")
    return zipfile.ZipFile(handle)


def stored_member(bundle: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Return a member that is not compressed; else one of `ZIP_ERRORS`."""
    member = bundle.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise zipfile.BadZipFile(f"{name} is compressed, so its size in memory is not limited")
    return member


def write_member(bundle: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a new member for writing, uncompressed.

    It has a fixed date: ZIP has none before 1980 or after 2107, and `zipfile` fails at the first clock that
    shows one.
    """
    return bundle.open(zipfile.ZipInfo(name), "w", force_zip64=True)


def write_arrays(handle: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an `.npz` file as `numpy.savez` does, but whatever the clock shows."""
    with zipfile.ZipFile(handle, "w") as bundle:
        for name, array in arrays.items():
            with write_member(bundle, f"{name}.npy") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


class _UnusableError(Exception):
    """What is wrong with an array."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What an array's header claims; `length` bytes precede its numbers."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Any  # "C" or "F"; numpy's stubs take literals only
    length: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        with open_regular(path) as handle:
            yield handle, os.fstat(handle.fileno()).st_size
    except OSError as problem:
        raise read_error(path, problem) from problem


def _read_header(handle: BinaryIO) -> _Header:
    start = handle.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6:8] not in {b"\x01\x00", b"\x02\x00", b"\x03\x00"}:
        raise _UnusableError("it does not begin as one")
    field = "<H" if start[6] == 1 else "<I"
    length_field = handle.read(struct.calcsize(field))
    if len(length_field) < struct.calcsize(field):
        raise _UnusableError("it is cut off")
    (length,) = struct.unpack(field, length_field)
    if length > _LONGEST_HEADER:
        raise _UnusableError(
            f"its header has {length:,} bytes, a plain array's has at most {_LONGEST_HEADER}"
        )
    content = handle.read(length)
    if len(content) < length:
        raise _UnusableError("it is cut off")
    text = content.decode("utf-8", "replace")
    if not _HEADER.fullmatch(text):
        raise _UnusableError(f"its header is not that of a plain array: {text[:100].strip()!r}")
    found = dict(re.findall(r"'(\w+)': *('[^']*'|True|False|\([^)]*\))", text))
    if len(found) != 3:
        raise _UnusableError("its header names something twice")
    sizes = found["shape"].strip("()").replace("L", "").split(",")
    order = "F" if found["fortran_order"] == "True" else "C"
    shape = tuple(_number(size) for size in sizes if size.strip())
    return _Header(_dtype(found["descr"].strip("'")), shape, order, 8 + len(length_field) + length)


def _number(text: str) -> int:
    if not re.fullmatch(r" *\d{1,19} *", text):
        raise _UnusableError(f"its header claims an axis of {text.strip()[:30]!r}")
    return int(text)


def _dtype(text: str) -> np.dtype[Any]:
    if not re.fullmatch(r"[<>|=]?[fiubUSO]\d{1,10}|\|O", text):
        raise _UnusableError(f"its values are of type {text[:40]!r}")
    try:
        return np.dtype(text)
    except (TypeError, ValueError) as problem:
        raise _UnusableError(f"its values are of type {text[:40]!r}") from problem


def _check(header: _Header, kinds: str, shape: Shape, left: int, *, largest: int = LARGEST_ARRAY) -> None:
    """Refuse another kind or shape than expected, and another size than the `left` bytes."""
    if header.dtype.kind == "O":
        raise _UnusableError("it contains Python objects (pickle), which are never loaded")
    if header.dtype.kind not in kinds or not header.dtype.itemsize:
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise _UnusableError(f"expected {wanted}, got {header.dtype}")
    fits = len(header.shape) == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(header.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise _UnusableError(f"expected the shape ({wanted}), got {header.shape}")
    if header.bytes != left:
        raise _UnusableError(f"its header claims {header.bytes:,} bytes of numbers, {left:,} follow")
    if header.bytes > largest:
        raise _UnusableError(f"it has {header.bytes:,} bytes, at most {largest:,} are read")


def _filled(handle: BinaryIO, header: _Header) -> NDArray[Any]:
    try:
        content = np.empty(header.bytes, np.uint8)
    except MemoryError as problem:
        raise _UnusableError(f"its {header.bytes:,} bytes do not fit in the memory") from problem
    place = 0
    while place < header.bytes:
        part = handle.read(min(_CHUNK, header.bytes - place))
        if not part:
            raise _UnusableError("it is cut off")
        content[place : place + len(part)] = np.frombuffer(part, np.uint8)
        place += len(part)
    return content.view(header.dtype).reshape(header.shape, order=header.order)
