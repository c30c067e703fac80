"""Alerts of the supervisor."""

from __future__ import annotations

import time
from collections.abc import Mapping

from edge_agent.core.events import Event, alert_event
from edge_agent.health.starts import Run


def crash_alert(run: Run) -> Event:
    """Alert that the previous run crashed."""
    reason = f": {run.words}" if run.words else ""
    return alert_event(
        "run_crashed",
        f"the previous run crashed: {run.how}{reason}",
        time=time.time(),
        details={"how": run.how, "words": run.words or None, "began": run.began},
    )


def crash_loop_alert(reason: str) -> Event:
    """Alert of a crash loop; "": it is over."""
    message = f"{reason}; starts are delayed until a run is stable: see the log of the earlier runs"
    return alert_event(
        "crash_loop",
        message if reason else "the agent is stable again",
        severity="critical",
        active=bool(reason),
        time=time.time(),
    )


def memory_alert(trouble: str, resident_bytes: int) -> Event:
    """Alert of excessive memory; "": it is over."""
    return alert_event(
        "memory_growth",
        trouble or "memory is normal again",
        active=bool(trouble),
        time=time.time(),
        details={"resident_bytes": resident_bytes},
    )


def stuck_alert(stuck: Mapping[str, str]) -> Event:
    """Alert of stuck stages, with a message for each; empty: none is stuck any more."""
    message = "; ".join(stuck.values()) + "; the service manager restarts the agent unless it recovers"
    return alert_event(
        "stage_stuck",
        message if stuck else "no stage is stuck any more",
        severity="critical",
        active=bool(stuck),
        time=time.time(),
        details={"stages": ",".join(sorted(stuck)) or None},
    )
