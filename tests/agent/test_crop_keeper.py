"""Which crops the agent keeps of a track, and when they reach the gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.agent import crop_keeper
from edge_agent.agent.crop_keeper import CropKeeper
from edge_agent.agent.results import FrameOutcome
from edge_agent.core.config import GallerySettings
from edge_agent.core.structures import Decision, DecisionKind, Frame, TrackObservation, TrackUpdate
from edge_agent.gallery import Gallery
from tests.deliver.deliver_fixtures import decision

D = 8
SIZE = (320, 240)


def outcome(
    time: float,
    tracks: dict[int, float],
    *decisions: Decision,
    ended: tuple[int, ...] = (),
    sure: bool = True,
) -> FrameOutcome:
    """One frame: the person of track n stands at 40 n and has the grey of 50 n; tracks: their quality."""
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    seen = []
    for track, quality in tracks.items():
        x = 40 * track
        image[50:150, x : x + 30] = 50 * track
        vector = np.random.default_rng(int(10 * time) + 100 * track).standard_normal(D).astype(np.float32)
        box = np.array([x, 50, x + 30, 150], np.float32)
        vector = vector / np.linalg.norm(vector)
        seen.append(
            TrackObservation("cam", track, int(10 * time), time, box, 0.9, vector, quality, sure=sure)
        )
    update = TrackUpdate("cam", int(10 * time), time, SIZE, tuple(seen), ended)
    return FrameOutcome(update, decisions, {}, "0" * 32, Frame("cam", int(10 * time), time, image))


def about(track: int, number: int | None, kind: DecisionKind, **values: object) -> Decision:
    return replace(decision(track, camera="cam", number=number, kind=kind), **values)  # type: ignore[arg-type]


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(
        tmp_path / "gallery.db", GallerySettings(keep_crops=4), space="s", dimension=D, owner=True
    ) as one:
        for number in range(2):
            one.enrol(np.eye(D, dtype=np.float32)[[number]], np.ones(1), origin="o", camera="cam", time=0.0)
        yield one


def played(gallery: Gallery, *outcomes: FrameOutcome) -> CropKeeper:
    with CropKeeper(gallery.crops, "run") as keeper:
        for one in outcomes:
            keeper.saw(one)
            if one.item is not None:
                one.item.image[:] = 255  # the memory of a frame is used again
    return keeper


def greys(jpegs: list[bytes]) -> list[int]:
    return [int(cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR).mean()) for one in jpegs]


def test_a_decided_track_leaves_its_crops_and_its_evidence(gallery: Gallery) -> None:
    frames = [outcome(n / 2, {1: 0.5, 2: 0.6}) for n in range(6)]
    decided = outcome(3.0, {1: 0.5, 2: 0.6}, about(1, 2, DecisionKind.MATCHED))
    played(gallery, *frames, decided)
    kept = gallery.crops.of(2)
    assert len(kept) == 4
    assert greys([one.jpeg for one in kept]) == pytest.approx([50] * 4, abs=2)
    assert {one.origin for one in kept} == {"run:cam:1"}
    assert len(gallery.crops.evidence("run", "cam", 1)) == 4
    assert gallery.crops.of(1) == gallery.crops.evidence("run", "cam", 2) == []  # nobody knows track 2


def test_crops_are_taken_apart_and_more_rarely_with_time(gallery: Gallery) -> None:
    gallery.crops.apply(GallerySettings(keep_crops=16))
    decided = outcome(0.0, {1: 0.5}, about(1, 1, DecisionKind.ENROLLED))
    played(gallery, decided, *(outcome(n / 10, {1: 0.5}) for n in range(1, 300)))
    times = sorted(one.time for one in gallery.crops.of(1))
    assert min(np.diff(times)) >= 0.5
    assert len(times) <= 16


@pytest.mark.parametrize("bad", [{"sure": False}, {"quality": 0.0}])
def test_bad_crops_are_not_kept(gallery: Gallery, bad: dict[str, float]) -> None:
    quality = float(bad.get("quality", 0.5))
    frame = outcome(0.0, {1: quality}, about(1, 1, DecisionKind.ENROLLED), sure="sure" not in bad)
    played(gallery, frame)
    assert gallery.crops.of(1) == []


def test_a_track_that_slipped_divides_its_crops(gallery: Gallery) -> None:
    first = outcome(0.0, {1: 0.5}, about(1, 1, DecisionKind.MATCHED))
    later = [outcome(time, {1: 0.5}) for time in (1.0, 2.0)]
    slipped = outcome(3.0, {1: 0.5}, about(1, 2, DecisionKind.CORRECTED, since=1.5))
    played(gallery, first, *later, slipped)
    assert [sorted(one.time for one in gallery.crops.of(number)) for number in (1, 2)] == [
        [0.0, 1.0],
        [2.0, 3.0],
    ]


def test_a_forgotten_person_leaves_nothing(gallery: Gallery) -> None:
    first = outcome(0.0, {1: 0.5}, about(1, 1, DecisionKind.MATCHED))
    gone = outcome(2.0, {1: 0.5}, about(1, None, DecisionKind.CORRECTED))
    with CropKeeper(gallery.crops, "run") as keeper:
        keeper.saw(first)
        keeper.saw(outcome(1.0, {1: 0.5}))
        gallery.forget(1)
        keeper.saw(gone)
        keeper.saw(outcome(3.0, {}, ended=(1,)))
    assert gallery.stats().crops == 0


def test_without_the_setting_nothing_is_cut(gallery: Gallery) -> None:
    gallery.crops.apply(GallerySettings())
    keeper = played(gallery, outcome(0.0, {1: 0.5}, about(1, 1, DecisionKind.MATCHED)))
    assert (gallery.stats().crops, keeper.left_out) == (0, 0)


def test_a_thread_that_cannot_follow_costs_crops_not_memory(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_keeper, "_WAITING_BYTES", 20_000)
    keeper = CropKeeper(gallery.crops, "run")  # its thread never runs
    for n in range(20):
        keeper.saw(outcome(n / 2, {1: 0.5}))
    assert keeper.left_out == 17
