"""Strangers: others are asked before one is enrolled, and nothing waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.names import new_id
from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.identify.elsewhere import Candidate, Reply
from edge_agent.identify.site import Calibrated
from edge_agent.identify.tracks import TrackKey
from tests.identify.test_identify import D, People, Scene

SETTINGS = IdentifySettings()


@dataclass
class Asked:
    answer: Reply | None = None

    def reply(self) -> Reply | None:
        return self.answer


@dataclass
class Others:
    """Others who know some people: `answer` gives their reply to every question that waits."""

    gallery: Gallery
    asked: list[Asked] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    away: bool = False
    refuses: bool = False
    immediate: Reply | None = None

    def ask(self, track: TrackKey, vector: np.ndarray) -> Asked | None:
        assert vector.shape == (D,)
        if self.away:
            return None
        self.asked.append(Asked(self.immediate))
        return self.asked[-1]

    def answer(self, *candidates: Candidate, people: int = 100) -> None:
        for asked in self.asked:
            asked.answer = asked.answer or Reply(candidates, people)

    def take(self, track: TrackKey, candidate: Candidate) -> int | None:
        if self.refuses:
            return None
        self.taken.append(candidate.ids[0])
        with self.gallery.file.changing() as rows:
            self.gallery.retention.make_room(rows, 1)
            number = rows.insert(
                id=candidate.ids[0],
                name=None,
                kind="auto",
                created=0.0,
                last_seen=0.0,
                sightings=1,
                ttl_s=None,
            )
            sources = [
                (0.8, f"fleet/{device}/{candidate.ids[0]}", f"{device}/c", 0.0, 0)
                for device in candidate.devices
            ]
            rows.add_exemplars(number, candidate.rows, sources)
        return number


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with Gallery(":memory:", GallerySettings(), space="test", dimension=D) as opened:
        yield opened


@pytest.fixture
def others(gallery: Gallery) -> Others:
    return Others(gallery)


@pytest.fixture
def scene(gallery: Gallery, others: Others) -> Scene:
    return Scene(Identifier(gallery, "run", SETTINGS, Calibrated(0.5, 1e-4), elsewhere=others))


def known(
    gallery: Gallery, vectors: Sequence[np.ndarray], id_: str | None = None, device: str = "gate"
) -> Candidate:
    """Return somebody whom another device knows, by raw embeddings, as compared here."""
    rows = np.stack(vectors)
    return Candidate((id_ or new_id(),), gallery.cameras.centred("cam", rows), (device,) * len(rows), None)


def kinds(decisions: Sequence[Decision]) -> list[str]:
    return [one.kind.value for one in decisions]


def show_until_asked(scene: Scene, others: Others, people: People, who: dict[int, int]) -> list[Decision]:
    found: list[Decision] = []
    while len(others.asked) < len(who):
        found += scene.show({track: people.crop(person) for track, person in who.items()})
        assert scene.frame < 100
    return found


def test_a_stranger_waits_and_gets_the_person_whom_another_device_knows(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(2)
    assert show_until_asked(scene, others, people, {1: 0}) == []
    for _ in range(3):
        assert scene.show({1: people.crop(0)}) == []  # the reply is not there
    person = known(gallery, [people.crop(0), people.crop(1)])
    others.answer(known(gallery, [people.crop(1)]), person, people=1000)
    (decision,) = scene.show({1: None})  # no new crop is needed
    assert (decision.kind, decision.origin, decision.known_by) == (DecisionKind.MATCHED, "fleet", "gate")
    assert decision.identity == person.ids[0]
    assert decision.identities == 1000
    assert decision.score is not None
    assert decision.threshold is not None
    assert decision.score > decision.threshold
    assert decision.rule == "calibrated"
    assert len(others.asked) == 1
    assert kinds(scene.show({}, ended=(1,))) == ["departed"]


def test_a_reply_is_used_without_another_frame_of_its_camera(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(2)
    show_until_asked(scene, others, people, {1: 0})
    assert scene.identifier.replied() is None
    others.answer(known(gallery, [people.crop(0)]))
    update = scene.identifier.replied()
    assert update is not None
    (decision,) = scene.identifier.update(update)
    assert (decision.kind, decision.origin) == (DecisionKind.MATCHED, "fleet")
    assert scene.identifier.replied() is None
    assert kinds(scene.show({}, ended=(1,))) == ["departed"]


def test_the_threshold_rises_with_the_people_of_the_site(gallery: Gallery, others: Others) -> None:
    thresholds = []
    for people in (10, 100_000):
        others.asked.clear()
        made = People(20, seed=3)
        scene = Scene(Identifier(gallery, f"run{people}", SETTINGS, elsewhere=others))
        others.immediate = Reply((), 0)
        scene.visit(made, {track: track for track in range(1, 9)})  # a threshold needs people seen together
        others.immediate = None
        others.asked.clear()
        show_until_asked(scene, others, made, {50: people % 7 + 10})
        others.answer(known(gallery, [made.centres[people % 7 + 10]]), people=people)
        (decision,) = scene.show({50: None})
        assert decision.origin == "fleet"
        assert decision.identities == people
        thresholds.append(decision.threshold)
    assert thresholds[1] > thresholds[0] + 0.05


def test_somebody_nobody_knows_is_enrolled_with_the_reply(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(3)
    show_until_asked(scene, others, people, {1: 0})
    others.answer(known(gallery, [people.crop(1)]), known(gallery, [people.crop(2)]))
    (decision,) = scene.show({1: people.crop(0)})
    assert (decision.kind, decision.reason, decision.origin) == (DecisionKind.ENROLLED, "new", "local")
    assert decision.known_by is None
    assert others.taken == []


def test_who_cannot_be_asked_for_is_enrolled_at_once(scene: Scene, others: Others) -> None:
    others.away = True
    found = scene.visit(People(1), {1: 0})
    assert kinds(found) == ["enrolled", "departed"]


def test_the_gallery_may_refuse_a_person(scene: Scene, others: Others, gallery: Gallery) -> None:
    people = People(1)
    others.refuses = True
    show_until_asked(scene, others, people, {1: 0})
    others.answer(known(gallery, [people.crop(0)]))
    assert kinds(scene.show({1: None})) == ["enrolled"]


@pytest.mark.parametrize("answered", [False, True])
def test_a_track_that_ends_while_others_are_asked(
    scene: Scene, others: Others, gallery: Gallery, answered: bool
) -> None:
    people = People(1)
    show_until_asked(scene, others, people, {1: 0})
    if answered:
        others.answer(known(gallery, [people.crop(0)]))
    first, departed = scene.show({}, ended=(1,))
    assert first.kind is (DecisionKind.MATCHED if answered else DecisionKind.ENROLLED)
    assert not first.ended
    assert (departed.kind, departed.ended) == (DecisionKind.DEPARTED, True)
    assert departed.identity == first.identity is not None


def test_a_track_that_is_hidden_is_decided_with_the_reply(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(1)
    show_until_asked(scene, others, people, {1: 0})
    others.answer(known(gallery, [people.crop(0)]))
    assert kinds(scene.show({})) == ["matched"]


def test_people_seen_together_with_the_track_are_left_out(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(1)
    others.immediate = Reply()
    while not scene.decisions:
        scene.show({1: people.crop(0)})
    identity = scene.decisions[0].identity
    assert identity is not None
    others.immediate = None
    others.asked.clear()
    twin = People(1, seed=9)  # another person who looks as somebody elsewhere does
    while not others.asked:
        scene.show({1: people.crop(0), 2: twin.crop(0)})
    others.answer(known(gallery, [twin.crop(0)], identity))  # said to be the one beside it
    assert kinds(scene.show({1: None, 2: None})) == ["enrolled"]
    assert scene.number(1) != scene.number(2)


def test_of_two_strangers_the_better_fit_gets_the_person(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(2, likeness=0.75)
    show_until_asked(scene, others, people, {1: 0, 2: 1})
    person = known(gallery, [people.centres[1]])
    others.answer(person)
    found = {one.track_id: one for one in scene.show({1: None, 2: None})}
    assert found[2].identity == person.ids[0]
    assert found[1].kind is DecisionKind.ENROLLED


def test_two_candidates_that_fit_alike_need_more_crops(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(1)
    show_until_asked(scene, others, people, {1: 0})
    centre = people.centres[0]
    others.answer(known(gallery, [centre]), known(gallery, [centre]))
    assert scene.show({1: None}) == []
    found: list[Decision] = []
    while not found:
        found = scene.show({1: people.crop(0)})
    assert found[0].evidence == SETTINGS.pool_crops
    assert found[0].origin == "fleet"
    assert found[0].runner_up == pytest.approx(found[0].score)
    assert len(others.asked) == 1


def test_the_gallery_is_preferred_to_a_reply(scene: Scene, others: Others, gallery: Gallery) -> None:
    """A page of the site may bring the person before the reply does."""
    people = People(2)
    show_until_asked(scene, others, people, {1: 0})
    person = known(gallery, [people.crop(0)])
    number = others.take(("cam", 0), person)
    others.answer(known(gallery, [people.crop(0)]))
    (decision,) = scene.show({1: people.crop(0)})
    assert (decision.number, decision.origin) == (number, "local")
    assert scene.show({1: people.crop(0)}) == []


def test_exemplars_elsewhere_of_a_person_who_is_known_here(
    scene: Scene, others: Others, gallery: Gallery
) -> None:
    people = People(2)
    far, near = known(gallery, [people.crop(1)]), known(gallery, [people.crop(0)])
    number = others.take(("cam", 0), far)
    others.take = lambda *_: number  # type: ignore[method-assign]
    show_until_asked(scene, others, people, {1: 0})
    others.answer(Candidate(far.ids, near.rows, near.devices, None))
    (decision,) = scene.show({1: None})
    assert (decision.number, decision.origin) == (number, "fleet")


def test_nobody_is_asked_without_a_threshold_or_for_a_watchlist(gallery: Gallery, others: Others) -> None:
    scene = Scene(Identifier(gallery, "run", SETTINGS, elsewhere=others))
    assert kinds(scene.visit(People(1), {1: 0})) == ["enrolled", "departed"]
    watch = SETTINGS.model_copy(update={"enrolment": "watchlist"})
    scene = Scene(Identifier(gallery, "again", watch, Calibrated(0.5, 1e-4), elsewhere=others))
    scene.visit(People(1, seed=5), {1: 0})
    assert others.asked == []


def test_a_score_that_is_no_number_is_no_match(scene: Scene, others: Others, gallery: Gallery) -> None:
    people = People(1)
    show_until_asked(scene, others, people, {1: 0})
    broken = known(gallery, [people.crop(0)])
    broken.rows[:] = np.nan
    others.answer(broken)
    assert kinds(scene.show({1: None})) == ["enrolled"]
