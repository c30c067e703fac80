"""Logging: text on a terminal, otherwise JSON with the priority prefix of the journal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
"""syslog(3) priorities, which the journal reads from `<N>` at the start of a line (sd-daemon(3))."""


def configure(
    level: str = "info", stream: TextIO | None = None, *, always: Mapping[str, str] | None = None
) -> None:
    """Send logs from `level` on to `stream`, standard error when None; `always` are fields of every line."""
    facts = dict(always or {})
    out = stream if stream is not None else sys.stderr
    terminal = out.isatty()
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        lambda _logger, _name, line: {**line, **facts},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if not terminal else "%H:%M:%S", utc=not terminal),
    ]
    if terminal:
        processors += [structlog.dev.ConsoleRenderer()]
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), _prefixed]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )


def _prefixed(_logger: WrappedLogger, name: str, line: EventDict) -> str:
    return f"<{_PRIORITY.get(name, 6)}>{line}"
