"""Watch of the engine: an inference server that is away makes the agent degraded, and raises an alert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agent.core.alerts import AlertKind
from edge_agent.core.events import alert_event

if TYPE_CHECKING:
    from edge_agent.agent.stages import Stages


@dataclass(slots=True)
class EngineWatch:
    """Reports `Engine.problem` while it is entered."""

    stages: Stages
    _active: bool = False

    def __enter__(self) -> EngineWatch:
        engine = self.stages.embedder.engine
        engine.on_problem = self._report
        if engine.problem:
            self._report(engine.problem)
        return self

    def __exit__(self, *_: object) -> None:
        self.stages.embedder.engine.on_problem = str

    def _report(self, problem: str) -> None:
        server = self.stages.embedder.info.device
        reason = f"no embeddings from {server}: {problem}" if problem else ""
        self.stages.health.note("engine", reason)
        if bool(problem) == self._active:
            return
        self._active = bool(problem)
        event = alert_event(
            AlertKind.ENGINE_LOST,
            reason or f"{server} gives embeddings again",
            active=self._active,
            time=self.stages.clock.label(),
            details={"server": server, "reason": problem or None},
        )
        self.stages.publisher.publish(event)
