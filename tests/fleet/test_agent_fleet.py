"""An agent that takes part in a fleet: it shares whom it enrols, follows the site, and never waits for it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome
from edge_agent.agent.stages import Supply
from edge_agent.core.loading import load
from edge_agent.core.structures import Detections, Frame, ScoreLevels
from edge_agent.detect.opening import Detection
from edge_agent.detect.search import one_by_one
from edge_agent.fleet.records import Push
from edge_agent.gallery import audit
from edge_agent.offline.replay.recording import Recording
from edge_agent.offline.replay.run import replay
from edge_agent.record.recorder import FOLDER
from tests.agent.test_agent import wait_for
from tests.fleet.memory_store import MemorySite

HEIGHT, WIDTH = 480, 640
BOX = np.array([[250, 60, 390, 440]], np.float32)


@dataclass
class Camera:
    """Shows one person, who looks like the colours of `seed`; nobody while `away`."""

    id: str
    seed: int = 1
    away: bool = False
    live: bool = True
    ends: bool = False
    stall_seconds: float | None = None
    began: threading.Event = field(default_factory=threading.Event)

    def frames(self) -> Generator[Frame, None, None]:
        self.began.set()
        number = 0
        while True:
            number += 1
            time.sleep(0.02)
            yield Frame(self.id, number, time.time(), self.picture(number))

    def picture(self, number: int) -> np.ndarray:
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        if not self.away:
            colours = np.random.default_rng(self.seed).integers(0, 255, (8, 3))
            noise = np.random.default_rng(number).integers(-20, 20, (380, 140, 3))
            person = np.repeat(colours, 48, axis=0)[:380, None] + noise
            image[60:440, 250:390] = np.clip(person, 0, 255)
        return image


def detection(camera: Camera) -> Detection:
    def people(_: np.ndarray) -> Detections:
        return Detections.none() if camera.away else Detections(BOX, np.array([0.9], np.float32))

    return Detection(one_by_one(people), lambda _: ScoreLevels(0.1, 0.5, 0.5), "stub", lambda: 0.0)


@dataclass
class Running:
    agent: Agent
    camera: Camera
    outcomes: list[tuple[float, FrameOutcome]]
    stop: threading.Event
    state: Path

    @property
    def people(self) -> list[str]:
        assert self.agent.stages is not None
        return [one.id for one in self.agent.stages.gallery.identities()]

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.state / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def running(
    folder: Path, site: MemorySite, device: str, *, away: bool = False, **sections: Any
) -> Iterator[Running]:
    state = folder / device
    values = {
        "state_dir": state,
        "sources": [{"url": "memory.avi", "id": "door"}],
        "engine": {"model": "colour-stripes", "threads": 1},
        "mqtt": {"device": device},
        "telemetry": {"interval_s": 0.5},
        "fleet": {"enabled": True, "store": "postgresql://a@127.0.0.1:1/b", "sync_s": 0.1},
        **sections,
    }
    camera, stop, outcomes = Camera("door", away=away), threading.Event(), []
    agent = Agent(
        load(None, values),
        Outputs(events=state / "events.jsonl"),
        observe=lambda outcome: outcomes.append((time.monotonic(), outcome)),
        supply=Supply([camera], detection(camera), store=site.store(device)),
    )
    failures: list[BaseException] = []

    def run() -> None:
        try:
            agent.run(stop)
        except BaseException as failure:
            failures.append(failure)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        wait_for("the first frame", lambda: outcomes or failures)
        yield Running(agent, camera, outcomes, stop, state)
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        assert not failures


@pytest.fixture
def site() -> MemorySite:
    return MemorySite(dimension=24, now=time.time())


def test_people_are_shared_and_the_site_is_followed(tmp_path: Path, site: MemorySite) -> None:
    with running(tmp_path, site, "gate") as gate:
        wait_for("a person", lambda: gate.people and site.roots())
        (person,) = site.roots()
        assert [person.id] == gate.people
        assert (person.device, person.camera) == ("gate", "door")
        with running(tmp_path, site, "hall") as hall:
            hall.camera.away = True
            wait_for("the person of the gate", lambda: person.id in hall.people)
        gate.camera.away = True
        assert gate.agent.stages is not None
        state = gate.agent.stages.fleet.state  # type: ignore[union-attr]
        assert (state.link, state.problem) == ("connected", "")

        async def forget() -> None:
            store = site.store("desk")
            await store.hello(0, ())
            await store.push(Push(forgotten=((person.id, "request"),)), site.content.version)

        asyncio.run(forget())
        wait_for("the erasure", lambda: person.id not in gate.people)
        wait_for(
            "its event",
            lambda: any(
                "person.forgotten" in one["type"] and one["data"]["reason"] == "fleet" for one in gate.events
            ),
        )
        lines = [json.loads(line) for line in (gate.state / audit.AUDIT_FILE).read_text().splitlines()]
        assert [(one["action"], one["by"]) for one in lines] == [("forget", "fleet")]
        wait_for("the confirmation", lambda: site.content.devices["gate"].mark == site.content.version)


def test_a_frozen_store_delays_no_frame_and_no_stop(tmp_path: Path, site: MemorySite) -> None:
    with running(tmp_path, site, "gate") as gate:
        wait_for("a person", site.roots)
        before = len(gate.outcomes)
        time.sleep(1.0)
        usual = len(gate.outcomes) - before
        site.frozen, site.deadline_s = True, 1e9
        time.sleep(0.3)  # the exchange hangs now
        before = len(gate.outcomes)
        time.sleep(1.0)
        assert len(gate.outcomes) - before > 0.6 * usual
        longest = max(later[0] - earlier[0] for earlier, later in pairwise(gate.outcomes[before:]))
        assert longest < 0.5
        began = time.monotonic()
        gate.stop.set()
        wait_for("the end", lambda: gate.agent.summary is not None)
    took = time.monotonic() - began
    assert took < 3.0, f"{took:.2f} s"


def test_a_stranger_is_asked_about_and_the_run_can_be_replayed(tmp_path: Path, site: MemorySite) -> None:
    """The hall has no page with the person: it exchanges once an hour."""
    rarely = {"enabled": True, "store": "postgresql://a@127.0.0.1:1/b", "sync_s": 3600, "ask_ms": 2000}
    given: dict[str, Any] = {"identify": {"threshold": 0.6}, "record": {"enabled": True}, "fleet": rarely}
    with running(tmp_path, site, "hall", away=True, **given) as hall:
        wait_for("the first exchange", lambda: site.content.devices.get("hall"))
        with running(tmp_path, site, "gate") as gate:
            wait_for("a person at the gate", site.roots)
            gate.camera.away = True
        (person,) = site.roots()
        hall.camera.away = False
        wait_for("the person in the hall", lambda: hall.people)
        assert hall.people == [person.id]
        assert hall.agent.stages is not None
        state = hall.agent.stages.fleet.state  # type: ignore[union-attr]
        assert (state.asked, state.known, state.late) == (1, 1, 0)
    (matched,) = [one["data"] for one in hall.events if one["type"] == "edge.identity.matched.v1"]
    assert (matched["origin"], matched["known_by"]) == ("fleet", "gate")
    assert matched["identity_id"] == person.id
    assert matched["score"] > matched["threshold"] == 0.6
    with Recording(hall.state / FOLDER, None) as recording:
        outcome = replay(recording, {})
    assert len(outcome.recorded) >= 2
    assert outcome.differs_at is None


def test_without_questions_the_stranger_is_enrolled(tmp_path: Path, site: MemorySite) -> None:
    silent = {"enabled": True, "store": "postgresql://a@127.0.0.1:1/b", "sync_s": 3600, "ask_ms": 0}
    with running(tmp_path, site, "hall", away=True, identify={"threshold": 0.6}, fleet=silent) as hall:
        wait_for("the first exchange", lambda: site.content.devices.get("hall"))
        with running(tmp_path, site, "gate") as gate:
            wait_for("a person at the gate", site.roots)
            gate.camera.away = True
        hall.camera.away = False
        wait_for("somebody in the hall", lambda: hall.people)
        assert hall.people != [site.roots()[0].id]
