"""Publishes what happened to identities: merged, forgotten, named."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.core.events import Event, new_event
from edge_agent.core.presence import PersonData

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock
    from edge_agent.deliver.home_people import PeopleAnnouncer
    from edge_agent.deliver.publisher import AnyPublisher
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.notices import Notice
    from edge_agent.gallery.rows import Identity
    from edge_agent.identify import Identifier

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PeopleEvents:
    """Publishes the notices of the gallery, of this process and of others; only for the driving thread."""

    gallery: Gallery
    identifier: Identifier
    publisher: AnyPublisher
    clock: Clock
    home: PeopleAnnouncer | None = None
    """Announces the named people to Home Assistant."""

    def start(self) -> None:
        """Publish what happened before this run, and announce the named people."""
        self.run()
        self._announce()

    def run(self) -> None:
        """Publish what waits. A kill before the end publishes some of it again, with the same meaning."""
        try:
            notices = self.gallery.notices.waiting()
            for notice in notices:
                self._follow(notice)
                event = self._event(notice)
                if event is not None:
                    self.publisher.publish(event)
            if notices:
                self.gallery.notices.published(notices[-1])
                self._announce()
        except EdgeAgentError as error:  # a full disk: they are published later
            _log.warning("people_events_wait", error=str(error))

    def _announce(self) -> None:
        if self.home is None:
            return
        try:
            with self.gallery.file.reading() as rows:
                named = rows.identities("WHERE name IS NOT NULL ORDER BY number")
            self.home.update({one.id: one.name for one in named if one.name is not None})
        except EdgeAgentError as error:
            _log.warning("people_not_announced", error=str(error))

    def _follow(self, notice: Notice) -> None:
        """Let the open tracks follow; a change that the identifier made itself has no effect."""
        if notice.kind == "forgotten":
            self.identifier.forgotten(notice.number)
        elif notice.kind == "split":
            self._follow_split(notice)
        elif notice.other_number is not None:
            self.identifier.merged(notice.other_number, notice.number)

    def _follow_split(self, notice: Notice) -> None:
        if notice.other_number is not None:
            with contextlib.suppress(InputError):  # forgotten meanwhile: a later notice follows
                self.identifier.split(notice.other_number, notice.number)

    def _event(self, notice: Notice) -> Event | None:
        if notice.kind == "split":
            return self._split_event(notice)
        kept = notice.id if notice.other is None else notice.other
        person = known_person(self.gallery, kept)
        if notice.kind == "forgotten":
            data = PersonData("forgotten", notice.id, reason=notice.reason)
        elif person is None and notice.kind == "named":
            return None  # forgotten meanwhile: a later notice reports it
        else:
            data = PersonData(
                notice.kind,
                kept,
                absorbed_id=None if notice.other is None else notice.id,
                number=None if person is None else person.number,
                name=None if person is None else person.name,
                reason=notice.reason,
            )
        return new_event("person", data, detail=data.kind, time=self.clock.label())

    def _split_event(self, notice: Notice) -> Event | None:
        person = known_person(self.gallery, notice.id)
        if person is None:
            return None  # as above
        data = PersonData(
            "split",
            notice.id,
            split_from_id=notice.other,
            number=person.number,
            name=person.name,
            reason=notice.reason,
        )
        return new_event("person", data, detail=data.kind, time=self.clock.label())


def known_person(gallery: Gallery, identity: str) -> Identity | None:
    """Return a person by an id, also a former one; None when there is none."""
    try:
        return gallery.get(identity)
    except InputError:
        return None
