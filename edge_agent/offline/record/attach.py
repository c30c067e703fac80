"""Attach the video and the report to an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.offline.record.people import PeopleReport
from edge_agent.offline.record.video import AnnotatedVideo

if TYPE_CHECKING:
    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.results import Summary


@contextmanager
def recording(
    agent: Agent, *, video: Path | None, report: Path | None
) -> Iterator[Callable[[Summary], None]]:
    """Record what the agent does while the block runs; call what it gives with the summary of the run.

    Raises:
        InputError: a file cannot be written, or the name of the video does not end in .mp4.
    """

    def number(camera: str, track_id: int) -> int | None:
        return None if agent.stages is None else agent.stages.identifier.number(camera, track_id)

    people = None if report is None else PeopleReport(report, number)
    if people is not None:
        agent.add_observer(people)
    with ExitStack() as stack:
        if video is not None:
            cameras = sum(source.enabled for source in agent.settings.sources)
            agent.add_observer(stack.enter_context(AnnotatedVideo(video, cameras, number)))
        yield lambda summary: None if people is None else people.write(summary)
