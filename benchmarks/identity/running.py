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

from benchmarks.identity.footage import Footage
from benchmarks.identity.measures import Evidence, Visits, boxes
from benchmarks.identity.timetable import Play
from benchmarks.scoring import Rows, read_mot
from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome, Summary
from edge_agent.agent.stages import Supply
from edge_agent.core.loading import load
from edge_agent.core.structures import DecisionKind

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
class Thresholds:
    """Threshold over time, as far as decisions state it; and the kinds of the decisions."""

    begun: float | None = None
    changes: list[tuple[float, float | None, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def __call__(self, outcome: FrameOutcome) -> None:
        """Note the decisions of a frame."""
        self.begun = outcome.update.time if self.begun is None else self.begun
        for one in outcome.decisions:
            self.kinds[
                one.kind.value + (f" ({one.reason})" if one.kind is DecisionKind.CORRECTED else "")
            ] += 1
            value = None if one.threshold is None else round(float(one.threshold), 3)
            if not self.changes or self.changes[-1][1:] != (value, one.rule):
                self.changes.append((round(one.time - self.begun, 1), value, one.rule))

    def few(self, most: int = 8) -> list[tuple[float, float | None, str]]:
        """Return the first, the last, and some between."""
        step = max(1, len(self.changes) // most)
        return [*self.changes[:-1:step], *self.changes[-1:]]


def run_clips(
    clips: Sequence[Footage], detector: str, network: Network, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run the agent over recordings of cameras that belong together, with one gallery."""
    with tempfile.TemporaryDirectory(prefix="identity-") as folder:
        mot, final = Path(folder) / "online.txt", Path(folder) / "final.txt"
        sources = [{"id": clip.camera, "url": f"{clip.camera}.avi"} for clip in clips]
        values = {"sources": sources, "detector": {"kind": detector}, "engine": network.settings}
        noted = Thresholds()
        supply = Supply([clip.source() for clip in clips])
        summary, seconds = _run(
            values, extra, folder, Outputs(mot=mot, mot_final=final), noted, supply=supply
        )
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
        return result | _figures(summary, seconds, noted)


def visits_of(clip: Footage, truth: Visits) -> Rows:
    """Return a camera's truth with ids of visits, which are added to `truth`."""
    rows: Rows = {}
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
        noted, online, tracks = Thresholds(), Evidence(), dict[tuple[str, int], Counter[int]]()
        agents: list[Agent] = []
        holders: dict[tuple[str, int], int | None] = {}

        def observe(outcome: FrameOutcome) -> None:
            noted(outcome)
            for one in outcome.decisions:
                holders[one.camera, one.track_id] = one.number
            if outcome.item is None:
                return
            visits = shown[outcome.update.camera, outcome.update.frame]
            if len(visits) != len(outcome.update.seen):
                raise AssertionError(f"{len(outcome.update.seen)} of {len(visits)} crops were observed")
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
        final = Evidence()
        stages = agents[0].stages
        assert stages is not None
        for key, visits in tracks.items():
            number = stages.identifier.number(*key)
            number = holders.get(key) if number is None else number
            if number is not None:
                for visit, count in visits.items():
                    final.votes[visit][number] += count
                    final.given[number] += count
        truth = play.truth()
        return {
            "online": asdict(online.measure(truth)),
            "final": asdict(final.measure(truth)),
        } | _figures(summary, seconds, noted)


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


def _figures(summary: Summary, seconds: float, noted: Thresholds) -> dict[str, Any]:
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
