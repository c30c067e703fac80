"""Rendered streets: the generator's own, and scripts for single causes; cameras with colour responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import hypot
from pathlib import Path

import numpy as np

from benchmarks.identity.footage import Footage, Picture, of_file
from benchmarks.identity.sets import CameraResponse
from edge_agent.offline.demo.street import default_street
from edge_agent.offline.synthetic.scene import Lens, Point
from edge_agent.offline.synthetic.street import Street, StreetVideo, Visit, write_videos

__all__ = ["STREETS", "open_street"]

PACE = 0.76
"""Statures per second: the usual walking speed."""
DEMO_SEEDS = tuple(range(21, 29))
"""Streets that nobody looked at while the agent was made."""


@dataclass(frozen=True, slots=True)
class _Script:
    """Arguments of a street, and how its cameras differ."""

    seed: int
    cameras: int = 1
    people: int = 8
    seconds: float = 60.0
    fps: float = 6.0
    visits: int = 3
    responses: bool = True
    kind: str = "walk"

    def street(self) -> Street:
        """Return the street."""
        if self.kind == "demo":
            usual = default_street()
            seconds = usual.frames / usual.fps
            return Street(self.seed, people=len(usual.people), seconds=seconds, fps=usual.fps, visits=4)
        street = Street(
            self.seed,
            cameras=self.cameras,
            people=self.people,
            seconds=self.seconds,
            fps=self.fps,
            visits=self.visits,
        )
        if self.kind == "alone":
            street.visits = tuple(_alone(street, self.visits))
        elif self.kind == "abreast":
            street.visits = tuple(_abreast(street, self.seconds))
        street.frames = max(1, round(max(visit.end for visit in street.visits) * self.fps))
        return street


def _alone(street: Street, visits: int) -> Iterator[Visit]:
    """One person at a time; everybody crosses the view before anybody returns."""
    rng = np.random.default_rng([street.seed, 0xA1])
    lens, now = Lens(*street.size), 1.0
    for turn in range(visits):
        for person in rng.permutation(len(street.people)).tolist():
            row = float(rng.uniform(0.6, 0.9)) * lens.height
            depth, edge = lens.depth(row), (lens.width / 2) / lens.scale(row) + 0.35
            side = 1 if rng.random() < 0.5 else -1
            path: tuple[Point, Point] = (
                (-side * edge, depth),
                (side * edge, depth * float(rng.uniform(0.95, 1.05))),
            )
            took = hypot(path[1][0] - path[0][0], path[1][1] - path[0][1]) / PACE
            camera = street.cameras[(turn + person) % len(street.cameras)]
            yield Visit(person + 1, camera, now, now + took, path)
            now += took + 4.5


def _abreast(street: Street, seconds: float) -> Iterator[Visit]:
    """All walk towards the camera side by side."""
    lens, count = Lens(*street.size), len(street.people)
    far = lens.depth(0.55 * lens.height)
    for person in range(count):
        x = (person - (count - 1) / 2) * 0.55
        yield Visit(person + 1, street.cameras[0], 0.0, seconds, ((x, far), (x, far - PACE * seconds)))


STREETS = {
    "3 cameras, 12 people": _Script(31, cameras=3, people=12, seconds=100.0, fps=6.0, visits=4),
    "one at a time, 1 camera": _Script(32, people=6, visits=2, kind="alone"),
    "one at a time, 3 cameras": _Script(33, cameras=3, people=6, visits=3, kind="alone"),
    "8 side by side for 2.8 s": _Script(34, people=8, seconds=2.8, fps=10.0, kind="abreast"),
} | {f"demo street {seed}": _Script(seed, kind="demo", responses=False) for seed in DEMO_SEEDS}


def open_street(name: str, folder: Path) -> list[Footage]:
    """Return the cameras of a street; rendered into `folder` where it is not yet there."""
    script = STREETS[name]
    place = folder / name.replace(" ", "-").replace(",", "")
    done = place / "street.json"
    if not done.exists():
        write_videos(script.street(), place)
    fps = float(json.loads(done.read_bytes())["fps"])
    cameras = [
        StreetVideo(path.stem, path, path.with_suffix(".txt")) for path in sorted(place.glob("cam-?.avi"))
    ]
    found = []
    for number, one in enumerate(cameras):
        footage = of_file(one.video, one.truth, camera=one.camera, fps=fps)
        if script.responses:
            footage = replace(
                footage, frames=partial(_coloured, footage, CameraResponse.drawn(100 * script.seed + number))
            )
        found.append(footage)
    return found


def _coloured(footage: Footage, response: CameraResponse) -> Iterator[tuple[int, float, Picture]]:
    for number, time, image in footage.frames():
        yield number, time, response(image)
