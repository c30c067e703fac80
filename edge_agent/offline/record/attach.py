"""Attach the video and the report to an agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.agent.daemon import Agent


@contextmanager
def recording(agent: Agent, *, video: Path | None, report: Path | None) -> Iterator[None]:
    """Record what the agent does while the block runs it; the report is written if the run has a summary.

    Raises:
        InputError: a file cannot be written, or the name of the video does not end in .mp4.
    """

    def number(camera: str, track_id: int, time: float) -> int | None:
        return None if agent.stages is None else agent.stages.identifier.number(camera, track_id, time)

    with ExitStack() as stack:
        if report is not None:
            from edge_agent.offline.record.people import PeopleReport

            people = PeopleReport(report, number)
            agent.add_observer(people)

            def write() -> None:
                if agent.summary is not None:
                    people.write(agent.summary)

            stack.callback(write)
        if video is not None:
            from edge_agent.offline.record.video import AnnotatedVideo

            cameras = sum(source.enabled for source in agent.settings.sources)
            agent.add_observer(stack.enter_context(AnnotatedVideo(video, cameras, number)))
        yield
