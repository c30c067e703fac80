"""Merged, forgotten and named people: numbered events, and corrections of the open tracks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.agent.people_events import PeopleEvents
from edge_agent.core.clock import Clock
from edge_agent.core.codec import encode
from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.errors import InputError
from edge_agent.core.events import DeviceSummary, Event, identity_event
from edge_agent.core.structures import Decision
from edge_agent.deliver.presence import Presence
from edge_agent.gallery import erasure
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from tests.deliver.deliver_fixtures import ENGINE
from tests.identify.test_identify import D, People, Scene, warm


@dataclass
class Published:
    """Events in their order, and the state of a subscriber."""

    events: list[dict[str, Any]] = field(default_factory=list)
    presence: Presence = field(default_factory=Presence)

    def publish(self, event: Event) -> int:
        self.events.append(json.loads(encode(event)))
        self.presence.apply(event, len(self.events))
        return len(self.events)

    def decisions(self, made: list[Decision]) -> None:
        for one in made:
            self.publish(identity_event(one, engine=ENGINE, device=DeviceSummary(), latency_ms={}))

    def people(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"].startswith("edge.person.")]

    def present(self) -> dict[int, tuple[str | None, str | None]]:
        return {one.track_id: (one.identity_id, one.name) for one in self.presence.snapshot().people}


@dataclass
class Device:
    """A gallery file, an identifier, and what is published; `other` is another process with the file."""

    path: Path
    gallery: Gallery
    other: Gallery
    scene: Scene
    people: People
    published: Published
    events: PeopleEvents

    def show(self, tracks: dict[int, int], frames: int = 12, ended: tuple[int, ...] = ()) -> None:
        for _ in range(frames):
            self.published.decisions(self.scene.show({t: self.people.crop(p) for t, p in tracks.items()}))
        if ended:
            self.published.decisions(self.scene.show({}, ended=ended))

    def ids(self) -> list[str]:
        return [one.id for one in self.gallery.identities()]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    path = tmp_path / "gallery.db"

    def opened(*, owner: bool) -> Gallery:
        return Gallery(path, GallerySettings(), space="test", dimension=D, owner=owner, clock=Clock())

    with opened(owner=True) as gallery, opened(owner=False) as other:
        identifier = Identifier(gallery, "session", IdentifySettings(threshold=0.6))
        published = Published()
        events = PeopleEvents(gallery, identifier, published, Clock())  # type: ignore[arg-type]
        yield Device(path, gallery, other, Scene(identifier), People(4), published, events)


@pytest.mark.parametrize("by_another_process", [False, True])
@pytest.mark.parametrize("noticed_first", [False, True])
def test_merge(device: Device, *, by_another_process: bool, noticed_first: bool) -> None:
    """Whether the notice or the next frame comes first, subscribers hold the id that remains."""
    device.show({1: 0, 2: 1})
    kept, absorbed = device.published.present()[1][0], device.published.present()[2][0]
    gallery = device.other if by_another_process else device.gallery
    gallery.merge(gallery.get(str(kept)).number, gallery.get(str(absorbed)).number)
    if noticed_first:
        device.events.run()
        assert device.published.present()[2][0] == kept  # by the event alone
    device.show({1: 0, 2: 1})
    device.events.run()
    (merged,) = device.published.people()
    assert (merged["kind"], merged["identity_id"], merged["absorbed_id"]) == ("merged", kept, absorbed)
    assert merged["reason"] == "operator"
    corrected = [e for e in device.published.events if e["data"]["reason"] == "merged"]
    assert [e["data"]["track_id"] for e in corrected] == [2]
    assert (corrected[0]["data"]["previous_identity_id"], corrected[0]["data"]["identity_id"]) == (
        absorbed,
        kept,
    )
    assert corrected[0]["data"]["corrects"] in {e["id"] for e in device.published.events}
    assert absorbed not in {id_ for id_, _ in device.published.present().values()}
    device.events.run()
    assert len(device.published.people()) == 1


@pytest.mark.parametrize("noticed_first", [False, True])
def test_forget_by_another_process(device: Device, *, noticed_first: bool) -> None:
    device.show({1: 0, 2: 1})
    gone, stays = device.published.present()[1][0], device.published.present()[2][0]
    erasure.forget(device.other, device.other.get(str(gone)).number)
    device.events.run()
    assert device.published.people() == []  # its events are erased first
    device.gallery.facts.set("events_to_erase", None)  # as `Erasure.run` does after that
    if noticed_first:
        device.events.run()
        assert device.published.present()[1] == (None, None)
    device.show({2: 1}, frames=12)
    device.show({1: 3, 2: 1}, frames=1)
    device.events.run()
    device.show({1: 0, 2: 1}, frames=1)
    (forgotten,) = device.published.people()
    assert (forgotten["kind"], forgotten["identity_id"], forgotten["reason"]) == (
        "forgotten",
        gone,
        "request",
    )
    assert device.published.present()[2][0] == stays
    assert gone not in {id_ for id_, _ in device.published.present().values()}
    (corrected,) = [e["data"] for e in device.published.events if e["data"]["reason"] == "forgotten"]
    assert (corrected["previous_identity_id"], corrected["identity_id"]) == (gone, None)


def test_the_former_ids_of_a_forgotten_person_are_forgotten(device: Device) -> None:
    device.show({1: 0, 2: 1}, ended=(1, 2))
    kept, absorbed = device.ids()
    device.other.merge(1, 2)
    device.other.forget(1)  # the event of the merge would name somebody who is erased
    device.events.run()
    kinds = [(one["kind"], one["identity_id"]) for one in device.published.people()]
    assert kinds == [("forgotten", absorbed), ("forgotten", kept)]


def test_name(device: Device) -> None:
    device.show({1: 0})
    device.other.rename(1, "Ada")
    device.other.rename(1, "Ada")  # changes nothing
    device.events.run()
    device.gallery.rename(1, None)
    assert device.published.present()[1][1] == "Ada"
    device.events.run()
    assert device.published.present()[1][1] is None
    assert [one["name"] for one in device.published.people()] == ["Ada", None]


def test_a_change_while_no_agent_runs_is_published_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "gallery.db"
    published = Published()
    for round_ in range(2):
        with Gallery(path, GallerySettings(), space="test", dimension=D) as gallery:
            identifier = Identifier(gallery, f"s{round_}", IdentifySettings())
            people = PeopleEvents(gallery, identifier, published, Clock())  # type: ignore[arg-type]
            people.run()
            if round_ == 0:
                Scene(identifier).visit(People(2), {1: 0, 2: 1})
                gallery.merge(1, 2)
    assert [one["kind"] for one in published.people()] == ["merged"]


def test_an_operator_enrols_a_track(device: Device) -> None:
    """The next frame publishes it; before, the enrolment was not published at all."""
    identifier = device.scene.identifier
    identifier.reload(IdentifySettings(enrolment="watchlist"))
    device.show({1: 0})
    assert device.published.present() == {}
    identifier.enrol_track("cam", 1, "Ada")
    device.events.run()
    device.show({1: 0}, frames=1)
    assert device.published.present()[1] == (device.ids()[0], "Ada")
    device.show({}, frames=0, ended=(1,))
    assert device.published.present() == {}


def test_whoever_was_reported_departs(device: Device) -> None:
    """Unknown people of a watchlist, too; a track that never was reported ends without presence."""
    device.scene.identifier.reload(IdentifySettings(enrolment="watchlist", publish_unknown=True))
    device.show({1: 0})
    assert device.published.present() == {1: (None, None)}
    device.show({2: 1}, frames=1)
    device.show({}, frames=0, ended=(1, 2))
    assert device.published.present() == {}
    kinds = [(e["data"]["kind"], e["data"]["track_id"], e["data"]["ended"]) for e in device.published.events]
    assert kinds == [("unknown", 1, False), ("departed", 1, True), ("unknown", 2, True)]


def test_expired_and_evicted_people_are_forgotten(tmp_path: Path) -> None:
    with Gallery(tmp_path / "g.db", GallerySettings(capacity=1), space="test", dimension=D) as gallery:
        scene = Scene(Identifier(gallery, "s", IdentifySettings()))
        scene.visit(People(3), {1: 0}, frames=12)
        scene.visit(People(3), {2: 1}, frames=12)
        assert [(one.kind, one.reason) for one in gallery.notices.waiting()] == [("forgotten", "evicted")]


def test_identities_that_are_found_to_be_one_person(tmp_path: Path) -> None:
    """The corrections of the tracks and the event of the merge say the same."""
    with Gallery(tmp_path / "g.db", GallerySettings(), space="test", dimension=D) as gallery:
        identifier, people, published = Identifier(gallery, "s", IdentifySettings()), People(7), Published()
        scene = Scene(identifier)
        for track in (1, 2):
            scene.visit(people, {track: 6})
        first, second = (one.id for one in gallery.identities())
        warm(scene, people)
        published.decisions(scene.decisions)
        PeopleEvents(gallery, identifier, published, Clock()).run()  # type: ignore[arg-type]
        (merged,) = published.people()
        assert (merged["absorbed_id"], merged["identity_id"], merged["reason"]) == (second, first, "fused")
        fused = [event["data"] for event in published.events if event["data"]["reason"] == "fused"]
        corrections = [one for one in fused if one.get("previous_identity_id")]
        assert {one["previous_identity_id"] for one in corrections} == {second}
        assert {one["identity_id"] for one in corrections} == {first}
        assert all(one["ended"] for one in corrections if one["track_id"] == 2)
        assert len(published.events) == len(scene.decisions) + 1  # no correction comes twice


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("show"), st.dictionaries(st.integers(1, 3), st.integers(0, 2), max_size=3)),
        st.tuples(st.just("end"), st.integers(1, 3)),
        st.tuples(st.just("merge"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("forget"), st.integers(0, 3)),
        st.tuples(st.just("name"), st.integers(0, 3), st.sampled_from(["Ada", "Bob", None])),
        st.tuples(st.just("publish")),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_subscribers_hold_what_the_identifier_holds(steps: list[Any]) -> None:
    """Whatever happens to tracks and identities, in any order: no ghost, and no id that is gone."""
    with Gallery(":memory:", GallerySettings(), space="test", dimension=D) as gallery:
        identifier = Identifier(gallery, "s", IdentifySettings(threshold=0.6))
        people, published, scene = People(3), Published(), Scene(identifier)
        events = PeopleEvents(gallery, identifier, published, Clock())  # type: ignore[arg-type]
        running: dict[int, int] = {}
        ended = 0
        for kind, *given_ in steps:
            ids = [one.number for one in gallery.identities()]
            if kind == "show":
                for track, person in given_[0].items():
                    running.setdefault(track + ended, person)
                for _ in range(12):
                    vectors = {track: people.crop(person) for track, person in running.items()}
                    published.decisions(scene.show(vectors))
            elif kind == "end":
                gone = tuple(track for track in running if (track - 1) % 3 + 1 == given_[0])
                published.decisions(scene.show({}, ended=gone))
                for track in gone:
                    del running[track]
                ended += 3 * bool(gone)
            elif kind == "publish":
                events.run()
            elif all(place < len(ids) for place in given_[:1]):
                change(gallery, kind, ids, *given_)
        events.run()
        published.decisions(scene.show({}))
        known = {one.id: one.name for one in gallery.identities()}
        numbers = {one.number: one.id for one in gallery.identities()}
        holding = {track: numbers.get(scene.number(track) or 0) for track in running}
        present = published.present()
        assert {id_ for id_, _ in present.values()} <= {*known, None}
        assert present.keys() <= running.keys()
        assert present == {
            track: (id_, known.get(id_ or "")) for track, id_ in holding.items() if track in present
        }
        assert {track for track, id_ in holding.items() if id_ is not None} <= present.keys()


def change(gallery: Gallery, kind: str, ids: list[int], first: int, second: Any = None) -> None:
    if kind == "merge" and second < len(ids) and first != second:
        gallery.merge(ids[first], ids[second])
    elif kind == "forget":
        gallery.forget(ids[first])
    elif kind == "name":
        with contextlib.suppress(InputError):  # the name is taken
            gallery.rename(ids[first], second)


@pytest.mark.parametrize("by_another_process", [False, True])
def test_split(device: Device, *, by_another_process: bool) -> None:
    """The open track follows to the new identity, and the two are not joined again."""
    device.show({1: 0}, ended=(1,))
    device.show({2: 1})
    device.gallery.merge(1, 2)  # a wrong merge
    device.events.run()
    device.show({2: 1})
    wrong = device.ids()[0]
    assert device.published.present()[2][0] == wrong
    gallery = device.other if by_another_process else device.gallery
    new = gallery.corrections.split(1, "session:cam:2", "Berta")
    device.events.run()
    device.show({2: 1}, frames=1)
    events = device.published.people()[1:]
    assert [(e["kind"], e["identity_id"]) for e in events] == [("split", new.id), ("named", new.id)]
    assert (events[0]["split_from_id"], events[0]["reason"]) == (wrong, "operator")
    assert device.published.present()[2] == (new.id, "Berta")
    (corrected,) = [e["data"] for e in device.published.events if e["data"]["reason"] == "split"]
    assert (corrected["previous_identity_id"], corrected["identity_id"]) == (wrong, new.id)
    device.show({2: 1}, frames=60, ended=(2,))
    device.events.run()
    assert len(device.ids()) == 2
    assert len(device.published.people()) == 3


def test_rejected_people_are_not_joined_by_a_guess(device: Device) -> None:
    """Two visits of one person that were not joined: the agent would, once it had seen enough."""
    identifier = device.scene.identifier
    device.show({1: 0}, frames=60, ended=(1,))
    device.show({2: 1}, frames=60)
    assert identifier.together([1, 2]) == set()
    device.other.corrections.reject(1, 2)
    assert identifier.together([2]) == {(1, 2)}
