"""The run of the demonstration: agent, broker and subscriber, and the result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.agent.daemon import Agent, Outputs, Summary
from edge_agent.core.config import SourceSettings
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.deliver.topics import PREFIX
from edge_agent.detect.opening import open_detection
from edge_agent.engine.models import choose_model
from edge_agent.offline.demo.screen import Screen
from edge_agent.offline.demo.street import Recorder, Scene, percentiles, score

if TYPE_CHECKING:
    from rich.console import Console

    from edge_agent.core.config import Settings

__all__ = ["DEVICE", "check", "run"]

DEVICE = "demo"
"""Site and device of the demo's topics."""


def check(settings: Settings, folder: Path) -> None:
    """Check the settings before anything is rendered.

    Raises:
        EdgeAgentError: the model or the detector cannot be used.
    """
    choose_model(settings.engine, folder)
    with ExitStack() as stack:
        open_detection(settings, stack, cameras={DEVICE: None})


def run(
    settings: Settings,
    scene: Scene | None,
    folder: Path,
    console: Console,
    run_agent: Callable[[Agent], Summary],
) -> dict[str, Any]:
    """Run the agent with a subscriber at its broker until the videos end or it is stopped.

    Args:
        settings: with a broker.
        scene: the rendered street, which is scored; None: the sources of the settings.
        folder: for the events.
        console: shows the events.
        run_agent: runs the agent on the main thread.

    Returns:
        The result as JSON values.
    """
    if scene is not None:
        fps = scene.street.fps
        sources = tuple(SourceSettings(id=v.camera, url=str(v.video), fps=fps) for v in scene.videos)
        settings = settings.model_copy(update={"sources": sources})
    recorder = Recorder(boxes=scene is not None)
    agent = Agent(settings, Outputs(folder / "events.jsonl"), observe=recorder)
    broker = BrokerSettings.of(settings.mqtt)
    with (
        Subscriber(broker, (f"{PREFIX}/{DEVICE}/{DEVICE}/#",)) as subscriber,
        Screen(subscriber, recorder, console, scene.frames if scene is not None else None) as screen,
    ):
        summary = run_agent(agent)
        screen.wait_for(sum(recorder.kinds.values()))
    return _result(scene, recorder, screen, summary)


def _result(scene: Scene | None, recorder: Recorder, screen: Screen, summary: Summary) -> dict[str, Any]:
    complete = scene is None or recorder.frames == scene.frames
    judged = score(scene, recorder) if scene is not None and complete else None
    delays = [1e3 * max(at - recorder.decided[key], 0.0) for key, at in screen.arrived.items()]
    tracks = recorder.tracks_of()
    info = screen.info
    return {
        "model": info.model.name if info else None,
        "trained": info.model.name != "colour-stripes" if info else None,
        "detector": info.detector if info else None,
        "complete": complete,
        **(asdict(judged) if judged is not None else {"identities": len(tracks)}),
        "seen_again": sum(count > 1 for count in tracks.values()),
        "decisions": dict(recorder.kinds),
        "events_received": len(screen.arrived),
        "frames": recorder.frames,
        "crops": summary.crops,
        "seconds": round(summary.seconds, 2),
        "crops_per_s": round(summary.crops / max(summary.seconds, 1e-9), 1),
        "network_crops_per_s": round(summary.crops / max(summary.engine_seconds, 1e-9), 1),
        "latency_ms": _pair(percentiles(recorder.latency_ms)),
        "delivery_ms": _pair(percentiles(delays)),
    }


def _pair(values: tuple[float, float] | None) -> dict[str, float] | None:
    return None if values is None else {"p50": round(values[0], 1), "p95": round(values[1], 1)}
