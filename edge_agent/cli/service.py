"""What `run` and `demo` share: short-cuts over the configuration, and a clean stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent.errors import EdgeAgentError

if TYPE_CHECKING:
    from types import FrameType

    from edge_agent.config import Settings
    from edge_agent.daemon import Agent, Summary

_log = structlog.get_logger(__name__)


def overrides(
    *,
    source: Sequence[str] | None,
    detector: str | None,
    model: Path | None,
    preprocess: str | None,
    broker: str | None,
    state: Path | None,
) -> dict[str, Any]:
    """Short-cuts of the command line as nested settings; what was not given is left out."""
    values: dict[str, Any] = {}
    if source:
        values["sources"] = [{"url": url} for url in source]
    if detector is not None:
        values["detector"] = {"kind": detector}
    engine = {"model": model, "preprocess": preprocess}
    if chosen := {key: value for key, value in engine.items() if value is not None}:
        values["engine"] = chosen
    if broker is not None:
        values["mqtt"] = {"broker": None if broker == "none" else broker}
    if state is not None:
        values["state_dir"] = state
    return values


def run_until_stopped(agent: Agent, *, reload: Callable[[], Settings] | None = None) -> Summary:
    """Run with SIGINT and SIGTERM as a clean stop, and SIGHUP as a reload of the settings.

    A second SIGINT ends the process at once.
    """
    stop = threading.Event()
    agent.reread = reload

    def on_stop(number: int, _frame: FrameType | None) -> None:
        _log.info("stopping", signal=signal.Signals(number).name)
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_hangup(_number: int, _frame: FrameType | None) -> None:
        try:
            if reload is not None:
                agent.reload(reload())
        except EdgeAgentError as problem:
            _log.error("reload_refused", error=str(problem))

    former = {
        signal.SIGINT: signal.signal(signal.SIGINT, on_stop),
        signal.SIGTERM: signal.signal(signal.SIGTERM, on_stop),
        signal.SIGHUP: signal.signal(signal.SIGHUP, on_hangup),
    }
    try:
        return agent.run(stop)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
