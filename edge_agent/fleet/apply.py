"""Applies pages of the site to the gallery of a device.

A page is applied in small steps, each one transaction, so that nobody waits for the lock of the gallery for
long; the last one stores the mark. A page states how things are, not what to do, so a kill between two steps
only repeats them. Nothing that it changes is noted as a change of this device, and what this device has
changed since it last sent it is not overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import structlog

from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.core.names import LONGEST_NAME, checked_name, is_id
from edge_agent.core.setting_types import LONGEST_TTL_HOURS, fits_id
from edge_agent.fleet.records import CameraMean, Candidate, Contribution, Page, SharedExemplar, SitePerson
from edge_agent.gallery.erasure import erase_in
from edge_agent.gallery.exemplars import checked_exemplars
from edge_agent.gallery.fleet_rows import FOREIGN, foreign_camera, foreign_origin
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.rows import Erased, Rows

_log = structlog.get_logger(__name__)

T = TypeVar("T")

STEP = 16
"""People, or contributions, of one step."""
REASON = "fleet"
"""Of notices and events about changes that came from the site."""
REASONS = frozenset({"split", "rejected", "together"})
"""Why two people are kept apart."""
_MOST_EPOCHS = 1 << 31
_SLACK_S = 1.0
"""Times differ by less between two pages about one sighting."""


@dataclass(slots=True)
class Applier:
    """Applies pages to an open gallery; `device` is the name of this one."""

    gallery: Gallery
    device: str
    erased: list[Erased] = field(default_factory=list)
    """People who were erased since the caller last emptied it."""

    def steps(self, page: Page) -> Iterator[None]:
        """Apply a page; between two steps the lock of the gallery is free."""
        page = sound(page)
        merged = [one for one in page.people if one.root != one.id]
        roots = [one for one in page.people if one.root == one.id]
        fresh = {one.id for one in page.contributions if one.exemplars}
        roots_of = {one.id: one.root for one in page.people}
        fresh |= {roots_of.get(id_, id_) for id_ in fresh}
        self._begin(page)
        self._believe(page)
        yield from self._means(page.means)
        # An identity takes the id of a root that is not here before the root would become another identity.
        yield from self._each(merged, self._take_root)
        yield from self._each(roots, lambda rows, one: self._root(rows, one, page, one.id in fresh))
        by_id = {one.id: one for one in roots}
        yield from self._each(
            merged, lambda rows, one: self._follow(rows, one, by_id.get(one.root), page.now)
        )
        yield from self._each(page.contributions, self._contribution)
        yield from self._finish(page)

    def _each(self, items: Sequence[T], change: Callable[[Rows, T], None]) -> Iterator[None]:
        for begin in range(0, len(items), STEP):
            with self.gallery.file.changing(durable=False) as rows, rows.fleet.quiet():
                for item in items[begin : begin + STEP]:
                    change(rows, item)
            yield

    # ---- people

    def _begin(self, page: Page) -> None:
        """Begin a page; note whether it has people who were here, of whom it does not have everything."""
        with self.gallery.file.changing(durable=False) as rows:
            rows.site.begin_page()
            if rows.site.copy is not None or rows.site.skipped:
                return
            expired = {one.id for one in page.people if _has_expired(rows, one, page.now)}
            expired -= {  # part of such a person is here
                one.root for one in page.people if one.root in expired and rows.number_of(one.id) is not None
            }
            if any(
                one.created <= rows.site.mark
                and one.forgotten is None
                and one.root not in expired
                and rows.number_of(one.id) is None
                and not rows.site.is_erased(one.id)
                for one in page.people
            ):
                rows.site.skip()

    def _believe(self, page: Page) -> None:
        """Follow a site that has people again whose erasure is known here: it was restored.

        It decides who expired. Of those who were erased on request it learns once more.
        """
        with self.gallery.file.reading() as rows:
            known = rows.site.tombstones([one.id for one in page.people if one.forgotten is None])
        if not known:
            return
        with self.gallery.file.changing(durable=False) as rows:
            for id_, reason in known.items():
                if reason == "expired":
                    rows.site.take_back(id_)
                else:
                    rows.fleet.erase_again(id_)

    def _take_root(self, rows: Rows, person: SitePerson) -> None:
        if rows.number_of(person.root) is not None or rows.site.is_erased(person.root):
            return
        if (number := rows.number_of(person.id)) is not None:
            rows.take_id(number, person.root, REASON)

    def _root(self, rows: Rows, person: SitePerson, page: Page, fresh: bool) -> None:
        if rows.site.copy is not None:
            rows.site.copied([person.id])
        if person.forgotten is not None:
            rows.site.bury(person.id, person.forgotten, person.version)
            self.erase(rows, person.id)
            return
        if rows.site.is_erased(person.id):
            self.erase(rows, person.id)
            return
        number = rows.number_of(person.id)
        if number is None:
            if not self._fits(rows, person, page.now, fresh):
                return
            number = self._insert(rows, person, page.now)
        elif rows.identity(number).id != person.id:
            rows.fleet.note_content(number)  # one person here: unsent, or the site was restored
        self._update(rows, number, person, page.now)

    def _follow(self, rows: Rows, person: SitePerson, root: SitePerson | None, now: float) -> None:
        """Merge as the site did, with its values: a merge here may keep a name that it does not have."""
        if self._merge(rows, person) and root is not None:
            number = rows.number_of(root.id)
            if number is not None:
                self._update(rows, number, root, now)

    def _merge(self, rows: Rows, person: SitePerson) -> bool:
        """Make the identity of an id that was merged one with its root's; return whether both were here."""
        if rows.site.copy is not None:
            rows.site.copied([person.id])
        number, root = rows.number_of(person.id), rows.number_of(person.root)
        if rows.site.is_erased(person.root) or rows.site.is_erased(person.id):
            self.erase(rows, person.id)
        elif number is None and root is not None:
            rows.store.run("INSERT INTO former VALUES (?, ?)", (person.id, root))
        elif number is not None and root is not None and number != root:
            self._join(rows, root, number)
            return True
        elif number is not None and rows.identity(number).id != person.root:
            rows.take_id(number, person.root, REASON)
        return False

    def _join(self, rows: Rows, keep: int, absorb: int) -> None:
        """Merge two identities; what was changed here and is not sent yet stays so."""
        unsent, absorbed = rows.fleet.change(absorb), rows.identity(absorb)
        apart, contributes = rows.fleet.pairs.others(absorb), bool(rows.exemplars.own(absorb))
        rows.merge(keep, absorb, REASON)
        if contributes:
            rows.fleet.note_content(keep)  # this device shares of one person what it shares of any
        rows.fleet.pairs.note(keep, apart)
        if unsent is not None:
            rows.fleet.put_change(keep, unsent)
            if unsent.name and absorbed.name is not None:
                rows.update(keep, "name = ?", absorbed.name)
            if unsent.ttl:
                rows.update(keep, "ttl = ?", absorbed.ttl_s)

    def erase(self, rows: Rows, id_: str) -> None:
        """Erase a person here who is erased at the site, in the present transaction.

        Ids that were merged with this one here, which the site does not know yet, are erased there, too.
        """
        if (number := rows.number_of(id_)) is not None:
            gone = erase_in(rows, number, REASON)
            reason = rows.site.reason(id_) or "request"
            rows.fleet.erase_others((gone.id, *gone.former_ids), reason)
            if reason == "expired" and gone.former_ids:
                rows.site.skip()  # the site may keep others of these
            self.erased.append(gone)

    def _fits(self, rows: Rows, person: SitePerson, now: float, fresh: bool) -> bool:
        """Return whether a person who is not here is to be; make room if so.

        A full gallery has room for people who were seen later than those that it would drop, and of whom the
        page has exemplars.
        """
        if _has_expired(rows, person, now):
            return False
        age_s = now - person.last_seen
        if int(rows.store.value("SELECT count(*) FROM identity")) < rows.policy.capacity:
            return True
        rows.site.skip()
        oldest = rows.identities(
            "WHERE kind = 'auto' AND coalesce(ttl, 1) > 0 ORDER BY seen, last_seen, number LIMIT 1"
        )
        if not oldest or not fresh:
            return False
        oldest_age_s = rows.age_s(oldest[0].number)
        if person.kind == "auto" and (oldest_age_s is None or oldest_age_s <= age_s):
            return False
        rows.retire(oldest[0], "evicted")
        return True

    def _insert(self, rows: Rows, person: SitePerson, now: float) -> int:
        seen, last_seen = _moment(rows, now - person.last_seen, person.last_seen)
        _, created = _moment(rows, now - person.first_seen, person.first_seen)
        rows.fleet.returned(person.id)
        number = rows.insert(
            id=person.id, name=None, kind=person.kind, created=min(created, last_seen), last_seen=last_seen,
            sightings=1, ttl_s=person.ttl_s, seen=seen,
        )  # fmt: skip
        rows.exemplars.mark(number)
        return number

    def _update(self, rows: Rows, number: int, person: SitePerson, now: float) -> None:
        """Take over what the site knows of a person, but for what was changed here since."""
        here, unsent = rows.identity(number), rows.fleet.change(number)
        seen, last_seen = _moment(rows, now - person.last_seen, person.last_seen)
        _, created = _moment(rows, now - person.first_seen, person.first_seen)
        age_s = rows.age_s(number)
        if created < here.created - _SLACK_S:
            rows.update(number, "created = ?", created)
        if age_s is None or now - person.last_seen < age_s - _SLACK_S:
            rows.update(number, "seen = ?, last_seen = max(last_seen, ?)", seen, last_seen)
        if person.kind == "enrolled" != here.kind:
            rows.update(number, "kind = 'enrolled'")
        elif person.kind != "enrolled" == here.kind and unsent is None:
            rows.fleet.note_content(number)  # the site was restored
        if here.ttl_s != person.ttl_s and (unsent is None or not unsent.ttl):
            rows.update(number, "ttl = ?", person.ttl_s)
        if here.name != person.name and (unsent is None or not unsent.name):
            set_name(rows, number, person.name)
        rows.fleet.share([(number, seen)])
        rows.fleet.offer([number])

    # ---- exemplars

    def _contribution(self, rows: Rows, one: Contribution) -> None:
        number, origin = rows.number_of(one.id), foreign_origin(one.device, one.id)
        if rows.site.copy is not None:
            rows.site.copied([origin])
        if number is None or rows.site.is_erased(one.id):
            return
        own = one.device == self.device
        vectors, exemplars = _checked(one, self.gallery.dimension)
        if own and rows.exemplars.has_seen(number):
            here = {row[0] for row in rows.exemplars.own(number)}
            if not here.issuperset(vector.astype("<f4").tobytes() for vector in vectors):
                rows.fleet.note_content(number)  # part of it expired here, or was sent before a restored copy
            return
        time = rows.identity(number).last_seen
        sources = [
            (
                min(max(float(source.quality), 0.0), 1.0), origin,
                source.camera if own else foreign_camera(one.device, source.camera), time, source.epoch,
            )
            for source in exemplars
        ]  # fmt: skip
        if rows.exemplars.replace_origin(number, origin, vectors, sources):
            gone = rows.exemplars.prune(number, rows.policy.max_exemplars)
            if own and gone:
                rows.fleet.note_content(number)  # ids that were merged meanwhile have more than one person

    # ---- one person, outside of pages

    def take(self, candidate: Candidate) -> int | None:
        """Put a person whom the store named, and who is seen here now, into the gallery; return the number.

        None: the person was erased, or the gallery is full of people who may not be dropped. Any thread may
        call it.
        """
        person, now = candidate.person, candidate.person.last_seen
        if not _is_person(person):
            return None
        ids = {one.id for one in candidate.contributions}
        merged = [replace(person, id=id_) for id_ in sorted(ids - {person.id})]
        with self.gallery.file.changing(durable=False) as rows, rows.fleet.quiet():
            if any(map(rows.site.is_erased, {person.id, *ids})):
                return None
            for one in merged:
                self._take_root(rows, one)
            number = rows.number_of(person.id)
            if number is None:
                if not self._fits(rows, person, now, fresh=True):
                    return None
                number = self._insert(rows, person, now)
            for one in merged:
                self._merge(rows, one)
            self._update(rows, number, person, now)
            for contribution in candidate.contributions:
                self._contribution(rows, contribution)
            return number

    # ---- the rest

    def _means(self, means: Sequence[CameraMean]) -> Iterator[None]:
        """Take over the means of cameras, before what these see."""
        if not means:
            return
        with self.gallery.file.changing(durable=False) as rows:
            for mean in means:
                self._put_mean(rows, mean)
            self._share_means(rows)
        yield

    def _share_means(self, rows: Rows) -> None:
        self.gallery.file.means.share_all(rows.site.means(self.gallery.dimension))
        self.gallery.file.recentre()

    def _finish(self, page: Page) -> Iterator[None]:
        complete = page.upto >= page.version
        with self.gallery.file.reading() as rows:
            copy = rows.site.copy
        if complete and copy is not None:
            yield from self._sweep(erase=copy == "erase")
        with self.gallery.file.changing(durable=False) as rows, rows.fleet.quiet():
            known = set(rows.apart.pairs())
            for pair in page.apart:
                numbers = rows.number_of(pair.one), rows.number_of(pair.other)
                first, second = min(numbers, key=_first), max(numbers, key=_first)
                if first is None or second is None or first == second or (first, second) in known:
                    continue
                rows.apart.add(first, second, pair.reason)
            rows.site.put_mark(page.upto)
            copied = complete and rows.site.copy is not None
            if copied:
                rows.fleet.note_unknown()
                rows.site.end_copy()
        if copied:
            with self.gallery.file.reading() as rows:
                self._share_means(rows)
        yield

    def _put_mean(self, rows: Rows, mean: CameraMean) -> None:
        if mean.fits(self.gallery.dimension):
            own = mean.device == self.device
            camera = mean.camera if own else foreign_camera(mean.device, mean.camera)
            rows.site.put_mean(camera, mean.epoch, mean.people, mean.total)

    def _sweep(self, *, erase: bool) -> Iterator[None]:
        """Delete what the site does not have any more, by a full copy that is complete.

        That is what other devices contributed, who send it again to a store that was restored, and with
        `erase` also people.
        """
        with self.gallery.file.reading() as rows:
            gone = rows.fleet.gone() if erase else []
        yield from self._each(gone, self.erase)
        if erase:
            with self.gallery.file.changing(durable=False) as rows:
                rows.fleet.drop_unknown_erasures()
        with self.gallery.file.reading() as rows:
            ended = rows.store.rows(
                f"SELECT DISTINCT number, origin FROM exemplar WHERE {FOREIGN}"  # noqa: S608 - constants
                " AND origin NOT IN (SELECT key FROM fleet_copied)"
            )
        yield from self._each(ended, lambda rows, one: _end(rows, *one))


def set_name(rows: Rows, number: int, name: str | None) -> None:
    """Give a person the name that the site gave, in the present transaction.

    Another one here who has it and is not sent yet gets another name: the site does the same.
    """
    if name is not None:
        try:
            name = checked_name(name)
        except InputError as problem:
            _log.warning("fleet_name_refused", error=type(problem).__name__)
            return
        other = rows.store.value("SELECT number FROM identity WHERE name = ?", (name,))
        if other is not None and other != number:
            rows.update(other, "name = ?", _free_name(rows, name))
            rows.notice("named", rows.identity(other).id, other, REASON)
    rows.update(number, "name = ?", name)
    rows.notice("named", rows.identity(number).id, number, REASON)


def _free_name(rows: Rows, name: str) -> str:
    place = 2
    while True:
        end = f" ({place})"
        free = name[: LONGEST_NAME - len(end)] + end
        if rows.store.value("SELECT number FROM identity WHERE name = ?", (free,)) is None:
            return free
        place += 1


def sound(page: Page) -> Page:
    """Return a page without what no device of this program sends: another program may write the store."""
    checked = replace(
        page,
        people=tuple(filter(_is_person, page.people)),
        contributions=tuple(one for one in page.contributions if is_id(one.id) and fits_id(one.device)),
        apart=tuple(one for one in page.apart if one.reason in REASONS),
        means=tuple(filter(_is_mean, page.means)),
    )
    parts = ("people", "contributions", "apart", "means")
    if any(len(getattr(checked, part)) != len(getattr(page, part)) for part in parts):
        _log.warning("fleet_page_has_unusable_rows", version=page.upto)
    return checked


def _is_person(one: SitePerson) -> bool:
    ttl_s = one.ttl_s
    return (
        is_id(one.id)
        and is_id(one.root)
        and one.kind in ("auto", "enrolled")
        and math.isfinite(one.first_seen + one.last_seen)
        and (ttl_s is None or 0.0 <= ttl_s <= LONGEST_TTL_HOURS * 3600)
    )


def _is_mean(one: CameraMean) -> bool:
    return fits_id(one.device) and (not one.camera or fits_id(one.camera)) and 0 <= one.epoch <= _MOST_EPOCHS


def _is_exemplar(one: SharedExemplar) -> bool:
    return (not one.camera or fits_id(one.camera)) and 0 <= one.epoch <= _MOST_EPOCHS


def _has_expired(rows: Rows, person: SitePerson, now: float) -> bool:
    """Return whether a root would expire here at once."""
    ttl_s = person.ttl_s
    if ttl_s is None:
        ttl_s = rows.policy.ttl_s if person.kind == "auto" else rows.policy.enrolled_ttl_s
    return bool(ttl_s) and now - person.last_seen >= (ttl_s or 0.0)


def _moment(rows: Rows, age_s: float, label: float) -> tuple[float | None, float]:
    """Return the instant of a sighting, and its label; `label` is that of the store's clock."""
    seen = rows.ages.seen(max(0.0, age_s))
    return seen, rows.ages.label(seen, label)


def _checked(one: Contribution, dimension: int) -> tuple[Vectors, Sequence[SharedExemplar]]:
    """Return the usable vectors of a contribution, with what is known of them."""
    nothing = np.zeros((0, dimension), np.float32)
    if not one.exemplars:
        return nothing, ()
    if not all(map(_is_exemplar, one.exemplars)):
        _log.warning("fleet_exemplars_refused", device=one.device, error="a camera or its view is not usable")
        return nothing, ()
    try:
        vectors = np.stack([source.vector for source in one.exemplars])
        # Checked, but kept as they are, not scaled again: all devices have the same.
        checked_exemplars(vectors, np.array([source.quality for source in one.exemplars]), dimension)
    except (ValueError, EdgeAgentError) as problem:
        _log.warning("fleet_exemplars_refused", device=one.device, error=str(problem))
        return nothing, ()
    return vectors, one.exemplars


def _end(rows: Rows, number: int, origin: str) -> None:
    rows.exemplars.remove_origin(number, origin, None)


def _first(number: int | None) -> int:
    return -1 if number is None else number
