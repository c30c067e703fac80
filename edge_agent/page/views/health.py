"""The view Health: state and figures of the device and the agent, and the findings of `doctor`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.page.api import Call, Endpoint
from edge_agent.page.errors import Refused

DOCTOR_S = 180.0
"""Longest run of `doctor`."""
REST_S = 30.0
"""Between two runs."""
LONGEST_OUTPUT = 1 << 20


async def health(call: Call) -> object:
    """Return the status of the agent, the series of its figures, and the findings of `doctor`, if it ran."""
    history = call.page.history
    await history.fresh()
    return {
        "status": history.status,
        "problem": history.problem,
        "info": call.page.events.info,
        "series": history.series(),
        "doctor": call.page.doctor.shown(),
    }


async def doctor(call: Call) -> object:
    """Run `doctor`; return its findings."""
    await call.page.doctor.run()
    return call.page.doctor.shown()


@dataclass(slots=True)
class Doctor:
    """Runs `edge-agent doctor` as a process of its own, one at a time, and keeps its findings."""

    config: Path | None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _findings: list[dict[str, Any]] | None = None
    _at: float | None = None
    """When it ended, Unix seconds."""

    def shown(self) -> dict[str, Any]:
        """Return the findings, and when they were made."""
        return {"running": self._lock.locked(), "at": self._at, "findings": self._findings}

    async def run(self) -> None:
        """Run it, unless it ran just now; Refused: it runs already, or fails."""
        if self._lock.locked():
            raise Refused(409, "busy", "doctor runs already")
        if self._at is not None and time.time() - self._at < REST_S:
            return
        async with self._lock:
            self._findings = await self._examine()
            self._at = round(time.time(), 1)

    async def _examine(self) -> list[dict[str, Any]]:
        words = [sys.executable, "-m", "edge_agent", "doctor", "--json"]
        words += ["--config", str(self.config)] if self.config is not None else []
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=_gently,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), DOCTOR_S)
            found = json.loads(output[:LONGEST_OUTPUT])["findings"]
        except asyncio.TimeoutError:
            raise Refused(504, "doctor-slow", f"doctor took longer than {DOCTOR_S:.0f} s") from None
        except (ValueError, KeyError, TypeError):
            raise Refused(
                500, "doctor-failed", "doctor failed; run `edge-agent doctor` in a terminal"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return list(found)


def _gently() -> None:
    os.nice(10)


ENDPOINTS = (
    Endpoint("GET", "/api/health", "viewer", health),
    Endpoint("POST", "/api/health/doctor", "operator", doctor),
)
