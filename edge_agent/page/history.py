"""The state of the agent: its newest status document, and its figures of the last hours."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.core.errors import EdgeAgentError
from edge_agent.health.inquiry import SOCKET_NAME, read_status

INTERVAL_S = 10.0
FRESH_S = 2.0
KEPT_S = 6 * 3600.0
"""Of figures."""
FIGURES = (
    "hottest_c",
    "power_total_w",
    "cpu_percent",
    "gpu_percent",
    "crops_per_s",
    "outbox_rows",
    "governor_step",
    "process_memory_bytes",
    "people_present",
)
"""Fields of the telemetry that are charted."""


@dataclass(slots=True)
class History:
    """Reads the status of the agent every `INTERVAL_S`, while `follow` runs."""

    state: Path
    status: dict[str, Any] | None = None
    """None: no agent runs."""
    problem: str = ""
    _read_at: float = -FRESH_S
    _samples: deque[tuple[float, list[float | None]]] = field(
        default_factory=lambda: deque(maxlen=int(KEPT_S / INTERVAL_S))
    )

    async def follow(self) -> None:
        """Read until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(INTERVAL_S)

    async def fresh(self) -> None:
        """Read the status now, unless it was read within two seconds; adds no figures."""
        if time.monotonic() - self._read_at > FRESH_S:
            await self._read()

    async def read(self) -> None:
        """Read the status once, and add its figures."""
        await self._read()
        telemetry = (self.status or {}).get("telemetry") or {}
        self._samples.append((round(time.time(), 1), [_figure(telemetry, name) for name in FIGURES]))

    async def _read(self) -> None:
        self._read_at = time.monotonic()
        try:
            self.status = await asyncio.to_thread(read_status, self.state / SOCKET_NAME)
            self.problem = ""
        except EdgeAgentError as problem:
            self.status, self.problem = None, str(problem)

    def series(self, most: int = 360) -> dict[str, Any]:
        """Return the figures by name, at most `most` of them, evenly taken; None where there is none."""
        step = max(1, -(-len(self._samples) // most))
        taken = list(self._samples)[::-step][::-1]
        columns = {name: [row[at] for _, row in taken] for at, name in enumerate(FIGURES)}
        return {"times": [at for at, _ in taken], "figures": columns}


def _figure(telemetry: Mapping[str, Any], name: str) -> float | None:
    value = telemetry.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
