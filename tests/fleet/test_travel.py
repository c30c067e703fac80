"""Walking times shift the evidence that is needed, within bounds, and never decide alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_agent.agent.fleet_link import Fleet
from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings, IdentifySettings, Settings
from edge_agent.core.fleet_settings import FleetSettings, TravelSettings
from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.fleet.travel import (
    ENOUGH,
    LONGEST_S,
    MOST_PAIRS,
    MOST_SHIFT,
    MOST_TIMES,
    TRAVEL_FACT,
    Travel,
)
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier
from edge_agent.identify.elsewhere import Candidate, Question, Reply
from tests.fleet.memory_store import MemorySite
from tests.identify.test_identify import D, People, Scene, unit

GIVEN = TravelSettings(between=("gate/out", "hall/in"), shortest_s=20, longest_s=90)


class Facts:
    def __init__(self, **known: Any) -> None:
        self.known: dict[str, Any] = known

    def get(self, key: str) -> Any:
        return self.known.get(key)

    def set(self, key: str, value: Any) -> None:
        self.known[key] = value


def travel(*given_: TravelSettings, facts: Facts | None = None, learns: bool = True) -> Travel:
    return Travel("hall", given_, facts or Facts(), learns)


@pytest.mark.parametrize(
    ("passed_s", "shift"),
    [
        (-5, MOST_SHIFT),
        (0.5, MOST_SHIFT),
        (19.9, MOST_SHIFT),
        (20, -MOST_SHIFT),
        (90, -MOST_SHIFT),
        (91, 0),
        (1e9, 0),
    ],
)
def test_given_times_shift_the_threshold_both_ways(passed_s: float, shift: float) -> None:
    assert travel(GIVEN).shift("gate", "out", "in", passed_s) == shift
    back = Travel("gate", (GIVEN,), Facts(), learns=False)
    assert back.shift("hall", "in", "out", passed_s) == shift


def test_nothing_is_known_of_other_cameras() -> None:
    known = travel(GIVEN)
    for device, camera, here in [
        ("gate", "other", "in"),
        ("gate", "out", "other"),
        ("hall", "in", "in"),
        ("", "", ""),
    ]:
        assert known.shift(device, camera, here, 0.5) == 0.0


def test_times_are_learnt_and_count_when_there_are_enough() -> None:
    facts = Facts()
    learning = travel(facts=facts)
    for count in range(ENOUGH):
        assert learning.shift("gate", "out", "in", 30.0) == 0.0, count
        learning.learn("gate", "out", "in", 28.0 + count / 5)
    for known in (learning, travel(facts=facts)):  # also after a restart
        assert known.shift("gate", "out", "in", 0.5) == MOST_SHIFT
        assert known.shift("gate", "out", "in", 20.0) == 0.0  # somebody who runs
        assert known.shift("gate", "out", "in", 30.0) == -MOST_SHIFT
        assert known.shift("gate", "out", "in", 300.0) == 0.0
    assert travel(facts=facts, learns=False).shift("gate", "out", "in", 0.5) == 0.0


def test_given_times_are_not_replaced_by_learnt_ones() -> None:
    known = travel(GIVEN)
    for _ in range(2 * ENOUGH):
        known.learn("gate", "out", "in", 1.0)
    assert known.shift("gate", "out", "in", 1.0) == MOST_SHIFT


def test_what_is_no_walk_is_not_learnt() -> None:
    facts = Facts()
    known = travel(facts=facts)
    for device, camera, passed_s in [
        ("hall", "x", 5),
        ("gate", "", 5),
        ("gate", "out", -1),
        ("gate", "out", LONGEST_S + 1),
    ]:
        known.learn(device, camera, "in", passed_s)
    known.learn("gate", "out", "in", float("nan"))
    assert facts.known == {}


def test_what_is_kept_is_bounded() -> None:
    facts = Facts()
    known = travel(facts=facts)
    for count in range(MOST_TIMES + 10):
        known.learn("gate", "out", "in", float(count))
    assert facts.known[TRAVEL_FACT] == [
        ["gate/out", "hall/in", [float(n) for n in range(10, MOST_TIMES + 10)]]
    ]
    for count in range(MOST_PAIRS + 5):
        known.learn("gate", f"out-{count}", "in", 5.0)
    assert len(facts.known[TRAVEL_FACT]) == MOST_PAIRS


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=12,
    )
)
def test_a_foreign_fact_is_no_time(stored: Any) -> None:
    known = travel(facts=Facts(**{TRAVEL_FACT: stored}))
    assert abs(known.shift("gate", "out", "in", 1.0)) <= MOST_SHIFT
    known.learn("gate", "out", "in", 5.0)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"between": ["gate", "hall/in"]}, "DEVICE/CAMERA"),
        ({"between": ["gate/out", "gate/in"]}, "one device"),
        ({"between": ["gate/out"]}, "between"),
        ({"shortest_s": 100}, "greater"),
        ({"shortest_s": -1}, "shortest_s"),
        ({"longest_s": 1e9}, "longest_s"),
        ({"typical_s": 5}, "typical_s"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], problem: str) -> None:
    usual = {"between": ["gate/out", "hall/in"], "shortest_s": 20, "longest_s": 90}
    with pytest.raises(ValidationError, match=problem):
        FleetSettings.model_validate({"travel": [{**usual, **values}]})


# ---- the effect on a stranger whom another device knows


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with Gallery(":memory:", GallerySettings(), space="test", dimension=D) as opened:
        yield opened


class Others:
    """Others who know one person, of a score and a shift."""

    def __init__(self, gallery: Gallery, row: np.ndarray, shift: float) -> None:
        self.recognised = 0
        self._gallery = gallery
        self._candidate = Candidate(("p-000000000009",), row[None], ("gate",), None, shift, self._note)

    def _note(self) -> None:
        self.recognised += 1

    def reply(self) -> Reply:
        return Reply((self._candidate,), 10)

    def ask(self, track: object, vector: np.ndarray) -> Question:
        return self

    def take(self, track: object, candidate: Candidate) -> int | None:
        quality = np.ones(1, np.float32)
        return self._gallery.enrol(
            candidate.rows, quality, origin="fleet", camera="gate/out", time=1.0
        ).number


def decided(gallery: Gallery, score: float, shift: float) -> tuple[Decision, Others]:
    """Show a stranger whose likeness to somebody known elsewhere has this score; the threshold is .7."""
    people = People(2, noise=0.0, likeness=0.0)
    own, other = people.centres
    across = unit(other - (other @ own) * own)
    others = Others(gallery, unit(score * own + np.sqrt(1 - score**2) * across), shift)
    stage = Scene(Identifier(gallery, "s", IdentifySettings(threshold=0.7), elsewhere=others))
    stage.visit(people, {1: 0})
    return next(one for one in stage.decisions if one.kind is not DecisionKind.DEPARTED), others


@pytest.mark.parametrize(
    ("score", "shift", "matched"),
    [
        (0.69, 0.0, False),
        (0.71, 0.0, True),
        (0.69, -MOST_SHIFT, True),  # usual times: a little less is enough
        (0.71, MOST_SHIFT, False),  # impossible times: a little more is needed
        (0.66, -MOST_SHIFT, False),  # no match by themselves
        (0.74, MOST_SHIFT, True),  # no veto by themselves
    ],
)
def test_the_shift_decides_only_near_the_threshold(
    gallery: Gallery, score: float, shift: float, *, matched: bool
) -> None:
    decision, _ = decided(gallery, score, shift)
    assert (decision.kind is DecisionKind.MATCHED) is matched
    if matched:
        assert decision.threshold == pytest.approx(0.7 + shift)  # the event states it
        assert decision.origin == "fleet"


@pytest.mark.parametrize(("score", "learnt"), [(0.76, 1), (0.74, 0), (0.68, 0)])
def test_times_are_learnt_of_who_was_recognised_clearly_by_looks(
    gallery: Gallery, score: float, learnt: int
) -> None:
    assert decided(gallery, score, -MOST_SHIFT)[1].recognised == learnt


def test_the_settings_reach_the_questions(gallery: Gallery, tmp_path: Path) -> None:
    given = {"between": ["gate/out", "hall/in"], "shortest_s": 20, "longest_s": 90}
    fleet = {"enabled": True, "store": "postgresql://hall@127.0.0.1/fleet", "travel": [given]}
    found = {}
    for learns in (False, True):
        settings = Settings.model_validate(
            {
                "state_dir": str(tmp_path),
                "mqtt": {"site": "shop", "device": "hall"},
                "fleet": {**fleet, "learn_travel": learns},
            }
        )
        link = Fleet.of(settings, gallery, Clock(), MemorySite(dimension=D).store("hall"))
        with link.worker:
            assert link.asking is not None
            assert link.asking.longest_s == settings.fleet.ask_ms / 1000
            travel_ = link.asking.travel
            assert travel_ is not None
            assert travel_.shift("gate", "out", "in", 1.0) == MOST_SHIFT
            travel_.learn("yard", "out", "in", 5.0)
            found[learns] = gallery.facts.get(TRAVEL_FACT)
    assert found == {False: None, True: [["yard/out", "hall/in", [5.0]]]}
