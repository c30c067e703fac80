"""What `edge-agent run` shows of a run: people and progress on a terminal, and a summary at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_agent.cli.output import bar_columns, console
from edge_agent.core.names import person_title
from edge_agent.core.text import LONGEST_CELL, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.results import FrameOutcome, Summary
    from edge_agent.core.config import Settings
    from edge_agent.core.structures import Decision

_REFRESH_FRAMES = 5
"""Frames between two updates of the bar."""


@contextmanager
def showing(agent: Agent) -> Iterator[None]:
    """Show one line per event, and a bar, while the block runs; nothing where stderr is no terminal.

    Lines of the log appear above the bar.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    from rich.progress import Progress, TextColumn

    from edge_agent.agent.status import configure_logs

    total = _frames_to_read(agent.settings)
    dropped = TextColumn("{task.fields[dropped]} dropped", markup=False)
    with Progress(*bar_columns(), dropped, console=screen, transient=True) as progress:
        configure_logs(agent.settings)  # on the stream that Progress has put in place
        task = progress.add_task("frames", total=total, dropped=0)
        agent.add_observer(_View(agent, progress, task))
        yield
    configure_logs(agent.settings)


def _frames_to_read(settings: Settings) -> int | None:
    """Return the frames of all video files by their headers; None where another source is read."""
    from edge_agent.source.address import local_path, source_kind
    from edge_agent.source.file import header_frames

    total = 0
    for source in settings.sources:
        if source.enabled:
            frames = header_frames(local_path(source.url)) if source_kind(source.url) == "file" else None
            if frames is None:
                return None
            total += frames
    return total


class _View:
    """Prints the decisions and updates the bar."""

    def __init__(self, agent: Agent, progress: Progress, task: TaskID) -> None:
        self._agent, self._progress, self._task = agent, progress, task
        self._frames = 0
        self._people: dict[tuple[str, int], str] = {}

    def __call__(self, outcome: FrameOutcome) -> None:
        for decision in outcome.decisions:
            before = self._people.get((decision.camera, decision.track_id))
            line = event_line(decision, before)
            self._people[decision.camera, decision.track_id] = _person(decision)
            self._progress.console.print(visible(line, LONGEST_CELL))
        for ended in outcome.update.ended:
            self._people.pop((outcome.update.camera, ended), None)
        self._frames += outcome.item is not None
        if self._frames % _REFRESH_FRAMES == 0:
            stages = self._agent.stages
            dropped = 0 if stages is None else sum(one.dropped for one in stages.sources.readers)
            self._progress.update(self._task, completed=self._frames, dropped=dropped)


def event_line(decision: Decision, before: str | None) -> str:
    """Return a decision as one line; `before` is the person that the track had been given."""
    from datetime import datetime, timezone

    clock = datetime.fromtimestamp(decision.time, timezone.utc).strftime("%H:%M:%S")
    person = _person(decision)
    if decision.previous is not None and before not in {None, person}:
        person = f"{before} -> {person}"
    score = ""
    if decision.score is not None and decision.threshold is not None:
        score = f"  {decision.score:.2f} (threshold {decision.threshold:.2f}, {decision.rule})"
    why = f"  {decision.reason}" if decision.reason else ""
    where = f"{decision.camera} #{decision.track_id}"
    return f"{clock}  {where:<16} {decision.kind.value:<9} {person}{score}{why}"


def _person(decision: Decision) -> str:
    if decision.number is None:
        return "unknown"
    return person_title(decision.number, decision.name)


def summary_lines(summary: Summary, settings: Settings) -> list[str]:
    """Return what a run did, why nothing was embedded where nothing was, and the next command."""
    frames = sum(summary.frames.values())
    lines = [
        f"{frames} frames, {summary.crops} crops embedded, "
        + (f"{summary.received} embeddings from upstream, " if summary.received else "")
        + f"{summary.decisions} events, "
        f"{summary.identities} people in the gallery, {summary.seconds:.1f} s"
    ]
    lines += [f"{count} frames of {camera} dropped" for camera, count in summary.dropped.items() if count]
    if frames and not summary.crops and not summary.received:
        lines += _why_nothing(summary, settings)
    lines += [*summary.small, *_cost_of_hog(summary)]
    if summary.undelivered:
        lines.append(
            f"{summary.undelivered} events wait in the outbox: "
            "the broker was not reached, or has no subscriber for them"
        )
    if summary.identities:
        lines.append(f"next: edge-agent gallery list --state {settings.state_dir}")
    return lines


def _cost_of_hog(summary: Summary) -> list[str]:
    """Return what HOG took of the run, where it was used."""
    from edge_agent.core.installed import FALLBACK
    from edge_agent.core.published import SUGGESTED_DETECTOR

    frames, seconds = sum(summary.frames.values()), summary.stage_seconds.get("detect", 0.0)
    if FALLBACK not in summary.detector.split("+") or not frames or not seconds:
        return []
    share = min(seconds / summary.seconds, 1.0) if summary.seconds else 1.0
    cost = f"{1000 * seconds / frames:.0f} ms a frame, {share:.0%} of the run"
    advice = f"edge-agent model fetch {SUGGESTED_DETECTOR} (docs/models.md#detectors)"
    return [f"the detector {summary.detector} took {cost}; a network finds more for less: {advice}"]


def _why_nothing(summary: Summary, settings: Settings) -> list[str]:
    """Return why no crop was embedded: nobody was found, or the quality gate refused all."""
    from edge_agent.core.published import SUGGESTED_DETECTOR
    from edge_agent.core.served import is_served
    from edge_agent.embed.quality import SETTINGS_OF
    from edge_agent.source.address import no_pictures

    if not summary.refused and no_pictures(one.url for one in settings.sources if one.enabled):
        return ["no embedding was received: upstream reports nobody, or without one (docs/deepstream.md)"]
    if not summary.refused:
        away = ", or the inference server was away" if is_served(settings.engine.backend) else ""
        return [
            f"no crop was embedded: the detector {summary.detector} found nobody{away}; "
            f"try edge-agent model fetch {SUGGESTED_DETECTOR}, or lower detector.low and detector.new_track"
        ]
    lines = [f"no crop was embedded: {sum(summary.refused.values())} boxes were refused"]
    for reason, count in sorted(summary.refused.items(), key=lambda item: -item[1]):
        keys = SETTINGS_OF.get(reason, ())
        hint = f" (see {', '.join(f'quality.{key}' for key in keys)})" if keys else ""
        lines.append(f"  {count} {reason}{hint}")
    return lines
