"""The street of the demonstration, and the score of the agent's identities against the truth.

The agent receives only the videos. Afterwards its identities are compared with the generator's truth by the
positions of boxes: in each frame, people and tracks are paired one to one; a pair needs an overlap (IoU) of
at least 0.5.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.agent.results import FrameOutcome
from edge_agent.core.structures import DecisionKind, iou_matrix
from edge_agent.offline.synthetic.street import Street, StreetVideo, Visit, write_videos

SECONDS = 60.0
"""Length of the street; in the first third the agent learns the scores of strangers (the threshold)."""
PEOPLE = 6
VISITS = 4
"""Largest number of visits per person."""
FPS = 5.0
"""Enough for walking people, who move a third of a body's width between frames at this rate."""
SEED = 4
"""Re-entries recognised with HOG and the shipped network on seeds 2, 4, 6, 9: 16 of 17, 18 of 18, 16 of 17,
18 of 18; two identities are shared by two people on 2, and one on 6."""

MIN_OVERLAP = 0.5
"""Smallest IoU of a track's box and a person's, as in the MOTChallenge."""
MIN_VISIT_S = 1.0
"""Shorter visits (total visible time) are not scored: the agent cannot recognise people in less."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A rendered street and its files."""

    street: Street
    videos: tuple[StreetVideo, ...]

    @property
    def frames(self) -> int:
        """Number of pictures of all cameras."""
        return self.street.frames * len(self.videos)


def default_street(seconds: float = SECONDS) -> Street:
    """Return the street of the demo, `seconds` long."""
    return Street(SEED, people=PEOPLE, seconds=seconds, fps=FPS, visits=VISITS)


def render(street: Street, folder: Path, progress: Callable[[int, int], None] | None = None) -> Scene:
    """Write the videos and their truth; `progress` is called with `(pictures done, pictures in all)`."""
    return Scene(street, write_videos(street, folder, progress))


class Sighting(NamedTuple):
    """A track in one frame, with its identity at that time (None: not yet decided)."""

    camera: str
    frame: int
    track_id: int
    box: NDArray[np.float32]
    number: int | None


@dataclass(slots=True)
class Recorder:
    """Records the outcome of every frame (the agent's `observe`); with `boxes` all sightings, for `score`."""

    boxes: bool = True
    frames: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Decisions by kind."""
    sightings: list[Sighting] = field(default_factory=list)
    holders: dict[tuple[str, int], int | None] = field(default_factory=dict)
    """The last decided identity of every track."""
    decided: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` of every decision by its id, to measure when its event arrives."""
    latency_ms: list[float] = field(default_factory=list)
    """Of every frame: sum of detect, embed and decide."""

    def __call__(self, outcome: FrameOutcome) -> None:
        """Record one frame; decisions before sightings, as in MOT files."""
        for decision in outcome.decisions:
            self.kinds[decision.kind.value] += 1
            self.decided[decision.id] = time.monotonic()
            if decision.kind is not DecisionKind.DEPARTED:
                self.holders[decision.camera, decision.track_id] = decision.number
        if outcome.latency_ms:  # empty at the end of a source
            self.frames += 1
            self.latency_ms.append(sum(outcome.latency_ms.get(s, 0.0) for s in ("detect", "embed", "decide")))
        if self.boxes:
            self.sightings += [
                Sighting(s.camera, s.frame, s.track_id, s.box, self.holders.get((s.camera, s.track_id)))
                for s in outcome.update.seen
            ]

    def tracks_of(self) -> dict[int, int]:
        """Return the number of tracks of every identity at the end."""
        return dict(Counter(number for number in self.holders.values() if number is not None))


@dataclass(frozen=True, slots=True)
class Score:
    """The agent's identities compared with the truth.

    A visit's identity is the most frequent one of its boxes. A re-entry is recognised if the new visit has an
    identity of an earlier visit of the same person.

    Attributes:
        people: number of visible people.
        visits: passages of a person through a camera's view.
        reentries: visits of people who visited before.
        recognised: re-entries with an earlier identity at the end, after all corrections.
        at_once: re-entries with an earlier identity as first published, before any correction.
        missed: visits without an identity.
        confused: identities shared by visits of two or more people.
        identities: identities of all tracks at the end; should equal `people`.
    """

    people: int
    visits: int
    reentries: int
    recognised: int
    at_once: int
    missed: int
    confused: int
    identities: int


def score(scene: Scene, recorder: Recorder) -> Score:
    """Compare the recorded identities with the truth of `scene`."""
    fps = scene.street.fps
    known, final, seen = _evidence(scene, recorder)
    visits = [v for v in scene.street.visits if seen[v] >= MIN_VISIT_S * fps]  # sorted by start
    owners: dict[int, set[int]] = defaultdict(set)
    for visit in visits:
        if (number := _dominant(final[visit])) is not None:
            owners[number].add(visit.person)
    people = len({visit.person for visit in visits})
    return Score(
        people=people,
        visits=len(visits),
        reentries=len(visits) - people,
        recognised=_recognised(visits, final),
        at_once=_recognised(visits, known),
        missed=sum(_dominant(final[visit]) is None for visit in visits),
        confused=sum(len(persons) > 1 for persons in owners.values()),
        identities=len(recorder.tracks_of()),
    )


_Votes = defaultdict[Visit, Counter[int | None]]


def _evidence(scene: Scene, recorder: Recorder) -> tuple[_Votes, _Votes, Counter[Visit]]:
    """For every visit: its boxes by identity at that time, and by final identity; and its visible frames."""
    known: _Votes = defaultdict(Counter)
    final: _Votes = defaultdict(Counter)
    frames: Counter[Visit] = Counter()
    by_frame: dict[tuple[str, int], list[Sighting]] = defaultdict(list)
    for sighting in recorder.sightings:
        by_frame[sighting.camera, sighting.frame].append(sighting)
    for video in scene.videos:
        for frame, people in _truth(video.truth).items():
            here = by_frame[video.camera, frame]
            visits = [_visit_of(scene.street, video.camera, frame, person) for person, _ in people]
            frames.update(visits)
            for i, j in _pairs(people, here):
                known[visits[i]][here[j].number] += 1
                final[visits[i]][recorder.holders.get((here[j].camera, here[j].track_id))] += 1
    return known, final, frames


def _truth(path: Path) -> Mapping[int, list[tuple[int, NDArray[np.float32]]]]:
    """Person and box (xyxy) of all visible people by frame, from a MOTChallenge file."""
    rows: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        frame, person, left, top, width, height, counts = (float(cell) for cell in line.split(",")[:7])
        if counts:
            box = np.array([left, top, left + width, top + height], np.float32)
            rows[int(frame)].append((int(person), box))
    return rows


def _visit_of(street: Street, camera: str, frame: int, person: int) -> Visit:
    now = (frame - 1) / street.fps
    return next(
        v for v in street.visits if v.person == person and v.camera == camera and v.start <= now < v.end
    )


def _pairs(
    people: Sequence[tuple[int, NDArray[np.float32]]], tracks: Sequence[Sighting]
) -> list[tuple[int, int]]:
    """Pair people and tracks one to one, with the largest total overlap."""
    from scipy.optimize import linear_sum_assignment

    if not tracks:
        return []
    overlap = iou_matrix(np.stack([box for _, box in people]), np.stack([track.box for track in tracks]))
    overlap = np.where(overlap >= MIN_OVERLAP, overlap, 0.0)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if overlap[i, j]]


def _dominant(votes: Counter[int | None]) -> int | None:
    """The identity of most boxes; None if no box has one."""
    return next((number for number, _ in votes.most_common() if number is not None), None)


def _recognised(visits: Sequence[Visit], votes: _Votes) -> int:
    """Number of visits with an identity of an earlier visit of the same person."""
    before: dict[int, set[int]] = defaultdict(set)
    count = 0
    for visit in visits:
        number = _dominant(votes[visit])
        count += number in before[visit.person]
        if number is not None:
            before[visit.person].add(number)
    return count


def percentiles(values: Sequence[float]) -> tuple[float, float] | None:
    """Return median and 95th percentile; None without values."""
    if not values:
        return None
    middle, high = np.percentile(values, [50, 95]).tolist()
    return middle, high
