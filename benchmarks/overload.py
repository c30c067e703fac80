"""Identity quality when crops exceed the engine's rate: with the policy, and with dropped frames.

    python -m benchmarks.overload --video vtest.avi --truth vtest_gt.txt \
        --detector yolox:yolox_nano.onnx --model osnet.onnx --preprocess imagenet

The video is a live camera. Its people are detected and embedded once; then it is replayed to the agent's own
tracker, identifier and scheduler, with engines that process a fraction of its crops. The replay has a
simulated clock, so the same material always gives the same figures. It reads frames as the pipeline does, the
newest of each camera, and while crops are left out the late ones, too, while the engine's queue has room; the
host's time is not simulated. Figures are means, with minima in brackets, over five engines of nearly the same
speed, since a video of ten people has few decisions.

The second table has two cameras that share the engine: one with the whole picture, the other, half a minute
later, with a strip of it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.scoring import PETS_VISITS, Rows, people_of, read_mot, score
from edge_agent.core.config import EngineSettings, QualitySettings, Settings
from edge_agent.core.structures import (
    Candidates,
    Decision,
    Detections,
    Embedded,
    EngineInfo,
    Load,
    ScoreLevels,
    TrackUpdate,
)
from edge_agent.detect.opening import open_detector
from edge_agent.embed.batching import JOINED_S
from edge_agent.embed.capacity import CropBudget
from edge_agent.embed.embedder import MOST_QUEUED, QUEUED
from edge_agent.embed.opening import open_embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.embed.selection import CropSelector
from edge_agent.engine.base import DEPTH
from edge_agent.gallery.gallery import open_gallery
from edge_agent.identify import Identifier
from edge_agent.source.file import FileOptions, FileSource
from edge_agent.source.reader import LIVE_LIMIT
from edge_agent.track.tracker import Tracker
from edge_agent.track.tracks import Similarity

__all__ = ["Material", "Outcome", "Stream", "materialise", "replay", "strip"]

FACTORS = (1.5, 2.0, 3.0, 5.0)
NEAR = (0.94, 0.97, 1.0, 1.03, 1.06)
"""Each overload is repeated with engines faster and slower by these factors."""
STRIP = (0.0, 0.3)
"""Share of the picture's width for the camera with few people."""
OFFSET_S = 30.0
_MOST_BATCH = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame: number, time from the start, detections, and all embeddings."""

    number: int
    time: float
    found: Detections
    embedded: Embedded


@dataclass(frozen=True, slots=True)
class Material:
    """Values that are computed once."""

    frames: tuple[Seen, ...]
    size: tuple[int, int]
    fps: float
    levels: ScoreLevels
    info: EngineInfo

    @property
    def crops_per_s(self) -> float:
        """Average number offered to the engine."""
        return sum(int(seen.embedded.present.sum()) for seen in self.frames) / len(self.frames) * self.fps


@dataclass(frozen=True, slots=True)
class Stream:
    """A live camera with these frames, from a given time on."""

    camera: str
    material: Material
    offset_s: float = 0.0


@dataclass(slots=True)
class Outcome:
    """Result of one camera.

    Attributes:
        frames: taken, by number.
        offered: crops of all its frames, those refused for quality left out.
        embedded: of these.
        spared: counted by the agent as too much for the engine.
        online, final: rows with identities as known at each frame, and as known at the end.
        waits_s: between two embeddings of a track whose identity was settled.
    """

    frames: set[int] = field(default_factory=set)
    offered: int = 0
    embedded: int = 0
    spared: int = 0
    online: Rows = field(default_factory=dict)
    final: Rows = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)


def materialise(video: Path, detector: str, model: Path, preprocess: str) -> Material:
    """Detect and embed all people in a video."""
    frames, size = [], (0, 0)
    engine = EngineSettings.model_validate({"model": model, "preprocess": preprocess})
    with (
        tempfile.TemporaryDirectory() as state,
        open_detector(detector) as finds,
        open_embedder(engine, QualitySettings(), Path(state)) as embedder,
    ):
        for frame in FileSource("video", video, FileOptions(start_time=0.0)).frames():
            if frame is not None:
                found = finds.detect(frame.image)
                embedder.submit([(frame.image, found)])
                frames.append(Seen(frame.number, frame.time, found, embedder.collect()[0]))
                size = (frame.image.shape[1], frame.image.shape[0])
        levels = finds.levels
        fps = (len(frames) - 1) / frames[-1].time
        return Material(tuple(frames), size, fps, levels, embedder.info)


def strip(material: Material, begin: float, end: float) -> Material:
    """Keep detections whose centre is in this part of the picture's width."""
    width = material.size[0]
    frames = []
    for seen in material.frames:
        middle = seen.found.boxes[:, ::2].mean(axis=1) / width
        rows = np.flatnonzero((begin <= middle) & (middle < end))
        own = seen.embedded
        kept = Embedded(
            own.vectors[rows], own.present[rows], own.quality[rows], tuple(own.reasons[n] for n in rows)
        )
        frames.append(Seen(seen.number, seen.time, seen.found.take(rows), kept))
    return Material(tuple(frames), material.size, material.fps, material.levels, material.info)


def strip_of_truth(truth: Rows, width: int, begin: float, end: float) -> Rows:
    """Keep the same part of the ground truth."""
    kept = {}
    for frame, (ids, boxes) in truth.items():
        middle = boxes[:, ::2].mean(axis=1) / width
        inside = (begin <= middle) & (middle < end)
        if inside.any():
            kept[frame] = (ids[inside], boxes[inside])
    return kept


# --- the replay -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Round:
    taken: list[tuple[Stream, Seen, NDArray[np.bool_]]]
    crops: int
    took_s: float
    done_at: float


class _Replay:
    """The pipeline's loop on a simulated clock."""

    def __init__(self, streams: Sequence[Stream], rate: float, settings: Settings, *, thin: bool) -> None:
        self.streams = streams
        self.rate = rate
        self.now = 0.0
        self.outcomes = {stream.camera: Outcome() for stream in streams}
        self._busy_until = 0.0
        self._worked = (0, 0.0)
        self._rounds: deque[_Round] = deque()
        self._next = {stream.camera: 0 for stream in streams}
        self._lost: Counter[str] = Counter()
        self._overloaded = False
        self._latest: dict[str, tuple[int, float]] = {}
        self._embedded_at: dict[tuple[str, int], float] = {}
        self._settled: set[tuple[str, int]] = set()
        self._updates: list[TrackUpdate] = []
        levels = streams[0].material.levels
        self._levels, self._thin = levels, thin
        self._gate = QualityGate(settings.quality)
        alike = Similarity()
        self._trackers = {
            stream.camera: Tracker(stream.camera, settings.tracker, levels, alike) for stream in streams
        }
        self._gallery = open_gallery(settings, streams[0].material.info, owner=True)
        self._settings = settings

    def run(self) -> dict[str, Outcome]:
        with self._gallery as gallery:
            self._identifier = Identifier(gallery, "replay", self._settings.identify)
            budget = CropBudget(lambda: self._worked, lambda: self._queue, lambda: self.now)
            self._selector = CropSelector(
                self._identifier.tracks, budget if self._thin else None, lambda _: self._levels.new_track
            )
            while True:
                taken = self._take()
                if taken:
                    self._start(taken)
                if self._rounds and (self._rounds[0].done_at <= self.now or self._full):
                    self._finish(self._rounds.popleft())
                elif not taken:
                    due = [self._due(stream) for stream in self.streams]
                    due += [round_.done_at for round_ in self._rounds]
                    if not any(map(math.isfinite, due)):
                        break
                    self.now = min(due)
            self._end()
        return self.outcomes

    @property
    def _queue(self) -> tuple[int, int]:
        """See `Embedder.queue`."""
        rate = min(self.rate, _MOST_BATCH / JOINED_S)
        left = max(0.0, self._busy_until - self.now) * rate
        return round(left), round(QUEUED * max(DEPTH, int(JOINED_S * rate)))

    @property
    def _full(self) -> bool:
        """See `Embedder.full`."""
        waiting, enough = self._queue
        return len(self._rounds) > 1 and waiting > enough * (MOST_QUEUED if self._thin else 1 / QUEUED)

    def _due(self, stream: Stream) -> float:
        at = self._next[stream.camera]
        frames = stream.material.frames
        return stream.offset_s + frames[at].time if at < len(frames) else math.inf

    def _take(self) -> list[tuple[Stream, Seen]]:
        """Return the frames that wait in the buffers of the cameras, see `FrameReader.poll`."""
        taken: list[tuple[Stream, Seen]] = []
        for stream in self.streams:
            waiting: list[Seen] = []
            while self._due(stream) <= self.now:
                waiting.append(stream.material.frames[self._next[stream.camera]])
                self._next[stream.camera] += 1
                self.outcomes[stream.camera].offered += int(waiting[-1].embedded.present.sum())
            kept = LIVE_LIMIT if self._overloaded else 1
            self._lost[stream.camera] += max(0, len(waiting) - kept)
            taken += [(stream, seen) for seen in waiting[-kept:]]
        return taken

    def _start(self, taken: Sequence[tuple[Stream, Seen]]) -> None:
        graded = self._gate.grade(
            [(seen.found.boxes, seen.found.scores, stream.material.size) for stream, seen in taken]
        )
        masks = self._selector.spared(
            Load(),
            [
                Candidates(
                    stream.camera, stream.offset_s + seen.time, seen.found.boxes, scores=seen.found.scores,
                    grades=grades.quality, live=True, lost=self._lost[stream.camera],
                )
                for (stream, seen), grades in zip(taken, graded, strict=True)
            ],
        )  # fmt: skip
        self._overloaded = any(mask.any() for mask in masks)
        wanted = [seen.embedded.present & ~mask for (_, seen), mask in zip(taken, masks, strict=True)]
        crops = sum(int(rows.sum()) for rows in wanted)
        took_s = crops / self.rate
        self._busy_until = max(self.now, self._busy_until) + took_s
        rows = [(stream, seen, mask) for (stream, seen), mask in zip(taken, wanted, strict=True)]
        self._rounds.append(_Round(rows, crops, took_s, self._busy_until))

    def _finish(self, round_: _Round) -> None:
        self.now = max(self.now, round_.done_at)
        self._worked = (self._worked[0] + round_.crops, self._worked[1] + round_.took_s)
        for stream, seen, wanted in round_.taken:
            own, time = seen.embedded, stream.offset_s + seen.time
            shown = Embedded(
                np.where(wanted[:, None], own.vectors, np.float32(0)), wanted,
                np.where(wanted, own.quality, np.float32(0)), own.reasons,
            )  # fmt: skip
            update = self._trackers[stream.camera].update(
                seen.number, time, stream.material.size, seen.found, shown
            )
            decisions = self._identifier.update(update)
            self._latest[stream.camera] = (seen.number, time)
            self._note(update, decisions, int(wanted.sum()))

    def _note(self, update: TrackUpdate, decisions: Sequence[Decision], embedded: int) -> None:
        outcome = self.outcomes[update.camera]
        outcome.frames.add(update.frame)
        outcome.embedded += embedded
        outcome.spared = self._selector.for_overload.get(update.camera, 0)
        for seen in update.seen:
            key = (seen.camera, seen.track_id)
            if seen.vector is not None:
                if key in self._settled and key in self._embedded_at:
                    outcome.waits_s.append(seen.time - self._embedded_at[key])
                self._embedded_at[key] = seen.time
        self._settled |= {(d.camera, d.track_id) for d in decisions if d.identity is not None}
        self._updates.append(update)
        outcome.online.update(self._rows(update))

    def _rows(self, update: TrackUpdate) -> Rows:
        known = [
            (number, seen.box)
            for seen in update.seen
            if (number := self._identifier.number(seen.camera, seen.track_id)) is not None
        ]
        if not known:
            return {}
        return {update.frame: (np.array([n for n, _ in known]), np.stack([box for _, box in known]))}

    def _end(self) -> None:
        for stream in self.streams:
            if stream.camera in self._latest:
                number, time = self._latest[stream.camera]
                self._identifier.update(
                    self._trackers[stream.camera].finish(number, time, stream.material.size)
                )
        for update in self._updates:
            self.outcomes[update.camera].final.update(self._rows(update))


def replay(streams: Sequence[Stream], rate: float, *, thin: bool) -> dict[str, Outcome]:
    """Run the cameras with an engine of the given rate; return the result of each.

    Args:
        streams: the cameras.
        rate: infinite for an engine that is never at its limit.
        thin: by the policy; else all crops are embedded and frames are lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state_dir=Path(folder))
        return _Replay(streams, rate, settings, thin=thin).run()


# --- tables -----------------------------------------------------------------------------------


def _scored(outcomes: Sequence[Outcome], truth: Rows, people: Mapping[int, int]) -> dict[str, float]:
    """Return means and minima of one camera over several runs."""
    online = [score(outcome.online, truth, people) for outcome in outcomes]
    final = [score(outcome.final, truth, people).idf1 for outcome in outcomes]
    taken = [
        score(
            outcome.online, {frame: rows for frame, rows in truth.items() if frame in outcome.frames}, people
        ).idf1
        for outcome in outcomes
    ]
    return {
        "online": float(np.mean([one.idf1 for one in online])),
        "online_lowest": min(one.idf1 for one in online),
        "final": float(np.mean(final)),
        "final_lowest": min(final),
        "online_on_frames_taken": float(np.mean(taken)),
        "recognised": float(np.mean([one.recognised for one in online])),
        "reentries": online[0].reentries,
        "embedded": float(np.mean([outcome.embedded / max(1, outcome.offered) for outcome in outcomes])),
        "longest_wait_s": max(wait for outcome in outcomes for wait in (*outcome.waits_s, 0.0)),
    }


Figures = dict[str, dict[str, float]]


def compare(
    streams: Sequence[Stream], truths: Mapping[str, Rows], people: Mapping[int, int], factors: Sequence[float]
) -> Figures:
    """Return every camera without overload, and for each factor with the policy and with dropped frames."""
    offered = sum(stream.material.crops_per_s for stream in streams)
    runs = [("no overload", (math.inf,), True)]
    for thin, words in ((True, "policy"), (False, "frames dropped")):
        runs += [
            (f"{factor:g}x, {words}", tuple(offered / factor * near for near in NEAR), thin)
            for factor in factors
        ]
    figures: Figures = {}
    for name, rates, thin in runs:
        found = [replay(streams, rate, thin=thin) for rate in rates]
        for stream in streams:
            outcomes = [outcome[stream.camera] for outcome in found]
            result = _scored(outcomes, truths[stream.camera], people)
            result["taken"] = float(
                np.mean([len(outcome.frames) / len(stream.material.frames) for outcome in outcomes])
            )
            figures[name if len(streams) == 1 else f"{name}: {stream.camera}"] = result
    return figures


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--video", type=Path, required=True)
    options.add_argument("--truth", type=Path, required=True, help="MOTChallenge ground truth")
    options.add_argument("--visits", default=PETS_VISITS, help="visits joined into people, 'a,b|c'")
    options.add_argument("--detector", default="hog")
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--preprocess", default="tao")
    options.add_argument("--json", action="store_true", help="all figures")
    chosen = options.parse_args()
    from edge_agent.core.logs import configure

    configure("warning")
    truth, people = read_mot(chosen.truth, truth=True), people_of(chosen.visits)
    material = materialise(chosen.video, chosen.detector, chosen.model, chosen.preprocess)
    alone = compare([Stream("all", material)], {"all": truth}, people, FACTORS)
    streams = [Stream("crowded", material), Stream("sparse", strip(material, *STRIP), OFFSET_S)]
    truths = {"crowded": truth, "sparse": strip_of_truth(truth, material.size[0], *STRIP)}
    shared = compare(streams, truths, people, (3.0,))
    if chosen.json:
        print(json.dumps({"crops_per_s": material.crops_per_s, "one": alone, "two": shared}, indent=2))
        return
    print(f"{material.crops_per_s:.1f} crops and {material.fps:g} frames a second are offered\n")
    print(markdown(alone), markdown(shared), sep="\n")


def markdown(figures: Figures) -> str:
    lines = [
        "| run | frames taken | crops embedded | IDF1 online | IDF1 final | online, on frames taken"
        " | re-entries | longest wait of the settled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in figures.items():
        lines.append(
            f"| {name} | {100 * result['taken']:.0f} % | {100 * result['embedded']:.0f} %"
            f" | {result['online']:.3f} ({result['online_lowest']:.3f})"
            f" | {result['final']:.3f} ({result['final_lowest']:.3f})"
            f" | {result['online_on_frames_taken']:.3f} | {result['recognised']:.1f} of {result['reentries']}"
            f" | {result['longest_wait_s']:.1f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
