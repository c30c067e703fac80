"""The device asks the store about strangers, in time or not at all, and compares as with its own people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.names import new_id
from edge_agent.core.structures import DecisionKind
from edge_agent.fleet import records
from edge_agent.fleet.ask import MOST_WAITING, Asking
from edge_agent.fleet.records import CameraMean, PersonChange, Push, SharedExemplar
from edge_agent.fleet.sync import Sync
from edge_agent.fleet.worker import FleetWorker
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.identify.elsewhere import Question, Reply
from edge_agent.identify.site import Calibrated
from tests.fleet.memory_store import MemorySite, MemoryStore
from tests.identify.test_identify import D, People, Scene


@dataclass
class Yard:
    """A device that asks, and what it asks."""

    site: MemorySite
    worker: FleetWorker
    gallery: Gallery
    asking: Asking
    scene: Scene

    def wait_for(self, link: str) -> None:
        end = time.monotonic() + 5
        while self.worker.link != link or self.worker.exchanged is None:
            assert time.monotonic() < end
            time.sleep(0.005)

    def gate_knows(self, people: People, who: int, crops: int = 4, camera: str = "door") -> str:
        """Let another device know somebody; return the id."""
        shared = tuple(SharedExemplar(camera, 0, 0.8, people.crop(who)) for _ in range(crops))
        id_ = new_id()
        change = PersonChange(id_, (), "auto", None, None, 60.0, 5.0, camera, shared)
        self.push(Push(people=(change,)))
        return id_

    def push(self, push: Push) -> None:
        async def run() -> None:
            store = self.site.store("gate")
            await store.hello(0, ())
            await store.push(push, self.site.content.version)

        asyncio.run(run())

    def show_until_asked(self, people: People, who: int) -> None:
        asked = self.asking.counts.asked
        while self.asking.counts.asked == asked:
            assert self.scene.show({1: people.crop(who)}) == []
            assert self.scene.frame < 200

    def settled(self, question: Question) -> Reply:
        end = time.monotonic() + 5
        while (reply := question.reply()) is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        return reply


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    site = MemorySite(dimension=D)
    site.deadline_s = 5.0
    clock = Clock.open(tmp_path / "clock.json")
    with Gallery(
        tmp_path / "gallery.db", GallerySettings(), space="test", dimension=D, owner=True, clock=clock
    ) as gallery:
        store = site.store("yard")
        with FleetWorker(Sync(gallery, store, "yard"), store, sync_s=3600) as worker:
            asking = Asking("yard", gallery, worker.sync, worker.submit, longest_s=2.0)
            identifier = Identifier(
                gallery, "run", IdentifySettings(), Calibrated(0.5, 1e-4), elsewhere=asking, shares=True
            )
            yard = Yard(site, worker, gallery, asking, Scene(identifier))
            yard.wait_for("connected")
            yield yard


def wait_for_answers(yard: Yard) -> None:
    yard.worker.submit(lambda _: asyncio.sleep(0.05), 1.0).result(5)


def test_a_stranger_here_is_known_at_the_gate(yard: Yard) -> None:
    people = People(3)
    wanted = yard.gate_knows(people, 0)
    yard.gate_knows(people, 1)
    yard.show_until_asked(people, 0)
    wait_for_answers(yard)
    (decision,) = yard.scene.show({1: None})
    assert decision.identity == wanted
    assert (decision.kind, decision.origin, decision.known_by) == (DecisionKind.MATCHED, "fleet", "gate")
    assert vars_of(yard) == (1, 1, 0, 0)


def test_nobody_else_knows_a_stranger(yard: Yard) -> None:
    people = People(3)
    yard.gate_knows(people, 1)
    yard.show_until_asked(people, 0)
    wait_for_answers(yard)
    (decision,) = yard.scene.show({1: None})
    assert (decision.kind, decision.origin) == (DecisionKind.ENROLLED, "local")
    assert vars_of(yard) == (1, 0, 0, 0)


def test_at_15_frames_a_second_a_reply_after_10_ms_is_used_by_the_next_frame(yard: Yard) -> None:
    people = People(1)
    yard.gate_knows(people, 0)
    yard.site.slow_s = 0.01
    yard.show_until_asked(people, 0)
    frames, found = 0, []
    while not found:
        time.sleep(1 / 15)
        frames, found = frames + 1, yard.scene.show({1: people.crop(0)})
    assert found[0].origin == "fleet"
    assert frames <= 3  # 1 on an idle machine


def test_a_full_gallery_has_room_for_who_stands_here(yard: Yard) -> None:
    people = People(8)
    with yard.gallery.file.changing() as rows:
        rows.policy = replace(rows.policy, capacity=3)
    for who in range(1, 4):
        yard.gallery.enrol(people.crop(who)[None], np.ones(1), origin=f"x{who}", camera="cam", time=0.0)
    first = yard.gallery.identities()[0].id
    wanted = yard.gate_knows(people, 0)
    yard.show_until_asked(people, 0)
    wait_for_answers(yard)
    (decision,) = yard.scene.show({1: None})
    assert decision.identity == wanted
    assert len(yard.gallery) == 3
    assert first not in {one.id for one in yard.gallery.identities()}
    with yard.gallery.file.reading() as rows:
        assert not rows.site.is_erased(first)  # the site keeps who had to go here


def test_a_person_merged_at_the_site_is_found_by_any_id(yard: Yard) -> None:
    people = People(2)
    old, new = yard.gate_knows(people, 0), yard.gate_knows(people, 0)
    yard.push(Push(people=(PersonChange(old, (new,), "auto", None, None, 60.0, 5.0, "door", None),)))
    yard.show_until_asked(people, 0)
    wait_for_answers(yard)
    (decision,) = yard.scene.show({1: None})
    assert decision.identity == old
    assert len(yard.gallery) == 1


def test_nothing_of_a_person_who_was_taken_is_sent_as_a_change_of_this_device(yard: Yard) -> None:
    people = People(1)
    yard.gate_knows(people, 0)
    yard.show_until_asked(people, 0)
    wait_for_answers(yard)
    (decision,) = yard.scene.show({1: None})
    yard.worker.sync_now()
    end = time.monotonic() + 5
    while not any(device == "yard" for device, _ in yard.site.pushes):
        assert time.monotonic() < end
        time.sleep(0.01)
    (sent,) = [push for device, push in yard.site.pushes if device == "yard"]
    assert [one.id for one in sent.people] == [decision.identity]
    (person,) = sent.people
    assert person.name is None
    assert person.exemplars is not None
    assert {one.camera for one in person.exemplars} == {"cam"}  # its own, not those of the gate


def vars_of(yard: Yard) -> tuple[int, int, int, int]:
    counts = yard.asking.counts
    return counts.asked, counts.known, counts.late, counts.unasked


@pytest.mark.parametrize("fault", ["frozen", "slow", "down", "refused", "lost"])
def test_a_store_that_does_not_answer_in_time_delays_nobody_longer(yard: Yard, fault: str) -> None:
    people = People(1)
    yard.gate_knows(people, 0)
    yard.asking.longest_s = 0.1
    if fault == "lost":
        yard.site.lost_answers = 1
    elif fault == "refused":
        yard.site.refused = "this device left"
    elif fault == "slow":
        yard.site.slow_s, yard.site.deadline_s = 0.3, 1.0
    else:
        setattr(yard.site, fault, True)
        yard.site.deadline_s = 5.0
    yard.show_until_asked(people, 0)
    asked = time.monotonic()
    found = []
    while not found:
        began = time.thread_time()
        found = yard.scene.show({1: None})
        assert found or time.thread_time() - began < 0.05  # to wait takes nothing
        time.sleep(0.01)
    assert time.monotonic() - asked < 1.0
    assert found[0].kind is DecisionKind.ENROLLED
    assert vars_of(yard) == (1, 0, 1, 0)
    yard.site.frozen = False


def test_while_the_store_is_away_strangers_are_enrolled_at_once(yard: Yard) -> None:
    yard.worker.__exit__()
    found = yard.scene.visit(People(1), {1: 0})
    assert [one.kind for one in found] == [DecisionKind.ENROLLED, DecisionKind.DEPARTED]
    assert vars_of(yard) == (0, 0, 0, 1)


def test_the_questions_of_a_crowd_are_bounded(yard: Yard) -> None:
    yard.asking.longest_s = 0.2
    yard.site.frozen = True
    vector = People(1).crop(0)
    questions = [yard.asking.ask(("cam", track), vector) for track in range(MOST_WAITING + 3)]
    assert sum(question is None for question in questions) == 3
    assert yard.asking.counts.unasked == 3
    time.sleep(0.25)
    assert yard.asking.ask(("cam", 99), vector) is not None


def test_who_was_erased_here_is_not_taken(yard: Yard) -> None:
    people = People(1)
    person = yard.gate_knows(people, 0)
    with yard.gallery.file.changing() as rows:
        rows.site.bury(person, "request", 1)
    yard.show_until_asked(people, 0)
    wait_for_answers(yard)
    (decision,) = yard.scene.show({1: None})
    assert decision.kind is DecisionKind.ENROLLED


def test_scores_are_those_of_the_gallery_once_the_person_is_there(yard: Yard) -> None:
    """With cameras that tint all people, known here or only to the store."""
    random = np.random.default_rng(1)
    people = People(40, likeness=0.1, noise=0.1)
    tints = {camera: random.normal(0, 0.12, D) for camera in ("cam", "door", "back")}

    def seen(who: int, camera: str) -> np.ndarray:
        vector = people.crop(who) + tints[camera]
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    for who in range(15):
        yard.gallery.enrol(
            seen(who, "cam")[None], np.ones(1, np.float32), origin=f"o{who}", camera="cam", time=0.0
        )
    means = []
    for camera in ("door", "back"):
        total = np.sum([seen(who, camera) for who in range(15, 40)], axis=0, dtype=np.float64)
        means.append(CameraMean("gate", camera, 0, 25.0, total))
    shared = tuple(SharedExemplar(camera, 0, 0.8, seen(20, camera)) for camera in ("door", "back", "door"))
    change = PersonChange(new_id(), (), "auto", None, None, 60.0, 5.0, "door", shared)
    yard.push(Push(people=(change,), means=tuple(means)))
    question = yard.asking.ask(("cam", 1), seen(20, "cam"))
    assert question is not None
    reply = yard.settled(question)
    (candidate,) = reply.candidates
    assert reply.people == 1
    query = yard.gallery.cameras.centred("cam", seen(20, "cam")[None])[0]
    before = candidate.rows @ query
    raw = np.stack([one.vector for one in shared]) @ seen(20, "cam")
    assert (before > raw + 0.2).all()  # the offsets of two cameras do not count as a difference of people
    yard.worker.sync_now()  # the next page has the means and the person
    while not (
        number := next(
            (one.number for one in yard.gallery.identities() if one.id == change.id and one.exemplars), None
        )
    ):
        time.sleep(0.01)
    _, rows = yard.gallery.vectors([number])
    np.testing.assert_allclose(rows @ query, before, atol=0.03)


def test_answers_that_make_no_sense_are_no_answers(yard: Yard) -> None:
    vector = People(1).crop(0)
    good = yard.gate_knows(People(1), 0)

    def spoil(change: Callable[[records.Candidate], records.Candidate]) -> None:
        async def ask(vectors: np.ndarray, most: int) -> records.Answer:
            answer = await MemoryStore.ask(store, vectors, most)
            return replace(answer, candidates=tuple(map(change, answer.candidates)))

        store = yard.worker.store
        assert isinstance(store, MemoryStore)
        store.ask = ask  # type: ignore[method-assign]

    def with_vector(made: np.ndarray) -> Callable[[records.Candidate], records.Candidate]:
        part = records.Contribution(good, "gate", (SharedExemplar("door", 0, 0.5, made),))
        return lambda one: replace(one, contributions=(part,))

    spoils: list[Callable[[records.Candidate], records.Candidate]] = [
        with_vector(vector[:8]),
        with_vector(np.full(D, np.nan, np.float32)),
        lambda one: replace(one, contributions=()),
        lambda one: replace(one, person=replace(one.person, id="5")),
        lambda one: replace(one, person=replace(one.person, forgotten="request")),
    ]
    for change in spoils:
        spoil(change)
        question = yard.asking.ask(("cam", 1), vector)
        assert question is not None
        assert yard.settled(question).candidates == ()


@pytest.mark.parametrize("total", [np.full(D, np.nan), np.ones(8), np.full(D, np.inf)])
def test_means_that_make_no_sense_do_not_count(yard: Yard, total: np.ndarray) -> None:
    vector = People(1).crop(0)
    yard.gate_knows(People(1), 0)
    store = yard.worker.store
    assert isinstance(store, MemoryStore)

    async def ask(vectors: np.ndarray, most: int) -> records.Answer:
        answer = await MemoryStore.ask(store, vectors, most)
        return replace(answer, means=(CameraMean("gate", "door", 0, 20.0, total),))

    store.ask = ask  # type: ignore[method-assign]
    question = yard.asking.ask(("cam", 1), vector)
    assert question is not None
    (candidate,) = yard.settled(question).candidates
    assert np.isfinite(candidate.rows).all()
