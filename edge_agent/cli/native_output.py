"""Masking of what native libraries write to standard error: FFmpeg repeats addresses with their logins."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from edge_agent.core.redaction import redact

_LONGEST_LINE = 8192
_END_S = 1.0
"""Wait for the last lines; processes that inherited the pipe may keep it open."""


@contextmanager
def masked_native_output(secrets: Collection[str]) -> Iterator[None]:
    """Pass lines that this process writes to descriptor 2 through `redact`. Without `secrets`, do nothing.

    Python's own `sys.stderr`, and with it log and stacks of a crash, is not delayed: it keeps the original
    stream.
    """
    sys.stderr.flush()
    if not secrets or not _is_descriptor(sys.stderr):
        yield
        return
    former, original = sys.stderr, os.dup(2)
    reading, writing = os.pipe()
    # A library that writes while it holds the interpreter must not wait for the thread below.
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(original, "w", buffering=1, errors="backslashreplace", closefd=False)
    thread = threading.Thread(target=_pass, args=(reading, original, secrets), name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)
        sys.stderr = former
        thread.join(_END_S)


def _is_descriptor(stream: object) -> bool:
    """Whether a stream writes to descriptor 2; a test may have replaced it."""
    try:
        return isinstance(stream, io.TextIOBase) and stream.fileno() == 2
    except (OSError, ValueError):
        return False


def _pass(reading: int, original: int, secrets: Collection[str]) -> None:
    with os.fdopen(reading, "rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            os.write(original, redact(line.decode(errors="replace"), secrets).encode(errors="replace"))
