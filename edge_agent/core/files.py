"""Files that others wrote: opened without waiting, read up to a limit, and their JSON parsed within bounds.

A path may name anything: a pipe that nobody writes to, a device, a socket, a file that never ends, or a name
that is not text. Every file that the agent did not create itself is opened here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from edge_agent.core.errors import InputError, MissingFile
from edge_agent.core.text import visible

MAX_TEXT_BYTES = 1 << 20
"""Limit of configuration, password, key and label files, and of other short texts."""
MAX_JSON_BYTES = 4 << 20
"""Limit of cards, manifests, and files of the state folder."""

MAX_MODEL_BYTES = 2 << 30
"""Limit of networks, which protobuf sets, and of other files of weights."""
MAX_RESULT_BYTES = 8 << 30
"""Limit of files of embeddings."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_CHUNK_BYTES = 1 << 20
_LONGEST_INTEGER = 308
"""Digits of an integer that every float can hold."""
_Read = TypeVar("_Read", int, bytes)


def open_regular(path: Path | str, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading in binary; never waits, as for the writer of a pipe.

    `follow`: whether the last part of the path may be a symbolic link.

    MissingFile: there is no such file. InputError: it is not a regular file, this user may not read it, or
    the name cannot be used.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # Opening some devices has effects: /dev/watchdog restarts the machine.
        _require_regular(path, (Path(path).stat() if follow else Path(path).lstat()).st_mode)
        descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    except (OSError, ValueError) as problem:
        raise read_error(path, problem) from problem
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
        return io.BufferedReader(_NeverWaiting(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path | str, limit: int, *, follow: bool = True) -> bytes:
    """Read a regular file; errors as in `open_regular`. InputError: it has more than `limit` bytes."""
    with open_regular(path, follow=follow) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= limit else b""
            if size < len(data) <= limit:  # it grew, or its size is not stated, as in /proc
                data += file.read(limit + 1 - len(data))
        except OSError as problem:
            raise read_error(path, problem) from problem
    if max(size, len(data)) > limit:
        raise _too_large(path, limit)
    return data


def read_text(path: Path | str, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a regular file of UTF-8 text; errors as in `read_file`. InputError: it is not UTF-8."""
    try:
        return read_file(path, limit).decode()
    except UnicodeDecodeError as problem:
        raise InputError(
            f"cannot read {shown(path)}: it is not UTF-8 text (byte {problem.start}); save it as UTF-8"
        ) from problem


def read_json(path: Path | str, limit: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401 - JSON; callers check
    """Read a UTF-8 JSON file; errors as in `read_file` and `parse_json`."""
    return parse_json(read_file(path, limit), shown(path))


def read_object(path: Path | str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a UTF-8 JSON file that contains an object; errors as in `read_json`."""
    found = read_json(path, limit)
    if not isinstance(found, dict):
        raise InputError(f"{shown(path)}: expected a JSON object, got {type(found).__name__}")
    return found


def parse_json(data: bytes | str, where: str, *, unique: bool = False) -> Any:  # noqa: ANN401 - JSON; callers check
    """Parse JSON of bounded size; `where` begins the error message. With `unique`, no key may come twice.

    InputError: not JSON (with line and column), nested too deeply, a number that cannot be represented, NaN
    or infinity, or text that is not Unicode.
    """
    try:
        found = json.loads(
            data,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_representable,
            object_pairs_hook=_once if unique else None,
        )
        if (b"\\ud" if isinstance(data, bytes) else "\\ud") in data.lower():  # type: ignore[operator]
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as problem:
        raise InputError(
            f"{where} is not JSON: {problem.msg} at line {problem.lineno}, column {problem.colno}"
        ) from problem
    except RecursionError as problem:
        raise InputError(f"{where} is not usable JSON: it is nested too deeply") from problem
    except UnicodeDecodeError as problem:
        raise InputError(f"{where} is not JSON: it is not UTF-8 text") from problem
    except UnicodeEncodeError as problem:
        raise InputError(f"{where} is not usable JSON: it contains half a surrogate pair") from problem
    except ValueError as problem:
        raise InputError(f"{where} is not usable JSON: {problem}") from problem
    return found


def sha256_file(path: Path | str, limit: int = MAX_RESULT_BYTES) -> str:
    """Return the SHA-256 of a regular file as 64 hex digits; errors as in `read_file`."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            while size <= limit and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
                size = max(size, file.tell())
        except OSError as problem:
            raise read_error(path, problem) from problem
    if size > limit:
        raise _too_large(path, limit)
    return digest.hexdigest()


def open_to_write(path: Path | str, flags: int, mode: int) -> int:
    """Open a file for writing and return its descriptor; `flags` are added, `mode` is that of a new file.

    OSError with `ENXIO`, instead of a wait, where it is a pipe that nobody reads.
    """
    own = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(path, own | flags, mode)
    os.set_blocking(descriptor, True)
    return descriptor


def native_path(path: Path | str) -> str:
    """Return the path as a native library takes it: UTF-8 text, whatever the locale.

    OpenCV ends the process where a path cannot be encoded, and C ends a text at its first NUL.

    InputError: the name is not UTF-8, or contains NUL.
    """
    # A name from the command line is bytes in the locale's encoding, one from a file is text already.
    text = os.fspath(path)
    try:
        native = text if _is_unicode(text) else os.fsencode(text).decode()
    except ValueError:
        native = "\0"
    if "\0" in native:
        raise InputError(
            f"{shown(path)}: the name is not UTF-8 text, which the library that opens it needs; rename it"
        )
    return native


def shown(path: Path | str) -> str:
    r"""Return a path for messages and lists: one line; bytes that are no UTF-8, and controls, as `\xNN`."""
    text = os.fspath(path)
    if not _is_unicode(text):
        try:
            raw = text.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            raw = text.encode(errors="backslashreplace")
        text = raw.decode(errors="backslashreplace")
    return visible(text)


def read_error(path: Path | str, problem: Exception) -> InputError:
    """Return the error for a file that cannot be read; `problem` is a ValueError where its name is bad."""
    if isinstance(problem, OSError):
        kind = MissingFile if problem.errno in _MISSING else InputError
        reason = problem.strerror or str(problem)
        if problem.errno == errno.ELOOP:
            reason = "it is a symbolic link, or a circle of them"
        return kind(f"cannot read {shown(path)}: {reason}")
    if isinstance(problem, UnicodeEncodeError):
        reason = "this locale cannot express the name; set LC_ALL=C.UTF-8, or rename it"
        return InputError(f"cannot read {shown(path)}: {reason}")
    return InputError(f"cannot read {shown(path)}: its name contains NUL")


class _NeverWaiting(io.FileIO):
    """A file that has nothing to read now, as some of the kernel's, is an error; `io` returns None."""

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any writable buffer
        """Read into a buffer; BlockingIOError where nothing is there."""
        return self._required(cast("int | None", super().readinto(buffer)))

    def readall(self) -> bytes:
        """Read to the end; errors as in `readinto`."""
        return self._required(cast("bytes | None", super().readall()))

    def _required(self, found: _Read | None) -> _Read:
        if found is None:
            raise BlockingIOError(errno.EAGAIN, "there is nothing to read now, as in a pipe")
        return found


def _require_regular(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for fits, name in _KINDS if fits(mode)), "a symbolic link")
        raise InputError(f"cannot read {shown(path)}: it is {kind}, not a regular file; name a regular file")


def _too_large(path: Path | str, limit: int) -> InputError:
    return InputError(f"cannot read {shown(path)}: it is larger than {_size(limit)}, its limit")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {visible(twice, 40)!r} comes twice in an object")
    return found


def _representable(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"{text:.20} is too large")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.20} is too large")
    return value
