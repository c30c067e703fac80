"""Supplies an engine with its plan: from the store, else by a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from edge_agent.core.errors import EngineError
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.plans.records import Order, StoredPlan
from edge_agent.engine.plans.store import PlanStore
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt.builder import Progress, build_plan, check_disk, ignore_progress
from edge_agent.engine.tensorrt.recipe import BuildOptions, order_for, this_machine

_log = structlog.get_logger(__name__)


class PlanBuilder:
    """Finds or builds the plan of a network. Used on the thread of the GPU, with its context current.

    `conditions` is called after a build; it returns facts of the device to record: power mode, clocks.

    Attributes:
        scales: ranges that TensorRT found in a build of this object; None when it did not search for any.
    """

    def __init__(
        self,
        store: PlanStore,
        prepared: PreparedGraph,
        options: BuildOptions,
        *,
        progress: Progress = ignore_progress,
        conditions: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._store = store
        self._prepared = prepared
        self._options = options
        self._progress = progress
        self._conditions = conditions
        self._rebuilt = False
        self.scales: Scales | None = None

    def order(self) -> Order:
        """Return the order of the plan on this machine; errors as in `this_machine` and `choose_flags`."""
        return order_for(self._prepared, self._options, this_machine())

    def plan(self) -> StoredPlan:
        """Return the stored plan, else build one, which takes minutes; errors as in `build_plan`."""
        order = self.order()
        return self._store.find(order) or self._build(order)

    def rejected(self, plan: StoredPlan, why: str) -> StoredPlan:
        """Move an unusable plan to the quarantine and return a new one; EngineError the second time."""
        self._store.quarantine(plan.key, why)
        if self._rebuilt:
            where = self._store.folder / "quarantine"
            raise EngineError(
                f"the engine was built again and cannot be used either: {why}. The plan is in {where}"
            )
        self._rebuilt = True
        return self.plan()

    def _build(self, order: Order) -> StoredPlan:
        check_disk(self._store.folder, len(self._prepared.onnx))
        with self._store.building(lambda: self._progress("waiting for another build", 0, 0)):
            if (found := self._store.find(order)) is not None:
                return found  # another process built it meanwhile
            timing = self._store.read_timing(order.machine)
            built = build_plan(self._prepared, self._options, timing=timing, progress=self._progress)
            self.scales = built.scales
            if built.timing:
                self._store.write_timing(order.machine, built.timing)
            facts = {"model": self._prepared.name, **built.facts, **self._conditions()}
            stored = self._store.put(order, built.data, facts)
        _log.info(
            "engine_built", model=self._prepared.name, key=order.key, bytes=len(built.data), **built.facts
        )
        return stored
