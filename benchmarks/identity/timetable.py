"""Market-1501 layout as a site: who passes which camera when, written as a folder for a crops source.

The crops of one person on one camera are one visit. Everybody visits all of their cameras, each person in an
order of its own; the passes follow each other, and within a pass all cameras run at the same time. People
come in company (one to three walk together, and leave at slightly different times) or one at a time. A
visit with too few crops repeats them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.identity.measures import Visits
from edge_agent.core.errors import InputError
from edge_agent.core.pictures import parse_crop_name

__all__ = ["Play", "Showing", "played"]

SPLITS = ("bounding_box_train", "bounding_box_test", "query")
START = 1_700_000_000.0
INTERVAL_S = 0.25
"""Between two crops of a visit."""
PAUSE_S = 6.0
"""Between two groups on a camera: longer than a track is kept."""
GROUPS = (0.45, 0.35, 0.2)
"""Shares of groups of one, two and three people."""
_LANE, _STEP = 220.0, 4.0
"""Pixels between people who walk together, and between two frames."""


@dataclass(frozen=True, slots=True)
class Showing:
    """One visit: its number, the person, and the picture files in order of time."""

    visit: int
    person: int
    camera: str
    start: float
    crops: tuple[Path, ...]
    lane: int


@dataclass(slots=True)
class Play:
    """A timetable, and which facts stand beside each crop."""

    showings: Sequence[Showing]
    boxes: bool = True
    tracks: bool = True

    def truth(self) -> Visits:
        """Person, beginning and crops of each visit."""
        visits = Visits()
        for one in self.showings:
            visits.see(one.visit, one.person, one.start, len(one.crops))
        return visits

    def write(self, folder: Path) -> dict[tuple[str, int], list[int]]:
        """Write crops and JSON files; return the visits by camera (of a source `site`) and frame, in order.

        Frames have numbers in the order of time, unique over all cameras; the times of the files have the
        same order, since the source reads the oldest first.
        """
        from PIL import Image

        folder.mkdir(parents=True)
        moments: dict[tuple[float, str], list[tuple[Showing, int]]] = defaultdict(list)
        for one in self.showings:
            for at in range(len(one.crops)):
                moments[round(one.start + at * INTERVAL_S, 3), one.camera].append((one, at))
        shown: dict[tuple[str, int], list[int]] = {}
        number = 0
        for frame, ((time, camera), crops) in enumerate(sorted(moments.items()), 1):
            for showing, at in crops:
                number += 1
                path = folder / f"{number:07d}{showing.crops[at].suffix}"
                facts: dict[str, object] = {"camera": camera, "time": START + time, "frame": frame}
                if self.tracks:
                    facts["track"] = showing.visit
                if self.boxes:
                    with Image.open(showing.crops[at]) as picture:
                        width, height = picture.size
                    left, top = 40 + showing.lane * _LANE + at * _STEP, 60.0
                    facts["box"] = [left, top, left + width, top + height]
                path.with_suffix(".json").write_text(json.dumps(facts))
                path.write_bytes(showing.crops[at].read_bytes())
                os.utime(path, ns=(int(START * 1e9) + number * 1_000_000,) * 2)
            shown[f"site-{camera}", frame] = [showing.visit for showing, _ in crops]
        return shown


def crops_of(folder: Path) -> dict[tuple[int, str], list[Path]]:
    """Return the crops of each person and camera of a set, in order of recording and frame; no
    distractors.
    """
    found: dict[tuple[int, str], list[tuple[int, int, str, Path]]] = defaultdict(list)
    for split in SPLITS:
        for path in sorted((folder / split).glob("*.*")):
            name = parse_crop_name(path.name)
            if name is not None and name.pid > 0:
                key = (name.pid, f"c{name.camid}")
                found[key].append((name.sequence or 0, name.frame, path.name, path))
    return {key: [path for *_, path in sorted(paths)] for key, paths in sorted(found.items())}


def played(
    folder: Path, *, crops: int = 12, company: bool = True, boxes: bool = True, tracks: bool = True,
    people: int | None = None, seed: int = 0,
) -> Play:  # fmt: skip
    """Return the timetable of a set.

    Args:
        folder: in Market-1501 layout; all splits are used, people seen by fewer than two cameras are not.
        crops: of a visit.
        company: whether people walk together at times; else one at a time over all cameras.
        boxes: whether the JSON files have boxes in a frame.
        tracks: whether they have track ids.
        people: use only so many.
        seed: of the timetable.
    """
    rng = np.random.default_rng([seed, 0x71])
    by_person: dict[int, list[str]] = defaultdict(list)
    pictures = crops_of(folder)
    for person, camera in pictures:
        by_person[person].append(camera)
    chosen = sorted(person for person, cameras in by_person.items() if len(cameras) > 1)[:people]
    if not chosen:
        raise InputError(
            f"{folder} has no person who is seen by two cameras: crops belong into bounding_box_train,"
            " bounding_box_test or query, with names like 0007_c2s1_000451_03.jpg"
        )
    orders = {person: rng.permutation(by_person[person]).tolist() for person in chosen}
    showings: list[Showing] = []
    clock = 0.0
    for turn in range(max(map(len, orders.values()), default=0)):
        waiting: dict[str, list[int]] = defaultdict(list)
        for person in rng.permutation(chosen).tolist():
            if turn < len(orders[person]):
                waiting[orders[person][turn]].append(person)
        ends = [clock]
        for camera in sorted(waiting):
            now = ends[-1] if not company else clock
            for group in _groups(waiting[camera], rng, company):
                last = now
                for lane, person in enumerate(group):
                    own = pictures[person, camera]
                    start = now + INTERVAL_S * int(rng.integers(0, max(1, crops // 3))) * (lane > 0)
                    shown = tuple(own[at % len(own)] for at in range(crops))
                    showings.append(Showing(len(showings) + 1, person, camera, start, shown, lane))
                    last = max(last, start + crops * INTERVAL_S)
                now = last + PAUSE_S
            ends.append(now)
        clock = max(ends) + PAUSE_S
    return Play(showings, boxes, tracks)


def _groups(people: list[int], rng: np.random.Generator, company: bool) -> list[list[int]]:
    groups, left = [], list(people)
    while left:
        size = 1 + int(rng.choice(len(GROUPS), p=GROUPS)) if company else 1
        groups.append(left[:size])
        left = left[size:]
    return groups
