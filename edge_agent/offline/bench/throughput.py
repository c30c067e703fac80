"""Throughput of the whole agent: from frames in memory to events that a broker has acknowledged.

The run is the daemon's own, with its stages; only its sources differ: cameras that turn over a
rendered street and deliver the boxes, as an upstream detector does. Measured are all stages after detection:
cut, resize and pack crops, engine, tracking, identification against a full gallery, outbox and delivery.
Cameras are live: a frame that is not read in time is lost.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edge_agent.agent.daemon import Agent, Supply
from edge_agent.core.config import Settings
from edge_agent.core.errors import EngineError
from edge_agent.core.loading import state_folder
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import ScoreLevels
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.detect.opening import Detection
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import is_simulated, open_simulated
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.engine.models import choose_model
from edge_agent.offline.bench.environment import fill_gallery
from edge_agent.offline.bench.load import Plan, given_detections, make_cameras, make_streets, packed_crops
from edge_agent.offline.bench.pipeline_report import document
from edge_agent.offline.bench.speed import rate_alone
from edge_agent.offline.bench.stagetimes import Span, StageClock
from edge_agent.offline.bench.window import Arrivals, Window
from edge_agent.offline.synthetic.panorama import Panorama

if TYPE_CHECKING:
    from edge_agent.embed.embedder import Embedder

__all__ = ["measure"]

ACKNOWLEDGE_S = 5.0
"""Longest wait, at the end, for the broker and the subscriber."""

_LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)


def measure(
    plan: Plan,
    settings: Settings,
    *,
    broker: tuple[str, str],
    began: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], list[Span]]:
    """Run the agent; return the result as JSON values and, with `plan.trace`, the working times of stages.

    Args:
        plan: load and length.
        settings: engine, quality, tracker, identify; `state_dir` is an empty folder.
        broker: address and name.
        began: called when the measurement begins, after the warm-up.

    Raises:
        EngineError: the run ended before the measurement did.
    """
    own = _settings(plan, settings, broker[0])
    embedder = open_embedder(own.engine, own.quality, state_folder(own.state_dir))
    info = embedder.info
    fill_gallery(own, info, plan.identities, plan.exemplars)
    streets = make_streets(plan)
    limits = [_engine_limit(own, embedder, streets)]
    fps = plan.fps or plan.load * limits[0] / (plan.cameras * plan.people)
    over = threading.Event()
    connection = BrokerSettings.of(own.mqtt)
    with ExitStack() as stack:
        subscriber = stack.enter_context(Subscriber(connection, ("edge/v1/#",), limit=100_000))
        arrivals = stack.enter_context(Arrivals(subscriber))
        window = Window(plan, StageClock(), over, arrivals, began=began)
        agent = Agent(own, observe=window, heartbeat=window.clock)
        agent.supply = Supply(
            make_cameras(plan, streets, fps, over),
            Detection(given_detections, lambda _: _LEVELS, "given", lambda: 0.0),
        )
        window.agent = agent
        agent.run(threading.Event())
        final = agent.tally()
        _await_arrivals(arrivals, final.acknowledged if final is not None else 0)
    if window.begin is None or window.end is None or final is None:
        raise EngineError("the run ended before the measurement did; the log says why")
    if not is_simulated(own.engine.backend):
        limits.append(_engine_limit(own, embedder, streets))
    result = document(plan, own, info, window, statistics.fmean(limits), fps, final)
    result["broker"] = broker[1]
    result["events_received"] = arrivals.received
    spans = [*(window.clock.spans or []), *window.batch_spans]
    return result, spans


def _settings(plan: Plan, settings: Settings, broker: str) -> Settings:
    """The settings with the benchmark's cameras, broker and gallery size."""
    return Settings.model_validate(
        {
            **settings.model_dump(),
            "sources": [
                {"id": f"cam{number + 1}", "url": f"turning:{number}"} for number in range(plan.cameras)
            ],
            "mqtt": {"broker": broker, "site": "bench", "device": "bench"},
            "gallery": {**settings.gallery.model_dump(), "capacity": plan.identities + 10_000},
        }
    )


def _engine_limit(settings: Settings, embedder: Embedder, streets: list[Panorama]) -> float:
    """Images per second of the network alone with full batches: from its table, or measured on crops."""
    engine = settings.engine
    if is_simulated(engine.backend):
        return open_simulated(engine.backend, max_batch=1).table.rate(engine.max_batch)
    profile = profile_named(choose_model(engine, settings.state_dir).preprocess)
    crops = packed_crops(streets, embedder.info.max_batch, embedder.engine.input_size, profile)
    return rate_alone(embedder, crops, seconds=5.0)


def _await_arrivals(arrivals: Arrivals, wanted: int) -> None:
    """Wait until the subscriber has received all events."""
    deadline = time.monotonic() + ACKNOWLEDGE_S
    while arrivals.received < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
