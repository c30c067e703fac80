"""Deletes the events and pictures of identities that the gallery has erased.

Events in the outbox name a person by an opaque id; pictures in crop folders show the person. What has to
be deleted is noted in the gallery file before the identity is erased, or in the same transaction, and the
note is removed after the deletion. So a kill, a full disk, or a command that may not touch the outbox of a
running agent only delays it.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from edge_agent.core.structures import LONE_TRACKS, Decision, DecisionKind, Pictures, TrackUpdate
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.rows import EVENTS_FACT, SCRUB_FACT, Erased, Identity, Rows
from edge_agent.gallery.sync import SyncedFile

T = TypeVar("T")


class PictureFolder(Protocol):
    """The crop folder `edge_agent.source.crops.CropFolderSource`."""

    def owns(self, camera: str) -> bool:
        """Return whether the crops of this camera are in it."""

    def erase(self, pictures: Collection[Pictures]) -> int:
        """Delete the pictures of these tracks; return how many."""


class PictureNotes:
    """Which pictures in crop folders show which identity, so that they can be deleted with it."""

    def __init__(self, file: SyncedFile) -> None:
        self._file = file

    def note(self, number: int, camera: str, track: int, since: float) -> bool:
        """Note that the pictures of a track since a time show this identity, instead of one noted before.

        Returns False where nothing was noted: there is no such identity, or pictures noted for this track are
        still to be deleted.
        """
        return self.note_moments(number, camera, track, [since])

    def note_moments(self, number: int, camera: str, track: int, moments: Sequence[float]) -> bool:
        """Note single pictures of a track by their times, as in `note`."""
        with self._file.changing(durable=False) as rows:
            done = [
                rows.store.run(
                    "INSERT INTO pictures SELECT ?, ?, ?, number FROM identity WHERE number = ?"
                    " ON CONFLICT DO UPDATE SET number = excluded.number WHERE pictures.number IS NOT NULL",
                    (camera, track, since, number),
                ).rowcount
                for since in moments
            ]
            return any(count > 0 for count in done)

    def move(self, number: int, camera: str, track: int, since: float) -> None:
        """Note that the pictures noted for a track from a time on show this identity."""
        with self._file.changing(durable=False) as rows:
            rows.store.run(
                "UPDATE pictures SET number = ? WHERE camera = ? AND track = ? AND since >= ?"
                " AND number IS NOT NULL AND EXISTS (SELECT 1 FROM identity WHERE number = ?)",
                (number, camera, track, since, number),
            )

    def orphaned(self) -> list[Pictures]:
        """Return the pictures of identities that were erased, until `removed` is called for them."""
        with self._file.reading() as rows:
            found = rows.store.rows(
                "SELECT camera, track, since, (SELECT min(later.since) FROM pictures AS later WHERE"
                " later.camera = pictures.camera AND later.track = pictures.track"
                " AND later.since > pictures.since) FROM pictures WHERE number IS NULL"
            )
        return [
            Pictures(camera, track, since, math.inf if until is None else until)
            for camera, track, since, until in found
        ]

    def removed(self, gone: Iterable[Pictures]) -> None:
        """Delete the notes of pictures that were deleted."""
        with self._file.changing() as rows:
            rows.store.run_many(
                "DELETE FROM pictures WHERE camera = ? AND track = ? AND since = ? AND number IS NULL",
                [(one.camera, one.track, one.since) for one in gone],
            )


@dataclass(frozen=True, slots=True)
class Removed:
    """Number of deleted events and pictures."""

    events: int = 0
    pictures: int = 0


def forget(gallery: Gallery, number: int) -> Erased:
    """Erase a person from the gallery, and note what `Erasure.run` has to delete.

    InputError when there is no such identity. On StorageError, what was noted is deleted all the same.
    """
    _note(gallery, _words(gallery, gallery.get(number)))
    return gallery.forget(number)


def forget_all(gallery: Gallery) -> list[Erased]:
    """Erase all identities, as in `forget`."""
    known = [word for one in gallery.identities() for word in _words(gallery, one)]
    _note(gallery, known)  # before: a kill must not leave their events
    erased = gallery.forget_all()
    added = {id_ for one in erased for id_ in (one.id, *one.former_ids)}.difference(known)
    if added:  # by another process, meanwhile
        _note(gallery, sorted(added))
    return erased


def erase_in(rows: Rows, number: int, reason: str) -> Erased:
    """Erase a person in the present transaction, and note there what `Erasure.run` has to delete."""
    person = rows.identity(number)
    words = [person.id, *rows.former_ids(number)]
    if rows.apart.was_split(number):
        words += sorted(set(rows.exemplars.origins(number)))
    noted = json.loads(rows.store.value("SELECT value FROM fact WHERE key = ?", (EVENTS_FACT,)) or "[]")
    text = json.dumps([*noted, *words])
    rows.store.run("INSERT OR REPLACE INTO fact VALUES (?, ?)", (EVENTS_FACT, text))
    return rows.erase(person, reason)


def _words(gallery: Gallery, person: Identity) -> list[str]:
    """Return what events and recordings of a person contain: ids; of a split one, also the tracks."""
    number = person.number
    return [person.id, *gallery.former_ids(number), *gallery.corrections.separated(number)]


def _note(gallery: Gallery, words: Iterable[str]) -> None:
    gallery.facts.change(EVENTS_FACT, lambda noted: [*(noted or []), *words])


@dataclass(slots=True)
class Erasure:
    """Notes which pictures show whom, and deletes what has to be deleted. Any thread may call it.

    `events` deletes the events that contain an id from the outbox, and returns their number. `folders` are
    those that the agent reads.
    """

    gallery: Gallery
    events: Callable[[str], int]
    folders: Sequence[PictureFolder] = ()
    _pictures: PictureNotes = field(init=False)
    _noted: dict[tuple[str, int], int] = field(default_factory=dict)
    _moments: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    """Times of the crops of open groups that are not noted yet, see `track.crops.CropGroups`."""
    _ended: list[tuple[str, int]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._pictures = PictureNotes(self.gallery.file)

    def saw(self, update: TrackUpdate) -> None:
        """Keep the times of crops without a track: such a crop is found in its folder by its time."""
        for key in self._ended:
            self._moments.pop(key, None)
        self._ended = [(update.camera, track) for track in update.ended if track > LONE_TRACKS]
        for seen in update.seen:
            if seen.track_id <= LONE_TRACKS or not self._is_in_a_folder(update.camera):
                continue
            key = update.camera, seen.track_id
            number = self._noted.get(key)
            if number is None or not self._pictures.note_moments(number, *key, [seen.time]):
                self._moments.setdefault(key, []).append(seen.time)

    def _is_in_a_folder(self, camera: str) -> bool:
        return any(folder.owns(camera) for folder in self.folders)

    def note(self, decision: Decision) -> None:
        """Note whom the pictures of a track show, where they are in a crop folder."""
        key = decision.camera, decision.track_id
        if decision.number is None or not self._is_in_a_folder(decision.camera):
            return
        if decision.track_id > LONE_TRACKS:
            self._note_group(key, decision.number, decision.first_seen)
        elif self._noted.get(key) != decision.number and self._pictures.note(
            decision.number, *key, decision.first_seen
        ):
            self._noted[key] = decision.number
        if decision.kind is DecisionKind.DEPARTED:
            self._noted.pop(key, None)

    def _note_group(self, key: tuple[str, int], number: int, since: float) -> None:
        if self._noted.get(key) != number:
            self._pictures.move(number, *key, since)
            self._noted[key] = number
        if moments := self._moments.pop(key, []):
            self._pictures.note_moments(number, *key, moments)

    def forget(self, erase: Callable[[], T]) -> tuple[T, Removed]:
        """Erase people by `erase` (see `forget`), then as `run`; raises what either raises."""
        with self._lock:
            return erase(), self.run()

    def run(self) -> Removed:
        """Delete the events and pictures of all erased identities.

        Pictures in folders that are not read now stay noted until they are, as does all that could not be
        deleted (StorageError). When this returns, the gallery file has no copies of erased rows and notes,
        also of people who expired or were evicted.
        """
        with self._lock:
            removed = Removed(self._erase_events(), self._erase_pictures())
            if self.gallery.facts.get(SCRUB_FACT):
                self.gallery.file.scrub()
                self.gallery.facts.set(SCRUB_FACT, None)
            return removed

    def _erase_events(self) -> int:
        noted = self.gallery.facts.get(EVENTS_FACT) or []
        erased = sum(self.events(opaque) for opaque in noted)
        if noted:  # another process may have added to them
            self.gallery.facts.change(SCRUB_FACT, lambda _: True)
            self.gallery.facts.change(
                EVENTS_FACT, lambda now: [one for one in now or [] if one not in noted] or None
            )
        return erased

    def _erase_pictures(self) -> int:
        gone = self._pictures.orphaned()
        removed = 0
        for folder in self.folders if gone else ():
            if own := [one for one in gone if folder.owns(one.camera)]:
                removed += folder.erase(own)
                self.gallery.facts.change(SCRUB_FACT, lambda _: True)
                self._pictures.removed(own)
        return removed
