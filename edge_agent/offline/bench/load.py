"""The load of a whole-agent benchmark: live cameras in memory that deliver their boxes with the frames.

With a simulated detector the boxes are what it finds; else they are given to the tracker as they are.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, Frame
from edge_agent.engine.graph.prepared import PreprocessProfile
from edge_agent.offline.synthetic.panorama import TALLEST, Panorama

VISIT_S = 10.0
"""Time for which the turning camera keeps a person in view."""

PERIOD_S = 60.0
"""Of a camera that has people in view for a share of the time; cameras begin at different times of it."""

SCENES = 8
"""Number of different streets; further cameras see the same people at another time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Load and length of a run.

    Attributes:
        cameras: number of cameras.
        people: average number in view of each camera.
        identities: people in the gallery at the start.
        exemplars: embeddings of each of them.
        seconds: length of the measurement.
        load: offered crops over the device's rate; sets the frame rate.
        fps: frames per second of each camera, instead of `load`.
        busy: share of the time in which people are in view; in the rest the camera stands still.
        detector: `simulated:FILE` (`detect.simulated`); None: boxes are given.
        every: people are detected in every n-th frame.
        motion: whether frames without motion are not searched.
        size: `(width, height)` of the frames.
        tallest: height of the tallest person, share of the frame's height.
        trace: record when each stage worked.
    """

    cameras: int = 8
    people: int = 8
    identities: int = 10_000
    exemplars: int = 4
    seconds: float = 60.0
    load: float = 1.1
    fps: float | None = None
    busy: float = 1.0
    detector: str | None = None
    every: int = 1
    motion: bool = False
    size: tuple[int, int] = (1920, 1080)
    tallest: float = TALLEST
    trace: bool = False


@dataclass(slots=True)
class TurningCamera:
    """A live camera that turns over a street at `speed` pixels/s; an `edge_agent.source.base.Source`.

    For a share `busy` of each `PERIOD_S` there are people; else it shows one still picture without any.
    """

    id: str
    street: Panorama
    fps: float
    phase: float
    speed: float
    over: threading.Event
    busy: float = 1.0
    live: bool = True
    ends: bool = True
    stall_seconds: float | None = None

    def frames(self) -> Generator[Frame | None, None, None]:
        """Yield frames when they are due; skip those that are late by more than a frame."""
        number, begin = 0, time.monotonic() + self.phase / self.fps
        while not self.over.is_set():
            number += 1
            left = begin + number / self.fps - time.monotonic()
            if left > 0:
                time.sleep(left)
            elif left < -1 / self.fps:
                number += int(-left * self.fps)
            passed = time.monotonic() - begin
            if (passed / PERIOD_S + self.phase) % 1.0 < self.busy:
                image, found = self.street.frame(self.phase * 997 + self.speed * passed, number)
            else:
                image, found = self.street.empty, Detections.none()
            yield Frame(self.id, number, time.time(), image, found)


def given_detections(frame: Frame) -> Detections:
    """Return the boxes that the camera delivers with the frame."""
    return frame.external if frame.external is not None else Detections.none()


def make_streets(plan: Plan) -> list[Panorama]:
    """Render the streets of the cameras."""
    return [
        Panorama(seed, people=plan.people, size=plan.size, tallest=plan.tallest)
        for seed in range(min(plan.cameras, SCENES))
    ]


def make_cameras(
    plan: Plan, streets: list[Panorama], fps: float, over: threading.Event
) -> list[TurningCamera]:
    """Return the cameras; they stop when `over` is set."""
    speed = plan.size[0] / VISIT_S
    return [
        TurningCamera(
            f"cam{number + 1}", streets[number % SCENES], fps, number / plan.cameras, speed, over, plan.busy
        )
        for number in range(plan.cameras)
    ]


def packed_crops(
    streets: list[Panorama], count: int, size: tuple[int, int], profile: PreprocessProfile
) -> NDArray[np.uint8]:
    """Return crops of people in these streets as network input, `(count, *size, 3)` uint8 BGR."""
    batch = np.zeros((count, *size, 3), np.uint8)
    for target, crop in zip(batch, _crops(streets), strict=False):
        profile.fit(crop, target)
    return batch


def _crops(streets: list[Panorama]) -> Iterator[NDArray[np.uint8]]:
    """Crops of the people, endlessly."""
    for number, street in enumerate(itertools.cycle(streets)):
        image, found = street.frame(997.0 * number, number)
        height, width = image.shape[:2]
        inside = found.boxes.clip(0, (width, height, width, height)).astype(int)
        for x1, y1, x2, y2 in inside[(inside[:, 2:] > inside[:, :2]).all(axis=1)]:
            yield image[y1:y2, x1:x2]
