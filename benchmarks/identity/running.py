"""Run the whole agent over clips or crops, and measure its identities."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.identity.footage import Footage
from benchmarks.identity.measures import Evidence, Visits, boxes, reachable, tracks_ceiling
from benchmarks.identity.timetable import Play
from benchmarks.scoring import Rows, read_mot
from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome, Summary
from edge_agent.agent.stages import Supply
from edge_agent.core.errors import InputError
from edge_agent.core.loading import load
from edge_agent.core.structures import Decision, DecisionKind, TrackUpdate

__all__ = ["Network", "run_clips", "run_crops", "visits_of"]


@dataclass(frozen=True, slots=True)
class Network:
    """A ReID network; the shipped one without a file."""

    name: str
    model: Path | None = None
    preprocess: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The section `engine`."""
        chosen = {} if self.model is None else {"model": str(self.model), "preprocess": self.preprocess}
        return {**chosen, "packing": "here", "backend": "onnxruntime"}


PAUSE_S = 3.0
"""A person who is not seen for longer makes a new visit, where the truth has people only."""
MIN_VISIT_S = 1.0
"""Shorter visits are not counted as re-entries: nobody can be recognised in less."""


@dataclass(slots=True)
class Noted:
    """What a run showed: threshold over time, as far as decisions state it, and the decisions by kind."""

    begun: float | None = None
    changes: list[tuple[float, float | None, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    latest: dict[tuple[str, int], Decision] = field(default_factory=dict)
    """By track, departures aside."""

    def __call__(self, outcome: FrameOutcome) -> None:
        """Note the decisions of a frame."""
        self.begun = outcome.update.time if self.begun is None else self.begun
        for one in outcome.decisions:
            corrected = one.kind is DecisionKind.CORRECTED
            self.kinds[one.kind.value + (f" ({one.reason})" if corrected else "")] += 1
            if one.kind is not DecisionKind.DEPARTED:
                self.latest[one.camera, one.track_id] = one
            value = None if one.threshold is None else round(float(one.threshold), 3)
            if not self.changes or self.changes[-1][1:] != (value, one.rule):
                self.changes.append((round(one.time - self.begun, 1), value, one.rule))

    def few(self, most: int = 8) -> list[tuple[float, float | None, str]]:
        """Return the first threshold, the last, and some between: seconds, value, rule."""
        step = max(1, len(self.changes) // most)
        return [*self.changes[:-1:step], *self.changes[-1:]]


@dataclass(slots=True)
class Tracks:
    """The boxes of all tracks, by camera."""

    rows: dict[str, dict[int, tuple[list[int], list[NDArray[np.float32]]]]] = field(default_factory=dict)

    def see(self, update: TrackUpdate) -> None:
        """Add one frame."""
        if update.seen:
            own = self.rows.setdefault(update.camera, {}).setdefault(update.frame, ([], []))
            own[0].extend(one.track_id for one in update.seen)
            own[1].extend(one.box for one in update.seen)

    def of(self, camera: str) -> Rows:
        """Return those of a camera."""
        own = self.rows.get(camera, {})
        return {frame: (np.array(ids), np.stack(places)) for frame, (ids, places) in own.items()}


def run_clips(
    clips: Sequence[Footage], detector: str, network: Network, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run the agent over recordings of cameras that belong together, with one gallery."""
    with tempfile.TemporaryDirectory(prefix="identity-") as folder:
        mot, final = Path(folder) / "online.txt", Path(folder) / "final.txt"
        sources = [{"id": clip.camera, "url": f"{clip.camera}.avi"} for clip in clips]
        values = {"sources": sources, "detector": {"kind": detector}, "engine": network.settings}
        noted, tracks = Noted(), Tracks()

        def observe(outcome: FrameOutcome) -> None:
            noted(outcome)
            tracks.see(outcome.update)

        supply = Supply([clip.source() for clip in clips])
        outputs = Outputs(mot=mot, mot_final=final)
        summary, seconds = _run(values, extra, folder, outputs, observe, supply=supply)
        truth = Visits()
        rows = {clip.camera: visits_of(clip, truth) for clip in clips}
        # Where the truth has people only, a glimpse is no visit.
        least = 1 if clips[0].people is not None else max(1, round(MIN_VISIT_S * clips[0].fps))
        result: dict[str, Any] = {}
        for name, path in (("online", mot), ("final", final)):
            evidence = Evidence()
            for clip in clips:
                own = path if len(clips) == 1 else path.with_name(f"{path.stem}-{clip.camera}{path.suffix}")
                boxes(evidence, read_mot(own) if own.exists() else {}, rows[clip.camera])
            result[name] = asdict(evidence.measure(truth, least))
        result["ceilings"] = _ceilings(clips, tracks, rows, truth)
        return result | _figures(summary, seconds, noted)


def _ceilings(
    clips: Sequence[Footage], tracks: Tracks, rows: Mapping[str, Rows], truth: Visits
) -> dict[str, float]:
    """Return IDF1 if each fitting box of a track had the right identity, and if each track had."""
    found = agreeing = given = 0
    for clip in clips:
        own = tracks.of(clip.camera)
        found += reachable(own, rows[clip.camera])
        agree, of = tracks_ceiling(own, rows[clip.camera], truth)
        agreeing, given = agreeing + agree, given + of
    true = truth.seen.total()
    return {"boxes": 2 * found / max(1, true + found), "tracks": 2 * agreeing / max(1, true + given)}


def visits_of(clip: Footage, truth: Visits) -> Rows:
    """Return a camera's truth with ids of visits, which are added to `truth`."""
    rows: Rows = {}
    unknown = {one for ids, _ in clip.truth.values() for one in ids.tolist()}.difference(clip.people or ())
    if clip.people is not None and unknown:
        raise InputError(
            f"the truth has visits that belong to nobody: {sorted(unknown)[:5]}; state all of them with"
            " --visits, or --visits none where its ids are people"
        )
    current: dict[int, tuple[int, int]] = {}  # visit and latest frame by id
    for frame, (ids, places) in sorted(clip.truth.items()):
        visits = ids.copy()
        for row, one in enumerate(ids.tolist()):
            visit, last = current.get(one, (0, frame))
            if not visit or (clip.people is None and frame - last > PAUSE_S * clip.fps):
                visit = 1 + max(truth.person, default=0)
            current[one] = visit, frame
            visits[row] = visit
            truth.see(visit, one if clip.people is None else clip.people[one], frame / clip.fps)
        rows[frame] = visits, places
    return rows


def run_crops(play: Play, network: Network, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run the agent over crops that are played from a folder."""
    with tempfile.TemporaryDirectory(prefix="identity-") as folder:
        crops = Path(folder) / "crops"
        shown = play.write(crops)
        values = {
            "sources": [{"id": "site", "url": f"crops:{crops}", "once": True, "settle_seconds": 0}],
            "engine": network.settings,
        }
        noted, online, tracks = Noted(), Evidence(), dict[tuple[str, int], Counter[int]]()
        agents: list[Agent] = []

        def observe(outcome: FrameOutcome) -> None:
            noted(outcome)
            if outcome.item is None:
                return
            waiting = shown[outcome.update.camera, outcome.update.frame]
            visits = waiting[: len(outcome.update.seen)]  # a frame may come in two parts
            del waiting[: len(visits)]
            if len(visits) != len(outcome.update.seen):
                raise AssertionError(f"frame {outcome.update.frame} has more crops than were played")
            stages = agents[0].stages
            assert stages is not None
            for visit, seen in zip(visits, outcome.update.seen, strict=True):
                key = (seen.camera, seen.track_id)
                number = stages.identifier.number(*key)
                tracks.setdefault(key, Counter())[visit] += 1
                if number is not None:
                    online.votes[visit][number] += 1
                    online.given[number] += 1

        summary, seconds = _run(values, extra, folder, Outputs(), observe, agents)
        final, own = Evidence(), dict[int, Counter[tuple[str, int]]]()
        stages = agents[0].stages
        assert stages is not None
        for key, visits in tracks.items():
            number = stages.identifier.number(*key)
            if number is None and key in noted.latest:  # too long ago
                number = noted.latest[key].number
            for visit, count in visits.items():
                own.setdefault(visit, Counter())[key] += count
                if number is not None:
                    final.votes[visit][number] += count
                    final.given[number] += count
        truth = play.truth()
        return {
            "online": asdict(online.measure(truth)),
            "final": asdict(final.measure(truth)),
            "losses": dict(_losses(final, truth, own, noted)),
        } | _figures(summary, seconds, noted)


def _losses(
    final: Evidence, truth: Visits, own: Mapping[int, Counter[tuple[str, int]]], noted: Noted
) -> Counter[str]:
    """Return why re-entries were not recognised, by the last decision on the visit's longest track."""
    main, causes = final.main(), Counter[str]()
    first: dict[int, int] = {}
    for visit in sorted(main, key=lambda one: (truth.begun[one], one)):
        first.setdefault(main[visit], truth.person[visit])
    for visit in final.unrecognised(truth)[1]:
        decision = noted.latest.get(own[visit].most_common(1)[0][0]) if visit in own else None
        if visit not in main or decision is None:
            causes["no identity: too few good crops"] += 1
        elif first[main[visit]] != truth.person[visit]:
            causes["taken for another person"] += 1
        elif decision.threshold is None:
            causes["no threshold yet"] += 1
        elif decision.score is None or decision.score < decision.threshold:
            causes["below the threshold"] += 1
        else:
            causes["other"] += 1
    return causes


def _run(
    values: dict[str, Any],
    extra: Mapping[str, Any] | None,
    folder: str,
    outputs: Outputs,
    observe: Callable[[FrameOutcome], None],
    agents: list[Agent] | None = None,
    supply: Supply | None = None,
) -> tuple[Summary, float]:
    values = {**values, "state_dir": str(Path(folder) / "state")}
    for section, chosen in (extra or {}).items():
        values[section] = {**values.get(section, {}), **chosen}
    agent = Agent(load(None, values), outputs, observe=observe, supply=supply)
    if agents is not None:
        agents.append(agent)
    began = time.perf_counter()
    summary = agent.run(threading.Event())
    return summary, time.perf_counter() - began


def _figures(summary: Summary, seconds: float, noted: Noted) -> dict[str, Any]:
    networks = summary.engine_seconds + summary.detector_seconds
    return {
        "frames": sum(summary.frames.values()),
        "crops": summary.crops,
        "refused": dict(summary.refused),
        "gallery": summary.identities,
        "decisions": dict(noted.kinds),
        "threshold": noted.few(),
        "wall_s": round(seconds, 2),
        "networks_s": round(networks, 2),
        "stages_s": {stage: round(taken, 2) for stage, taken in summary.stage_seconds.items()},
    }
