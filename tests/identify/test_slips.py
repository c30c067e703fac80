"""Tracks that slip from one person to another are split there, and others are not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from edge_agent.core.config import IdentifySettings
from edge_agent.core.structures import Decision, DecisionKind, TrackObservation, TrackUpdate
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from tests.identify.test_identify import D, gallery, unit

__all__ = ["gallery"]  # a fixture


@dataclass
class Street:
    """Plays people with made-up vectors: ten frames a second."""

    identifier: Identifier
    frame: int = 0
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(1)
        self.centres = [unit(self.random.normal(size=D)) for _ in range(10)]

    def crop(self, person: np.ndarray) -> np.ndarray:
        return unit(person + 0.2 * self.random.normal(size=D) / np.sqrt(D))

    def show(self, tracks: dict[int, np.ndarray | int], frames: int, ended: tuple[int, ...] = ()) -> None:
        for _ in range(frames):
            self.frame += 1
            seen = tuple(
                TrackObservation(
                    "cam", track, self.frame, self.frame / 10,
                    np.array([60 * track, 50, 60 * track + 40, 150], np.float32), 0.9,
                    self.crop(self.centres[who] if isinstance(who, int) else who), 0.8,
                )
                for track, who in tracks.items()
            )  # fmt: skip
            self.decisions += self.identifier.update(
                TrackUpdate("cam", self.frame, self.frame / 10, (640, 480), seen, ())
            )
        if ended:
            update = TrackUpdate("cam", self.frame, self.frame / 10, (640, 480), (), ended)
            self.decisions += self.identifier.update(update)

    def slips(self) -> list[Decision]:
        return [one for one in self.decisions if one.reason == "slipped"]

    def number(self, track: int, frame: int | None = None) -> int | None:
        return self.identifier.number("cam", track, None if frame is None else frame / 10)


@pytest.fixture
def street(gallery: Gallery) -> Street:
    made = Street(Identifier(gallery, "s", IdentifySettings()))
    made.show({100 + one: one for one in range(4)}, 30, (100, 101, 102, 103))
    return made


def test_a_track_that_goes_on_with_a_neighbour_has_the_neighbours_identity_since_then(
    street: Street, gallery: Gallery
) -> None:
    first, second = street.number(100), street.number(101)
    start = street.frame
    street.show({1: 0, 2: 1}, 40)
    assert (street.number(1), street.number(2)) == (first, second)
    street.show({1: 1}, 40, (2,))  # track 2 was lost where they crossed; its person goes on as track 1
    [slip] = street.slips()
    assert slip.kind is DecisionKind.CORRECTED
    assert slip.number == street.number(1) == second
    assert slip.since == pytest.approx((start + 41) / 10, abs=0.31)
    matched = next(one for one in street.decisions if one.track_id == 1 and one.number == first)
    assert (slip.corrects, slip.previous) == (matched.id, matched.identity)
    assert street.number(1, start + 20) == first
    assert street.number(1, start + 60) == second
    vectors, _, _ = gallery.exemplars(first or 0)
    assert (vectors @ street.centres[1] < 0.5).all()
    street.show({3: 0}, 20)  # seen with nobody since: the first person is free
    assert street.number(3) == first


def test_the_first_person_who_goes_on_beside_the_slipped_track_is_recognised(street: Street) -> None:
    first, second = street.number(100), street.number(101)
    street.show({1: 0, 2: 1}, 40)
    street.show({1: 1, 3: 0}, 60, (2,))
    assert (street.number(1), street.number(3)) == (second, first)


def test_the_founder_of_an_identity_that_slips_joins_nobody(street: Street, gallery: Gallery) -> None:
    people = len(gallery)
    start = street.frame
    street.show({1: 6, 2: 1}, 40)  # the sixth is new
    founded, second = street.number(1), street.number(2)
    assert founded not in (second, None)
    street.show({1: 1}, 60, (2,))
    assert street.number(1) == second
    assert street.number(1, start + 20) == founded
    assert len(gallery) == people + 1
    street.show({5: 6}, 20)
    assert street.number(5) == founded


def test_the_founder_that_slips_to_somebody_seen_before_its_time_joins_nobody(
    street: Street, gallery: Gallery
) -> None:
    people = len(gallery)
    street.show({1: 6}, 80)
    founded = street.number(1)
    street.show({1: 2}, 60)
    assert len(gallery) == people + 1
    assert street.number(1) == street.number(102) != founded


def test_somebody_who_turns_round_is_not_split(street: Street) -> None:
    back = unit(street.centres[0] + 0.8 * street.centres[7])
    first = street.number(100)
    street.show({1: 0, 2: 1}, 40)
    street.show({1: back}, 60, (2,))
    assert not street.slips()
    assert street.number(1) == first


def test_a_slip_to_a_stranger_is_not_known(street: Street) -> None:
    street.show({1: 0, 2: 1}, 40)
    street.show({1: 8}, 60, (2,))
    assert not street.slips()


def test_somebody_who_is_hidden_for_a_moment_is_not_split(street: Street) -> None:
    first = street.number(100)
    street.show({1: 0, 2: 1}, 40)
    street.show({1: 1}, 12, (2,))
    street.show({1: 0}, 40)
    assert not street.slips()
    assert street.number(1) == first


def test_somebody_who_is_still_beside_the_track_is_not_its_person(street: Street) -> None:
    first = street.number(100)
    street.show({1: 0, 2: 1}, 40)
    street.show({1: 1, 2: 1}, 60)
    assert not street.slips()
    assert street.number(1) == first


def test_an_identity_joined_later_is_also_that_of_the_part_before_the_slip(
    street: Street, gallery: Gallery
) -> None:
    start = street.frame
    street.show({1: 0, 2: 1}, 40)
    street.show({1: 1}, 40, (2,))
    first, fourth = street.number(100), street.number(103)
    assert first is not None
    assert fourth is not None
    gallery.merge(fourth, first)
    street.identifier.merged(fourth, first)
    assert street.number(1, start + 20) == fourth
    street.show({}, 1)
    assert all(one.track_id > 0 for one in street.decisions)
