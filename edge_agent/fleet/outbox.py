"""What a device sends to its site: the state of people who changed, erased people, pairs, and means.

Changes are noted in the gallery file, see `gallery.fleet_rows`. They stay noted until the store has confirmed
that it has them, so a kill at any time, or a store that lost the last change, only repeats them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from edge_agent.fleet.records import (
    MOST_SHARED,
    Apart,
    CameraMean,
    PersonChange,
    Push,
    PushResult,
    Reason,
    Setting,
    SharedExemplar,
)
from edge_agent.gallery.exemplars import diverse_rows, grades
from edge_agent.gallery.fleet_rows import Change
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.rows import Rows

STEP = 16
"""People that are read at once, so that nobody waits for the lock of the gallery for long."""
_MEAN_GROWN = 0.1
"""Share of the people of a mean by which it changes before it is sent again."""


@dataclass(slots=True)
class Parcel:
    """Changes that are sent together, and what removes their notes."""

    people: list[PersonChange] = field(default_factory=list)
    noted: list[tuple[int, int, float | None]] = field(default_factory=list)
    """Number, count of the change, and instant of the latest sighting, of each of `people`."""
    erased: list[tuple[str, Reason]] = field(default_factory=list)
    pairs: list[Apart] = field(default_factory=list)
    numbers: list[tuple[int, int]] = field(default_factory=list)
    """Numbers of `pairs`."""
    means: list[CameraMean] = field(default_factory=list)
    result: PushResult | None = None
    """What the store answered."""

    @property
    def push(self) -> Push:
        """What is sent."""
        return Push(tuple(self.people), tuple(self.erased), tuple(self.pairs), tuple(self.means))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be sent."""
        return not (self.people or self.erased or self.pairs or self.means)


class Outbox:
    """The changes of an open gallery that its site does not have yet. `device` is the name of this one."""

    def __init__(self, gallery: Gallery, device: str) -> None:
        self._gallery = gallery
        self._device = device

    def read_people(self, parcel: Parcel, after: int, most: int) -> int | None:
        """Add at most `most` changed people with numbers above `after`; return the last, None: no more."""
        with self._gallery.file.reading() as rows:
            changes = rows.fleet.changes(after, min(STEP, most))
            if not changes:
                return None
            for change, person, seen in _people(rows, changes):
                parcel.people.append(person)
                parcel.noted.append((change.number, change.count, seen))
        return changes[-1].number

    def read_others(self, parcel: Parcel, most: int) -> None:
        """Add erased people, pairs of people who are two, and means that changed."""
        with self._gallery.file.reading() as rows:
            parcel.erased += rows.fleet.erased(most)
            sent = {number for number, _, _ in parcel.noted}
            for first, second, one, other, reason in rows.fleet.pairs.changes(most, sent):
                parcel.numbers.append((first, second))
                parcel.pairs.append(Apart(min(one, other), max(one, other), reason))
            parcel.means += self._changed_means(rows)

    def _changed_means(self, rows: Rows) -> list[CameraMean]:
        """Return the means that differ from those of the site, also of views without people any more."""
        file = self._gallery.file
        if not file.is_centred:
            return []
        known = {
            (camera, epoch): CameraMean(self._device, camera, epoch, people, total)
            for camera, epoch, people, total in rows.site.means(self._gallery.dimension, own=True)
        }
        nobody = {
            view: replace(mean, people=0.0, total=np.zeros_like(mean.total)) for view, mean in known.items()
        }
        present = {
            (camera, epoch): CameraMean(self._device, camera, epoch, people, total)
            for camera, epoch, people, total in file.means.own()
        }
        return [mean for view, mean in (nobody | present).items() if _has_changed(known.get(view), mean)]

    def confirmed(self, parcel: Parcel) -> None:
        """Remove the notes of a parcel that the store certainly has; later changes stay noted."""
        assert parcel.result is not None
        with self._gallery.file.changing(durable=False) as rows:
            rows.fleet.sent(parcel.noted)
            rows.fleet.pairs.sent(parcel.numbers)
            rows.fleet.erased_sent(parcel.erased, parcel.result.version)
            for mean in parcel.means:
                rows.site.put_mean(mean.camera, mean.epoch, mean.people, mean.total)


def _people(rows: Rows, changes: Sequence[Change]) -> Iterator[tuple[Change, PersonChange, float | None]]:
    """Yield the state of changed people, and the instant of their latest sighting; few statements for all."""
    numbers = [change.number for change in changes]
    marks = ",".join("?" * len(numbers))
    people = {
        number: one
        for number, *one in rows.store.rows(
            "SELECT number, id, kind, name, ttl, created, last_seen, seen FROM identity"  # noqa: S608
            f" WHERE number IN ({marks})",
            numbers,
        )
    }
    former = defaultdict(list)
    for number, former_id in rows.store.rows(
        f"SELECT number, id FROM former WHERE number IN ({marks}) ORDER BY id",  # noqa: S608
        numbers,
    ):
        former[number].append(former_id)
    cameras, span_s = rows.exemplars.latest_cameras(numbers), rows.ages.span()
    shared = _exemplars(rows, [change.number for change in changes if change.content])
    for change in changes:
        id_, kind, name, ttl_s, created, last_seen, seen = people[change.number]
        last_age_s, since_s = rows.ages.of(seen) or 0.0, max(0.0, last_seen - created)
        if span_s is not None:
            since_s = min(since_s, max(0.0, span_s - last_age_s))
        sent = PersonChange(
            id=id_,
            former=tuple(former[change.number]),
            kind=kind,
            name=Setting(name) if change.name else None,
            ttl_s=Setting(ttl_s) if change.ttl else None,
            first_age_s=last_age_s + since_s,
            last_age_s=last_age_s,
            camera=cameras.get(change.number, ""),
            exemplars=shared[change.number] if change.content else None,
        )
        yield change, sent, seen


def _exemplars(rows: Rows, numbers: Sequence[int]) -> dict[int, tuple[SharedExemplar, ...]]:
    """Return the exemplars of this device that it shares of people: the most diverse of good quality."""
    own = rows.exemplars.own_of(numbers)
    vectors = rows.exemplars.unpacked([row[1] for row in own])
    qualities = grades([row[2] for row in own])
    shared: dict[int, tuple[SharedExemplar, ...]] = dict.fromkeys(numbers, ())
    for number, places in groupby(range(len(own)), lambda place: own[place][0]):
        theirs = list(places)
        kept = diverse_rows(vectors[theirs], qualities[theirs], MOST_SHARED)
        shared[number] = tuple(
            SharedExemplar(own[place][3], own[place][4], float(qualities[place]), vectors[place])
            for place in (theirs[each] for each in kept.tolist())
        )
    return shared


def _has_changed(before: CameraMean | None, now: CameraMean) -> bool:
    if before is None or now.people < before.people:  # of an erased person nothing stays
        return True
    if not before.people or not now.people:
        return now.people > 0
    if now.people - before.people >= max(1.0, _MEAN_GROWN * before.people):
        return True
    moved = now.total / now.people - before.total / before.people
    return float(np.sqrt(moved @ moved)) > _MEAN_GROWN
