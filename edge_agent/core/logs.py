"""Logging in one of three forms: text, JSON, or JSON with the priority prefix of the journal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from edge_agent.core.redaction import redact
from edge_agent.core.text import shortened, visible

if TYPE_CHECKING:
    from edge_agent.core.setting_types import LogFormat

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
"""syslog(3) priorities, which the journal reads from `<N>` at the start of a line (sd-daemon(3))."""
_NO_TEXT = (int, float, type(None))
"""Types of values that stay as they are; bool is an int."""
_LONGEST, _LONGEST_STACK = 4_000, 8_000
"""Characters of a value, and of a stack of calls."""


def configure(
    level: str = "info",
    stream: TextIO | None = None,
    *,
    form: LogFormat = "auto",
    always: Mapping[str, str] | None = None,
    secrets: Collection[str] = (),
) -> None:
    """Send logs from `level` on to `stream`, standard error when None; `always` are fields of every line.

    `form` is `LogFormat`. Addresses in texts are shown as `core.redaction` does, and `secrets` are masked.
    """
    facts = dict(always or {})
    out = stream if stream is not None else sys.stderr
    form = _form_of(out) if form == "auto" else form
    text = form == "text"
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        lambda _logger, _name, line: {**line, **facts},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text),
    ]
    processors += [structlog.processors.format_exc_info, partial(_hidden, secrets), _bounded]
    if text:
        processors += [_shown, structlog.dev.ConsoleRenderer(colors=out.isatty())]
    else:
        processors += [structlog.processors.JSONRenderer()] + ([_prefixed] if form == "journald" else [])
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Printer(out),
        cache_logger_on_first_use=False,
    )


class _Printer(structlog.PrintLogger):
    """Writes lines; one that cannot be written is lost, since neither a full disk nor a closed pipe may end
    the thread that reports something.
    """

    def msg(self, message: str) -> None:
        """Write a line."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _form_of(out: TextIO) -> LogFormat:
    """Return the format for a stream; systemd names the journal's device and inode (systemd.exec(5))."""
    if out.isatty():
        return "text"
    try:
        found = os.fstat(out.fileno())
    except (OSError, ValueError):  # closed, or in memory
        return "json"
    ours = f"{found.st_dev}:{found.st_ino}"
    return "journald" if os.environ.get("JOURNAL_STREAM") == ours else "json"


def _hidden(secrets: Collection[str], _logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    return {key: _hide(value, secrets) for key, value in line.items()}


def _hide(value: Any, secrets: Collection[str]) -> Any:  # noqa: ANN401 - any value of a log
    if isinstance(value, _NO_TEXT):
        return value
    if isinstance(value, Mapping):
        return {_hide(key, secrets): _hide(one, secrets) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(one, secrets) for one in value]
    text = str(value)
    hidden = redact(text, secrets)
    return value if hidden == text else hidden


def _bounded(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Shorten long texts: the journal splits a line beyond 48 KiB, and reads the rest as another."""
    return {
        key: _cut(value, _LONGEST_STACK if key == "exception" else _LONGEST) for key, value in line.items()
    }


def _cut(value: Any, longest: int) -> Any:  # noqa: ANN401 - any value of a log
    if isinstance(value, _NO_TEXT):
        return value
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= longest else shortened(text, longest)


def _shown(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Make texts visible for a terminal, a stack line by line."""
    shown: EventDict = {}
    for key, value in line.items():
        if key == "exception":
            shown[key] = "\n".join(map(visible, value.split("\n")))
        elif isinstance(value, _NO_TEXT):
            shown[key] = value
        else:
            shown[key] = visible(str(value))
    return shown


def _prefixed(_logger: WrappedLogger, name: str, line: EventDict) -> str:
    return f"<{_PRIORITY.get(name, 6)}>{line}"
