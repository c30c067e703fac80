"""What native libraries write to standard error (FFmpeg, GStreamer, libjpeg) goes to the log."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import structlog

from edge_agent.core.reading import being_read
from edge_agent.core.redaction import redact
from edge_agent.deliver.pacing import TokenBucket

_log = structlog.get_logger(__name__)

_LONGEST_LINE = 8192
_END_S = 1.0
"""Wait for the last lines; processes that inherited the pipe may keep it open."""
_LINES_PER_S, _BURST = 0.1, 10
"""Lines that are logged; a damaged video gives thousands, and the rest are counted."""


@contextmanager
def logged_native_output(secrets: Collection[str]) -> Iterator[None]:
    """Log each line that this process writes to descriptor 2, with the files and sources that are read.

    FFmpeg repeats addresses with their logins: lines pass `redact`, and `secrets` are masked. Python's
    own `sys.stderr`, and with it log and stacks of a crash, is not delayed: it keeps the original stream.
    """
    with contextlib.suppress(OSError):  # a full disk, or a closed pipe
        sys.stderr.flush()
    if not _is_descriptor(sys.stderr):
        yield
        return
    former, original = sys.stderr, os.dup(2)
    reading, writing = os.pipe()
    # A library that writes while it holds the interpreter must not wait for the thread below.
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(original, "w", buffering=1, errors="backslashreplace", closefd=False)
    thread = threading.Thread(target=_pass, args=(reading, secrets), name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a full disk, or a closed pipe
            sys.stderr.flush()
        os.dup2(original, 2)
        thread.join(_END_S)
        sys.stderr = former


def _is_descriptor(stream: object) -> bool:
    """Whether a stream writes to descriptor 2; a test may have replaced it."""
    try:
        return isinstance(stream, io.TextIOBase) and stream.fileno() == 2
    except (OSError, ValueError):
        return False


def _pass(reading: int, secrets: Collection[str]) -> None:
    allowance, omitted = TokenBucket(_LINES_PER_S, _BURST), 0
    with os.fdopen(reading, "rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            text = redact(line.decode(errors="replace").strip(), secrets)
            if not text:
                continue
            if not allowance.take():
                omitted += 1
                continue
            more = {"omitted": omitted} if omitted else {}
            _log.warning("library_message", text=text, reading=being_read(), **more)
            omitted = 0
    if omitted:
        _log.warning("library_messages_omitted", omitted=omitted)
