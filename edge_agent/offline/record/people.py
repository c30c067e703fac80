"""The report of a run as one HTML file: a card for each person, a time line, and the corrections.

People are those known at the end: a track that was corrected or merged is with its final person. A track that
slipped is with the former person before.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.agent.results import FrameOutcome, Summary
from edge_agent.core.manifest import require_folder, write_atomic
from edge_agent.core.structures import (
    CropBatch,
    Decision,
    DecisionKind,
    Frame,
    MessageFrame,
    TrackObservation,
)
from edge_agent.core.text import html_text
from edge_agent.offline.page import facts, page, table, tiles
from edge_agent.offline.record import Names, Number, colour

_CROPS_PER_TRACK, _CROPS_PER_PERSON = 3, 8
_TILE = (64, 128)
_APART_S = 0.5
"""Least time between two crops of one track."""
_MOST_TRACKS = 5000
"""Tracks that a report keeps, with about 10 KB of pictures each; later ones are counted only."""
_ROW, _LEFT, _WIDTH = 22, 150, 1100
_MARGIN = 0.08
"""Share of a box that is added on each side of the picture of a person."""


@dataclass(slots=True)
class _Track:
    """What the report keeps of one track."""

    camera: str
    number: int
    first: float
    last: float
    crops: list[tuple[float, float, bytes]] = field(default_factory=list)
    """Quality, time and JPEG of its best crops."""
    decisions: list[Decision] = field(default_factory=list)


@dataclass(slots=True)
class PeopleReport:
    """Collects the people of a run. Call it with every outcome, then `write`.

    `path` is checked at once: InputError where its folder is missing or takes no files.
    """

    path: Path
    identity: Number
    _tracks: dict[tuple[str, int], _Track] = field(default_factory=dict)
    _left_out: int = 0
    _names: Names = field(default_factory=Names)

    def __post_init__(self) -> None:
        require_folder(self.path)

    def __call__(self, outcome: FrameOutcome) -> None:
        """Note the tracks of a frame and their best crops."""
        self._names.note(outcome.decisions)
        for row, seen in enumerate(outcome.update.seen):
            track = self._track(seen)
            if track is None:
                continue
            track.last = max(track.last, seen.time)
            if _is_wanted(track, seen):
                _keep(track, seen, _crop(outcome.item, row, seen))
        for decision in outcome.decisions:
            if (known := self._tracks.get((decision.camera, decision.track_id))) is not None:
                known.decisions.append(decision)

    def _track(self, seen: TrackObservation) -> _Track | None:
        key = seen.camera, seen.track_id
        if key not in self._tracks:
            if len(self._tracks) >= _MOST_TRACKS:
                self._left_out += 1
                return None
            self._tracks[key] = _Track(seen.camera, seen.track_id, seen.time, seen.time)
        return self._tracks[key]

    def write(self, summary: Summary) -> None:
        """Write the file; only its owner can read it.

        Raises:
            DiskFull, StorageError: it could not be written.
        """
        people: dict[int, list[_Track]] = {}
        for (camera, track_id), track in self._tracks.items():
            for part in _parts(track):
                if (number := self.identity(camera, track_id, part.last)) is not None:
                    people.setdefault(number, []).append(part)
        ordered = dict(sorted(people.items()))
        body = [
            facts(self._notes(summary)),
            _figures(summary, ordered, self._tracks.values()),
            "<h2>Time line</h2>",
            _time_line(ordered, self._names),
            "<h2>People</h2>",
            *(_card(number, tracks, self._names) for number, tracks in ordered.items()),
            "<h2>Corrections</h2>",
            self._corrections(),
        ]
        write_atomic(self.path, page("People of this run", body), mode=0o600)

    def _notes(self, summary: Summary) -> list[str]:
        notes = [f"{name}: {count} frames" for name, count in summary.frames.items()]
        notes.append("Times are UTC. This file shows people: protect it as the recordings are protected.")
        if self._left_out:
            notes.append(
                f"{self._left_out} observations of tracks beyond the first {_MOST_TRACKS} are left out."
            )
        return notes

    def _corrections(self) -> str:
        found = sorted(
            (one for track in self._tracks.values() for one in track.decisions
             if one.kind is DecisionKind.CORRECTED),
            key=lambda one: one.time,
        )  # fmt: skip
        if not found:
            return facts(["None."])
        rows = [
            (
                _clock(one.time),
                one.camera,
                str(one.track_id),
                one.previous or "",
                self._called(one),
                one.reason,
            )
            for one in found
        ]
        return table(("time", "camera", "track", "from (id)", "to", "reason"), rows)

    def _called(self, decision: Decision) -> str:
        return "unknown" if decision.number is None else self._names.title(decision.number)


def _parts(track: _Track) -> list[_Track]:
    """Divide a track where it slipped to another person."""
    slips = [(row, one.since) for row, one in enumerate(track.decisions) if one.since is not None]
    bounds = [(0, track.first), *slips, (len(track.decisions), math.inf)]
    return [
        replace(
            track,
            first=since,
            last=min(track.last, math.nextafter(until, 0)),
            crops=[crop for crop in track.crops if since <= crop[1] < until],
            decisions=track.decisions[row:end],
        )
        for (row, since), (end, until) in pairwise(bounds)
    ]


def _is_wanted(track: _Track, seen: TrackObservation) -> bool:
    """Whether a crop is good, better than those kept, and not right after one of them."""
    near = [quality for quality, time, _ in track.crops if abs(time - seen.time) < _APART_S]
    kept = [quality for quality, _, _ in track.crops]
    least = max(near) if near else min(kept) if len(kept) >= _CROPS_PER_TRACK else 0.0
    return seen.quality > least


def _keep(track: _Track, seen: TrackObservation, picture: NDArray[np.uint8] | None) -> None:
    if picture is None or not picture.size:
        return
    shown = cv2.resize(picture, _TILE, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    track.crops = [one for one in track.crops if abs(one[1] - seen.time) >= _APART_S]
    track.crops.append((seen.quality, seen.time, jpeg))
    track.crops = sorted(track.crops, reverse=True)[:_CROPS_PER_TRACK]


def _crop(
    item: Frame | CropBatch | MessageFrame | None, row: int, seen: TrackObservation
) -> NDArray[np.uint8] | None:
    """Cut a person from a frame; the crops of an upstream are in the order of the observations."""
    if isinstance(item, CropBatch):
        return item.images[row]
    if item is None or isinstance(item, MessageFrame):
        return None
    left, top, right, bottom = (float(side) for side in seen.box)
    wide, high = _MARGIN * (right - left), _MARGIN * (bottom - top)
    x1, y1 = max(0, int(left - wide)), max(0, int(top - high))
    return item.image[y1 : max(y1, int(bottom + high)), x1 : max(x1, int(right + wide))]


def _figures(summary: Summary, people: dict[int, list[_Track]], tracks: Iterable[_Track]) -> str:
    all_tracks = list(tracks)
    known = sum(len(of) for of in people.values())
    return tiles(
        [
            ("people", str(len(people))),
            ("seen again", str(sum(len(of) > 1 for of in people.values()))),
            ("tracks", str(len(all_tracks))),
            ("tracks without identity", str(len(all_tracks) - known)),
            ("crops embedded", str(summary.crops)),
            ("events", str(summary.decisions)),
        ]
    )


def _card(number: int, tracks: Sequence[_Track], names: Names) -> str:
    """Return the card of one person: best crops, then when and where."""
    crops = sorted((crop for track in tracks for crop in track.crops), reverse=True)[:_CROPS_PER_PERSON]
    pictures = "".join(
        f'<img class="crop" alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}">'
        for _, _, jpeg in sorted(crops, key=lambda crop: crop[1])
    )
    rows = [
        (_clock(track.first), _clock(track.last), track.camera, str(track.number), _story(track))
        for track in sorted(tracks, key=lambda track: track.first)
    ]
    visits = table(("from", "to", "camera", "track", "decisions"), rows)
    return (
        f'<h3 style="color:{_css(number)}">{html_text(names.title(number))}</h3>'
        f'<div class="matches">{pictures}</div>{visits}'
    )


def _story(track: _Track) -> str:
    """Return the decisions about a track in one line."""
    return ", ".join(_decided(one) for one in track.decisions if one.kind is not DecisionKind.DEPARTED)


def _decided(one: Decision) -> str:
    if one.score is None or one.threshold is None:
        return one.kind.value
    return f"{one.kind.value} {one.score:.3f} (threshold {one.threshold:.3f}, {one.rule})"


def _time_line(people: dict[int, list[_Track]], names: Names) -> str:
    """Return one row per person, with a bar for each track, as SVG."""
    tracks = [track for of in people.values() for track in of]
    if not tracks:
        return facts(["Nobody was recognised or enrolled."])
    start, end = min(track.first for track in tracks), max(track.last for track in tracks)
    scale = (_WIDTH - _LEFT - 10) / max(end - start, 1e-3)
    parts = []
    for row, (number, of) in enumerate(people.items()):
        y = row * _ROW
        parts.append(f'<text x="0" y="{y + 15}">{html_text(names.title(number)[:22])}</text>')
        for track in of:
            x, width = _LEFT + scale * (track.first - start), max(2.0, scale * (track.last - track.first))
            caption = f"{track.camera}, {_clock(track.first)} to {_clock(track.last)}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="14" fill="{_css(number)}">'
                f"<title>{html_text(caption)}</title></rect>"
            )
    height = len(people) * _ROW + 20
    parts.append(f'<text x="{_LEFT}" y="{height - 4}">{_clock(start)}</text>')
    parts.append(f'<text x="{_WIDTH}" y="{height - 4}" text-anchor="end">{_clock(end)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {height}" font-size="13" role="img">{"".join(parts)}</svg>'


def _css(number: int) -> str:
    red, green, blue = colour(number)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-4]
