"""The simulated detector of a whole-agent benchmark, on the device of the simulated ReID engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError
from edge_agent.detect.opening import MOST_TOGETHER, Detection, add_motion_gate
from edge_agent.detect.simulated import DetectorTable, SimulatedDetector, detector_table
from edge_agent.engine import is_simulated
from edge_agent.engine.base import Engine
from edge_agent.engine.simulated import TimedEngine
from edge_agent.offline.bench.load import PERIOD_S, Plan, TurningCamera
from edge_agent.offline.bench.stagetimes import DeviceWork


@dataclass(slots=True)
class SimulatedSearch:
    """Detection of a run: opened before the agent, entered by it.

    Attributes:
        stack: closes the detector.
    """

    plan: Plan
    settings: Settings
    table: DetectorTable
    stack: ExitStack
    _detector: SimulatedDetector | None = None

    @staticmethod
    def open(plan: Plan, settings: Settings, stack: ExitStack) -> SimulatedSearch | None:
        """Read the table of `plan.detector`; None where boxes are given.

        Raises:
            ConfigError: there is no such table, or the ReID engine is a real one.
            InputError: the file has no table of a detector.
        """
        if plan.detector is None:
            return None
        table = detector_table(plan.detector)
        if not is_simulated(settings.engine.backend):
            raise ConfigError(
                f"detector {plan.detector} shares the device of a simulated engine, and engine.backend is"
                f" {settings.engine.backend}: choose --engine simulated:orin-fp16, or leave --detector out"
            )
        return SimulatedSearch(plan, settings, table, stack)

    def enter(self, cameras: Sequence[TurningCamera], engine: Engine) -> Detection:
        """Return the detection, whose detector shares the device of this engine."""
        assert isinstance(engine, TimedEngine)  # `open` saw to it
        found = SimulatedDetector(self.table, engine.device, most=min(self.plan.cameras, MOST_TOGETHER))
        self._detector = found
        self.stack.enter_context(found)
        detection = Detection(
            found.begin_frames, lambda _: found.levels, found.name, lambda: found.engine.run_seconds
        )
        own = dict(zip((camera.id for camera in cameras), self.settings.sources, strict=True))
        return add_motion_gate(self.settings, detection, own, cameras)

    def work(self) -> DeviceWork:
        """Return what detector and device have done so far."""
        if self._detector is None:
            return DeviceWork()
        engine = self._detector.engine
        return DeviceWork(self._detector.searched, engine.runs, engine.device.seconds)

    def crops_per_second(self, rate: float) -> float:
        """Return the crops that the device takes if it also searches; `rate`: that of the ReID network alone.

        An estimate, since batches may not be full.
        """
        plan, latencies = self.plan, self.table.latencies
        searched = min(1.0, plan.busy + self.settings.motion.hold_s / PERIOD_S) if plan.motion else 1.0
        crops = plan.busy * plan.people
        together = min(self.table.most, plan.cameras)
        return crops / (crops / rate + searched / latencies.rate(together))

    @property
    def facts(self) -> dict[str, Any]:
        """What reports state about the detector, as JSON values."""
        table, latencies = self.table, self.table.latencies
        return {
            "name": f"simulated:{latencies.name}",
            "model": table.model,
            "kind": table.kind,
            "device": latencies.device,
            "precision": latencies.precision,
            "source": latencies.source,
            "input_size": [table.size[1], table.size[0]],
            "max_batch": table.most,
            "simulated": True,
        }
