"""Everything that is kept of a person besides the gallery goes with the person.

Events that wait in the outbox name the person by an opaque id; pictures in crop folders show the person.
What has to go is written into the gallery file before, or in the same transaction as, the person's own rows
are erased, and is taken off that list when it is gone. So a kill, a full disk, or a command that finds the
agent running and may not touch its outbox only puts it off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edge_agent.core.structures import Decision, DecisionKind, Pictures
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.identity import Erased

__all__ = ["Erasure", "Removed", "forget", "forget_all"]

_EVENTS_FACT = "events_to_erase"


class PictureFolder(Protocol):
    """A crop folder; see `edge_agent.source.crops.CropFolderSource`."""

    def owns(self, camera: str) -> bool:
        """Whether the crops of this camera come from it."""

    def erase(self, pictures: Collection[Pictures]) -> int:
        """Delete the pictures of these tracks."""


@dataclass(frozen=True, slots=True)
class Removed:
    """How many events and pictures were erased."""

    events: int = 0
    pictures: int = 0


def forget(gallery: Gallery, number: int) -> Erased:
    """Erase a person from the gallery, and note what else has to go; see `Erasure.run`.

    Raises:
        InputError: there is no such identity.
        StorageError: it could not be done; what was noted goes all the same.
    """
    _note(gallery, [gallery.get(number).id, *gallery.former_ids(number)])
    return gallery.forget(number)


def forget_all(gallery: Gallery) -> list[Erased]:
    """Erase everybody, as in `forget`; errors likewise."""
    erased = gallery.forget_all()
    _note(gallery, [opaque for one in erased for opaque in (one.id, *one.former_ids)])
    return erased


def _note(gallery: Gallery, ids: Iterable[str]) -> None:
    gallery.facts.change(_EVENTS_FACT, lambda noted: [*(noted or []), *ids])


@dataclass(slots=True)
class Erasure:
    """Knows what is kept of people beside the gallery, and removes what has to go.

    Args:
        gallery: open.
        events: removes the events with this word from the outbox; returns how many.
        folders: crop folders that the agent reads.
    """

    gallery: Gallery
    events: Callable[[str], int]
    folders: Sequence[PictureFolder] = ()
    _noted: dict[tuple[str, int], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, decision: Decision) -> None:
        """Remember whom the pictures of a track show, where they come from a crop folder."""
        key = decision.camera, decision.track_id
        if decision.number is None or not any(folder.owns(decision.camera) for folder in self.folders):
            return
        if self._noted.get(key) != decision.number and self.gallery.pictures.note(
            decision.number, *key, decision.first_seen
        ):
            self._noted[key] = decision.number
        if decision.kind is DecisionKind.DEPARTED:
            self._noted.pop(key, None)

    def forget(self, erase: Callable[[], Erased]) -> tuple[Erased, Removed]:
        """Erase one person by `erase` (see `forget`), and at once what else is kept of them.

        Raises:
            Whatever `erase` raises, and StorageError as in `run`.
        """
        with self._lock:
            return erase(), self._run()

    def run(self) -> Removed:
        """Remove the events and pictures of everybody who is gone. May be called from any thread.

        Pictures in folders that are not read now stay noted until they are.

        Raises:
            StorageError: some could not be removed; they stay noted.
        """
        with self._lock:
            return self._run()

    def _run(self) -> Removed:
        return Removed(self._erase_events(), self._erase_pictures())

    def _erase_events(self) -> int:
        noted = self.gallery.facts.get(_EVENTS_FACT) or []
        erased = 0
        for opaque in noted:
            erased += self.events(opaque)
        if noted:  # somebody may have noted more meanwhile
            self.gallery.facts.change(
                _EVENTS_FACT, lambda now: [one for one in now or [] if one not in noted] or None
            )
        return erased

    def _erase_pictures(self) -> int:
        gone = self.gallery.pictures.orphaned()
        removed = 0
        for folder in self.folders if gone else ():
            own = [one for one in gone if folder.owns(one.camera)]
            if own:
                removed += folder.erase(own)
                self.gallery.pictures.removed(own)
        return removed
