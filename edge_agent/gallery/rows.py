"""Identities in the gallery file: SQL statements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from edge_agent.core.errors import InputError
from edge_agent.core.names import composed, new_id
from edge_agent.core.text import LONGEST_CELL, is_visible, visible
from edge_agent.gallery.ages import Ages
from edge_agent.gallery.apart_rows import ApartRows
from edge_agent.gallery.crop_rows import CropRows
from edge_agent.gallery.exemplars import Exemplars, Source
from edge_agent.gallery.fleet_rows import FleetRows
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.site_rows import SiteRows
from edge_agent.gallery.store import Store

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock
    from edge_agent.core.config import GallerySettings

Kind = Literal["auto", "enrolled"]
"""`auto`: an unknown person who was seen well enough; `enrolled`: entered or named by an operator."""
_DIGITS = 19
"""Numbers of identities have fewer digits than the largest of SQLite, 2^63 - 1."""
_TTL = (
    "CASE WHEN ttl = 0 THEN NULL WHEN ttl > 0 THEN ttl ELSE"
    " (SELECT value FROM meta WHERE key = CASE kind WHEN 'auto' THEN 'ttl_s' ELSE 'enrolled_ttl_s' END) END"
)
"""Seconds from the last sighting to the expiry; NULL: never."""
_IDENTITY = (
    f"SELECT number, id, name, kind, created, last_seen, {_TTL}, ttl, "  # noqa: S608 - constants
    "(SELECT count(*) FROM exemplar WHERE exemplar.number = identity.number), sightings, seen FROM identity"
)

MOST_NOTICES = 10_000
"""Changes that wait to be published by an agent; the oldest are dropped."""
HOME_FACT = "home_assistant_people"
"""Ids of the people that are announced to Home Assistant."""
EVENTS_FACT = "events_to_erase"
"""Ids of erased people, and tracks of split ones, whose events and recordings have to be deleted."""
CAMERAS_FACT = "cameras"
"""Epochs of moved cameras, and votes of people without an identity; see `gallery.cameras`."""
SCRUB_FACT = "to_scrub"
"""Set while copies of deleted rows may be in pages and in the write-ahead log."""
OWN_FACTS = (EVENTS_FACT, SCRUB_FACT, HOME_FACT)
"""Facts that do not belong to the embedding space."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One person in the gallery. Times are Unix seconds.

    Attributes:
        number: counts identities within this gallery file, from 1; never reused.
        id: opaque and random, the same wherever the identity is exported to.
        name: what the operator calls the person, unique in the gallery, or None.
        kind: `auto` identities may be evicted from a full gallery; each kind has its own time to live.
        created, last_seen: when it was enrolled and last touched, by the time of recorded material; labels.
        expires: when it will be erased, by the clock of the gallery, or None for never.
        ttl_s: its own time to live in seconds, 0.0 for ever; None: that of its kind.
        exemplars: number of embeddings.
        sightings: one for the enrolment, one for each touch that counts.
    """

    number: int
    id: str
    name: str | None
    kind: Kind
    created: float
    last_seen: float
    expires: float | None
    ttl_s: float | None
    exemplars: int
    sightings: int


@dataclass(frozen=True, slots=True)
class Person:
    """Who an identity is; see `Identity`."""

    number: int
    id: str
    name: str | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class Erased:
    """An identity that was removed from the disk and from memory: its `exemplars`, in all `bytes` long, too.

    `former_ids` are those of identities that had been merged into it.
    """

    number: int
    id: str
    name: str | None
    exemplars: int
    former_ids: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Imported:
    """Number of identities that were added, and skipped because their id was in the gallery already."""

    added: int
    skipped: int


@dataclass(frozen=True, slots=True)
class GalleryStats:
    """Size and content of a gallery.

    Attributes:
        identities: of both kinds; `enrolled` and `named` of them have that kind, or a name.
        capacity, max_exemplars, ttl_s, enrolled_ttl_s, keep_crops: see `edge_agent.gallery.rows.Policy`.
        crops, crop_bytes: pictures of all identities, and their size.
        oldest_seen, newest_seen: earliest and latest `last_seen`, None while the gallery is empty.
        evicted: identities erased for lack of space since the gallery was opened.
        file_bytes: size on disk with its write-ahead log, 0 in memory.
        index_bytes: size of the search matrices in memory.
        Others: as of the gallery.
    """

    path: str
    space: str
    dimension: int
    identities: int
    enrolled: int
    named: int
    exemplars: int
    capacity: int
    max_exemplars: int
    ttl_s: float | None
    enrolled_ttl_s: float | None
    keep_crops: int
    crops: int
    crop_bytes: int
    oldest_seen: float | None
    newest_seen: float | None
    evicted: int
    file_bytes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Policy:
    """The part of the settings that is stored in the file, under these names; see `GallerySettings`."""

    capacity: int
    max_exemplars: int
    ttl_s: float | None
    enrolled_ttl_s: float | None
    keep_crops: int = 0

    @staticmethod
    def of(settings: GallerySettings) -> Policy:
        """Return the policy of a settings section."""
        auto, enrolled = (
            None if each is None else each * 3600
            for each in (settings.ttl_hours, settings.enrolled_ttl_hours)
        )
        return Policy(settings.capacity, settings.max_exemplars, auto, enrolled, settings.keep_crops)

    @staticmethod
    def stored(store: Store) -> Policy:
        """Return the policy that a gallery file contains."""
        capacity, exemplars, auto, enrolled, crops = (store.meta(field.name) for field in fields(Policy))
        crops = crops or 0  # missing in files of earlier versions
        if not (
            all(one is None or (type(one) is int and one > 0) for one in (capacity, exemplars))
            and all(one is None or (isinstance(one, (int, float)) and one > 0) for one in (auto, enrolled))
            and type(crops) is int
            and crops >= 0
        ):
            raise store.damage("its stored settings are none")
        return Policy(capacity, exemplars, auto, enrolled, crops)


class Rows:
    """The content of an open gallery file. Methods that write belong inside `Store.change`."""

    def __init__(self, store: Store, dimension: int, policy: Policy, clock: Clock | None = None) -> None:
        self.store = store
        self.policy = policy
        self.ages = Ages(store, clock)
        self.exemplars = Exemplars(store, dimension)
        self.crops = CropRows(store)
        self.apart = ApartRows(store)
        self.site = SiteRows(store)
        self.fleet = FleetRows(store, self.site)
        self.fleet.follow()

    def identity(self, number: int) -> Identity:
        """Return one identity; InputError when there is none of this number."""
        found = self.identities("WHERE number = ?", number)
        if not found:
            raise _unknown(number)
        return found[0]

    def person(self, number: int) -> Person:
        """Return who one identity is, which takes a third of the time of all of it; errors as there."""
        found = self.store.rows("SELECT number, id, name, kind FROM identity WHERE number = ?", (number,))
        if not found:
            raise _unknown(number)
        return Person(*found[0])

    def identities(self, condition: str = "ORDER BY number", *values: float) -> list[Identity]:
        """Return the identities that fulfil an SQL condition."""
        found = self.store.rows(f"{_IDENTITY} {condition}", values)
        return [self._identity(row) for row in found]

    def _identity(self, row: tuple[Any, ...]) -> Identity:
        number, opaque, name, kind, created, last_seen, ttl_s, own_ttl_s, exemplars, sightings, seen = row
        expires = None if ttl_s is None else self.ages.label(seen, last_seen) + ttl_s
        return Identity(
            number, opaque, name, kind, created, last_seen, expires, own_ttl_s, exemplars, sightings
        )

    def expired(self) -> list[Identity]:
        """Return the identities that were not seen for their time to live, by the clock."""
        found: list[Identity] = []
        for (ttl_s,) in self.store.rows(f"SELECT DISTINCT {_TTL} FROM identity"):  # noqa: S608 - constants
            before = None if ttl_s is None else self.ages.ago(ttl_s)
            if before is not None:
                found += self.identities(f"WHERE {_TTL} = ? AND seen <= ? ORDER BY number", ttl_s, before)
        return found

    def find(self, key: int | str) -> Identity:
        """Return the identity with this number, id, former id, name, or number as text."""
        if isinstance(key, int):
            return self.identity(key)
        if not is_visible(key):
            raise _unknown(key)  # neither a name nor an id; SQLite refuses some of these texts
        name = key.strip()  # earlier versions stored names as they were typed
        by_name = "SELECT number FROM identity WHERE name IN (?, ?) ORDER BY name = ? DESC LIMIT 1"
        number = self.number_of(key) or self.store.value(by_name, (name, composed(name), name))
        if number is None and not (key.isdecimal() and len(key) < _DIGITS):
            raise _unknown(key)
        return self.identity(number or int(key))

    def number_of(self, opaque: str) -> int | None:
        """Return the number of the identity that has this id, or absorbed one that had it."""
        number: int | None = self.store.value(
            "SELECT number FROM identity WHERE id = ? UNION ALL SELECT number FROM former WHERE id = ?",
            (opaque, opaque),
        )
        return number

    def former_ids(self, number: int) -> tuple[str, ...]:
        """Return the ids of the identities that were merged into this one."""
        rows = self.store.rows("SELECT id FROM former WHERE number = ? ORDER BY id", (number,))
        return tuple(row[0] for row in rows)

    def require_free_name(self, name: str | None) -> None:
        """Raise InputError when an identity has this name."""
        number = self.store.value("SELECT number FROM identity WHERE name = ?", (name,))
        if number is not None:
            raise InputError(
                f"the name {name!r} belongs to identity {number} already; choose another, or merge the two: "
                f"edge-agent gallery merge {number} OTHER"
            )

    def insert(self, **values: object) -> int:
        """Add an identity (id, name, kind, created, last_seen, sightings, ttl_s); return its number.

        It was seen now, unless `seen` is given: an instant, see `gallery.ages`.
        """
        number = self.store.run(
            "INSERT INTO identity (id, name, kind, created, last_seen, sightings, ttl, revision, seen) VALUES"
            " (:id, :name, :kind, :created, :last_seen, :sightings, :ttl_s, random(), :seen)",
            {"seen": self.ages.seen(), **values},
        ).lastrowid
        assert number is not None  # an INSERT that did not raise has a row id
        if values["name"] is not None:
            self.notice("named", str(values["id"]), number, "operator")
        return number

    def update(self, number: int, assignments: str, *values: object) -> None:
        """Change columns of an identity, e.g. `name = ?`."""
        statement = f"UPDATE identity SET {assignments} WHERE number = ?"  # noqa: S608 - no values in it
        if not self.store.run(statement, (*values, number)).rowcount:
            raise _unknown(number)

    def notice(self, kind: str, id_: str, number: int, reason: str, other: Identity | None = None) -> None:
        """Note a change that subscribers have to learn of, see `gallery.notices`; the oldest make room."""
        into = (None, None) if other is None else (other.id, other.number)
        statement = (
            "INSERT INTO notice (kind, id, number, other, other_number, reason) VALUES (?, ?, ?, ?, ?, ?)"
        )
        row = self.store.run(statement, (kind, id_, number, *into, reason)).lastrowid
        self.store.run("DELETE FROM notice WHERE row <= ?", ((row or 0) - MOST_NOTICES,))

    def merge(self, keep: int, absorb: int, reason: str) -> Identity:
        """Move everything of `absorb` to `keep`; see `Gallery.merge`."""
        kept, absorbed = self.identity(keep), self.identity(absorb)
        self.notice("merged", absorbed.id, absorb, reason, kept)
        latest = "SELECT max(seen) FROM identity WHERE number IN (?, ?)"
        seen = self.store.value(latest, (keep, absorb))
        for table in ("exemplar", "former", "pictures", "crop", "past_exemplar", "fleet_known"):
            self.store.run(f"UPDATE {table} SET number = ? WHERE number = ?", (keep, absorb))  # noqa: S608
        self.apart.merge(keep, absorb)
        self.store.run("DELETE FROM identity WHERE number = ?", (absorb,))
        self.store.run("INSERT INTO former VALUES (?, ?)", (absorbed.id, keep))
        self.exemplars.gone(absorb)
        self.exemplars.prune(keep, self.policy.max_exemplars)
        self.crops.prune(keep, self.policy.keep_crops)
        self.update(
            keep,
            "name = ?, kind = ?, created = ?, last_seen = ?, sightings = ?, ttl = ?, seen = ?",
            kept.name or absorbed.name,
            "enrolled" if "enrolled" in {kept.kind, absorbed.kind} else "auto",
            min(kept.created, absorbed.created),
            max(kept.last_seen, absorbed.last_seen),
            kept.sightings + absorbed.sightings,
            kept.ttl_s if kept.ttl_s is not None else absorbed.ttl_s,
            seen,
        )
        return self.identity(keep)

    def split(self, number: int, origin: str, name: str | None) -> Identity:
        """Make a new identity of what one origin contributed; see `gallery.corrections`."""
        person = self.identity(number)
        theirs = (number, origin)
        if (device := self.exemplars.contributor(*theirs)) is not None:
            raise InputError(
                f"{visible(origin)!r} was contributed by the device {device}; split it off there"
            )
        first, last, taken, camera = self.store.rows(
            "SELECT min(time), max(time), count(*), max(camera) FROM exemplar"
            " WHERE number = ? AND origin = ?",
            theirs,
        )[0]
        if not taken:
            raise InputError(f"identity {number} has no exemplars of {visible(origin)!r}; see `gallery show`")
        if taken == person.exemplars:
            raise InputError(
                f"{visible(origin)!r} contributed all that identity {number} has: nothing would remain; "
                "name it, or forget it, instead"
            )
        self.require_free_name(name)
        seen, id_ = self.store.value("SELECT seen FROM identity WHERE number = ?", (number,)), new_id()
        new = self.insert(
            id=id_, name=None, kind="auto", created=first, last_seen=last, sightings=1, ttl_s=None, seen=seen
        )
        for table in ("exemplar", "crop", "past_exemplar"):
            statement = f"UPDATE {table} SET number = ? WHERE number = ? AND origin = ?"  # noqa: S608
            self.store.run(statement, (new, *theirs))
        self._split_pictures(number, new, camera, origin, first, last)
        for one in (number, new):
            self.exemplars.prune(one, self.policy.max_exemplars)
        self.update(number, "sightings = max(1, sightings - 1)")
        self.apart.add(number, new, "split")
        self.notice("split", id_, new, "operator", person)
        if name is not None:
            self.update(new, "name = ?, kind = 'enrolled'", name)
            self.notice("named", id_, new, "operator")
        return self.identity(new)

    def _split_pictures(
        self, number: int, new: int, camera: str, origin: str, first: float, last: float
    ) -> None:
        """Let the noted pictures of a track in a crop folder follow it."""
        track = origin.rpartition(":")[2]
        if not track.isdecimal() or len(track) >= _DIGITS:
            return
        theirs = "camera = ? AND track = ? AND number = ?"
        key = (camera, int(track), number)
        begin = self.store.value(
            f"SELECT max(since) FROM pictures WHERE {theirs} AND since <= ?",  # noqa: S608 - constants
            (*key, first),
        )
        self.store.run(
            f"UPDATE pictures SET number = ? WHERE {theirs} AND since BETWEEN ? AND ?",  # noqa: S608
            (new, *key, first if begin is None else begin, last),
        )

    def take_id(self, number: int, id_: str, reason: str) -> None:
        """Give an identity another id, by which the person is known elsewhere; the present one is kept."""
        person = self.identity(number)
        self.store.run("DELETE FROM former WHERE id = ?", (id_,))
        self.update(number, "id = ?", id_)
        self.store.run("INSERT INTO former VALUES (?, ?)", (person.id, number))
        self.exemplars.mark(number)
        self.notice("merged", person.id, number, reason, self.identity(number))

    def age_s(self, number: int) -> float | None:
        """Return the seconds since a person was last seen; None while ages are unknown."""
        return self.ages.of(self.ages.stored(number))

    def retire(self, person: Identity, reason: str) -> Erased:
        """Delete an identity that nobody asked to forget; its pictures in crop folders stay."""
        self.store.run("DELETE FROM pictures WHERE number = ?", (person.number,))
        return self.erase(person, reason)

    def erase(self, person: Identity, reason: str = "request") -> Erased:
        """Delete an identity and everything that belongs to it; its pictures are then to be deleted, too."""
        former = self.former_ids(person.number)
        size = self.store.value(
            "SELECT coalesce(sum(length(vector)), 0) FROM exemplar WHERE number = ?", (person.number,)
        )
        self.fleet.erase(person.number, (*former, person.id), reason)
        self.store.run("DELETE FROM identity WHERE number = ?", (person.number,))
        self.store.run("INSERT OR REPLACE INTO fact VALUES (?, 'true')", (SCRUB_FACT,))
        self.exemplars.gone(person.number)
        for id_ in (*former, person.id):
            # The new notice replaces the earlier ones.
            self.store.run("DELETE FROM notice WHERE id = ? OR other = ?", (id_, id_))
            self.notice("forgotten", id_, person.number, reason)
        return Erased(person.number, person.id, person.name, person.exemplars, former, int(size))

    def leave_space(self) -> None:
        """Delete the facts that belong to the embedding space; what is still to be erased stays noted."""
        self.store.run("DELETE FROM fact WHERE key NOT IN (?, ?, ?)", OWN_FACTS)
        self.drop_past()
        self.store.run("DELETE FROM meta WHERE key IN ('target_space', 'target_dimension')")
        self.note_other_cameras()

    def drop_past(self) -> None:
        """Delete what `gallery.reembedding` keeps of a former embedding space."""
        for table in ("past_exemplar", "past_fact", "reembedded"):
            self.store.run(f"DELETE FROM {table}")  # noqa: S608 - constants
        self.store.run("DELETE FROM meta WHERE key IN ('past_space', 'past_dimension')")

    def note_other_cameras(self) -> None:
        """Note that `CAMERAS_FACT` was replaced, so that processes drop what they know of cameras."""
        self.store.put_meta("cameras", 1 + int(self.store.meta("cameras") or 0))

    def store_policy(self, policy: Policy) -> None:
        """Store a policy; the caller sets `policy` after the commit."""
        for field, value in zip(fields(Policy), astuple(policy), strict=True):
            self.store.put_meta(field.name, value)

    def add_exemplars(self, number: int, vectors: Vectors, sources: Sequence[Source]) -> int:
        """Insert exemplars `(M, D)` and prune to the most diverse; return how many of these are kept."""
        return self.exemplars.add(number, vectors, sources, self.policy.max_exemplars)


def _unknown(key: int | str) -> InputError:
    shown = key if isinstance(key, int) else f"'{visible(key, LONGEST_CELL)}'"
    return InputError(f"no identity is known as {shown}; `edge-agent gallery list` shows all")
