"""What a gallery file notes for a fleet: changes of this device that are to be sent.

Changes of identities are noted by triggers, so whatever process makes them, they are sent, from `start` to
`leave`. While a page of the site is applied, `quiet` keeps them from noting it. A
change is noted by its kind, not by its value: what is sent is the state of the person at that time, and
`sent` removes the note unless there was another change meanwhile.

Exemplars of other devices have the origin ``fleet/DEVICE/ID`` and the camera ``DEVICE/CAMERA``; no own camera
has a slash in its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from edge_agent.gallery.site_rows import Reason, SiteRows
from edge_agent.gallery.store import Store

SEEN_S = 60.0
"""A person who is in view is sent again when the latest sighting is so much later than the one sent."""
FOREIGN = "instr(camera, '/') > 0"
"""SQL condition of exemplars that other devices contributed."""

_MEMBER, _QUIET = "fleet_device", "fleet_quiet"
_NOTED = "NOT EXISTS (SELECT 1 FROM meta WHERE key = 'fleet_quiet')"


def _note(name: str = "0", ttl: str = "0", content: str = "0") -> str:
    """Return the statement that notes a change of a person: of the name, the time to live, the exemplars."""
    return (
        f"INSERT INTO fleet_change VALUES (NEW.number, random(), {name}, {ttl}, {content})"  # noqa: S608
        " ON CONFLICT (number) DO UPDATE SET count = excluded.count, name = max(name, excluded.name),"
        " ttl = max(ttl, excluded.ttl), content = max(content, excluded.content)"
    )


_TRIGGERS = {
    "fleet_new": ("INSERT ON identity", "1", _note("NEW.name IS NOT NULL", "NEW.ttl IS NOT NULL", "1")),
    "fleet_name": ("UPDATE OF name ON identity", "NEW.name IS NOT OLD.name", _note(name="1")),
    "fleet_ttl": ("UPDATE OF ttl ON identity", "NEW.ttl IS NOT OLD.ttl", _note(ttl="1")),
    "fleet_kind": ("UPDATE OF kind ON identity", "NEW.kind IS NOT OLD.kind", _note()),
    "fleet_content": ("UPDATE OF revision ON identity", "1", _note(content="1")),
    "fleet_seen": (
        "UPDATE OF seen ON identity",
        f"NEW.seen > coalesce((SELECT seen + {SEEN_S} FROM fleet_shared WHERE number = NEW.number), 0)",  # noqa: S608
        _note(),
    ),
    "fleet_former": (  # the name and the time to live of the one who stays prevail
        "INSERT ON former", "1",
        _note(*(
            f"(SELECT {column} IS NOT NULL FROM identity WHERE number = NEW.number)"  # noqa: S608
            for column in ("name", "ttl")
        )),
    ),
    "fleet_apart": (
        "INSERT ON apart", "1", "INSERT OR IGNORE INTO fleet_apart_change VALUES (NEW.first, NEW.second)"
    ),
}  # fmt: skip
"""Events, conditions and statements of the triggers, by name."""


_SHARE = (
    "INSERT INTO fleet_shared SELECT number, coalesce(?, seen, 0.0) FROM identity WHERE number = ?"
    " ON CONFLICT (number) DO UPDATE SET seen = max(seen, excluded.seen)"
)


@dataclass(frozen=True, slots=True)
class Change:
    """A noted change of a person; `count` is another one after each change."""

    number: int
    count: int
    name: bool
    ttl: bool
    content: bool


class PairNotes:
    """Pairs of people who are two, and are to be sent; methods that write belong inside `Store.change`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def changes(self, most: int, sent: Collection[int]) -> list[tuple[int, int, str, str, str]]:
        """Return pairs of people to be sent: numbers, ids, and the reason.

        Only people whom the site has, or who are `sent` with them: it ignores pairs of others.
        """
        found = self._store.rows(
            "SELECT one.number, two.number, one.id, two.id, apart.reason,"
            " first IN (SELECT number FROM fleet_shared), second IN (SELECT number FROM fleet_shared)"
            " FROM fleet_apart_change"
            " JOIN apart USING (first, second) JOIN identity AS one ON one.number = first"
            " JOIN identity AS two ON two.number = second LIMIT ?",
            (most,),
        )
        return [
            (first, second, *rest)
            for first, second, *rest, has_first, has_second in found
            if (has_first or first in sent) and (has_second or second in sent)
        ]

    def others(self, number: int) -> list[int]:
        """Return people of pairs with this one that are to be sent."""
        query = "SELECT first + second - ? FROM fleet_apart_change WHERE ? IN (first, second)"
        return [other for (other,) in self._store.rows(query, (number, number))]

    def note(self, number: int, others: Iterable[int]) -> None:
        """Note that pairs of this person with others are to be sent, where they are pairs."""
        self._store.run_many(
            "INSERT OR IGNORE INTO fleet_apart_change SELECT first, second FROM apart"
            " WHERE first = ? AND second = ?",
            [(min(number, other), max(number, other)) for other in others],
        )

    def sent(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Remove the notes of pairs that the site has, and of those that ended."""
        self._store.run_many("DELETE FROM fleet_apart_change WHERE first = ? AND second = ?", list(pairs))
        self._store.run(
            "DELETE FROM fleet_apart_change WHERE NOT EXISTS (SELECT 1 FROM apart WHERE"
            " apart.first = fleet_apart_change.first AND apart.second = fleet_apart_change.second)"
        )


class FleetRows:
    """The notes of an open gallery file; methods that write belong inside `Store.change`."""

    def __init__(self, store: Store, site: SiteRows) -> None:
        self.pairs = PairNotes(store)
        self._store = store
        self._site = site

    # ---- membership

    @property
    def device(self) -> str | None:
        """Name of this device at its site; None: changes are not noted."""
        found: str | None = self._store.meta(_MEMBER)
        return found

    def start(self, device: str) -> None:
        """Note changes from now on; everybody counts as changed if this is another device than before."""
        if self.device != device:
            self._forget()
            self._store.put_meta(_MEMBER, device)
            self.note_all()
        self.follow()

    def leave(self) -> None:
        """Note nothing any more, and forget what is known of the site."""
        self._forget()
        self.follow()

    def follow(self) -> None:
        """Make the triggers of this connection, or drop them, as the file states.

        They are not in the file: one with triggers counts as damaged, also for earlier versions.
        """
        present = bool(self._store.value("SELECT count(*) FROM sqlite_temp_master WHERE type = 'trigger'"))
        wanted = self.device is not None
        if wanted and not present:
            for name, (event, condition, statement) in _TRIGGERS.items():
                self._store.run(
                    f"CREATE TEMP TRIGGER {name} AFTER {event} WHEN {condition} AND {_NOTED}"
                    f" BEGIN {statement}; END"
                )
        elif present and not wanted:
            for name in _TRIGGERS:
                self._store.run(f"DROP TRIGGER temp.{name}")

    def _forget(self) -> None:
        self._site.forget()
        for table in ("fleet_change", "fleet_apart_change", "fleet_erased", "fleet_shared", "fleet_known"):
            self._store.run(f"DELETE FROM {table}")  # noqa: S608 - constants
        self._store.run("DELETE FROM meta WHERE key IN (?, ?)", (_MEMBER, _QUIET))

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Let changes of the block not be noted: they come from the site."""
        self._store.put_meta(_QUIET, 1)
        yield
        self._store.run("DELETE FROM meta WHERE key = ?", (_QUIET,))

    # ---- changes to be sent

    def note_all(self) -> None:
        """Note everything that this device has as changed, also whom the site erased, as far as known."""
        self._store.run(
            "INSERT OR REPLACE INTO fleet_change"
            " SELECT number, random(), name IS NOT NULL, ttl IS NOT NULL, 1 FROM identity"
        )
        self._store.run("INSERT OR IGNORE INTO fleet_apart_change SELECT first, second FROM apart")
        self._store.run("INSERT OR IGNORE INTO fleet_erased SELECT id, reason FROM fleet_tombstone")

    def note_unknown(self) -> None:
        """Note people and pairs that are not in a full copy that is complete.

        The site was restored from an older copy if it ever had them; who made them may not know
        them any more.
        """
        self._store.run(
            "INSERT OR IGNORE INTO fleet_change SELECT number, random(), name IS NOT NULL, ttl IS NOT NULL, 1"
            " FROM identity WHERE id NOT IN (SELECT key FROM fleet_copied)"
        )
        self._store.run(
            "INSERT OR IGNORE INTO fleet_change SELECT DISTINCT number, random(), 0, 0, 1 FROM former"
            " WHERE id NOT IN (SELECT key FROM fleet_copied)"
        )
        self._store.run("INSERT OR IGNORE INTO fleet_apart_change SELECT first, second FROM apart")

    def changes(self, after: int, most: int) -> list[Change]:
        """Return changes of people with numbers above `after`, by number."""
        found = self._store.rows(
            "SELECT number, count, name, ttl, content FROM fleet_change WHERE number > ?"
            " ORDER BY number LIMIT ?",
            (after, most),
        )
        return [Change(number, count, *map(bool, kinds)) for number, count, *kinds in found]

    def change(self, number: int) -> Change | None:
        """Return the noted change of one person."""
        return next((one for one in self.changes(number - 1, 1) if one.number == number), None)

    def put_change(self, number: int, of: Change) -> None:
        """Note a change of a person like that of another one, who is the same."""
        self._store.run(
            "INSERT INTO fleet_change VALUES (?, random(), ?, ?, ?) ON CONFLICT (number) DO UPDATE SET"
            " count = random(), name = max(name, excluded.name), ttl = max(ttl, excluded.ttl),"
            " content = max(content, excluded.content)",
            (number, of.name, of.ttl, of.content),
        )

    def note_content(self, number: int) -> None:
        """Note that what this device has of a person is to be sent again."""
        self.put_change(number, Change(number, 0, name=False, ttl=False, content=True))

    def sent(self, changes: Sequence[tuple[int, int, float | None]]) -> None:
        """Remove the notes of changes that the site has: numbers, counts, and instants of the sightings."""
        self._store.run_many(
            "DELETE FROM fleet_change WHERE number = ? AND count = ?",
            [(number, count) for number, count, _ in changes],
        )
        self.share([(number, seen) for number, _, seen in changes])

    def share(self, people: Sequence[tuple[int, float | None]]) -> None:
        """Note that the site has people: numbers, and instants at which they were seen."""
        self._store.run_many(_SHARE, [(seen, number) for number, seen in people])

    def offer(self, numbers: Sequence[int]) -> None:
        """Note that the site may have all ids of some people, from now on."""
        marks = ",".join("?" * len(numbers))
        self._store.run(
            f"INSERT OR IGNORE INTO fleet_known SELECT id, number FROM identity WHERE number IN ({marks})"  # noqa: S608
            f" UNION ALL SELECT id, number FROM former WHERE number IN ({marks})",
            (*numbers, *numbers),
        )

    def gone(self) -> list[str]:
        """Return ids of people whom the site had, and of whom an id is not in a full copy of it.

        Such an id was erased, and with it everybody who was merged with it here since.
        """
        found = self._store.rows(
            "SELECT DISTINCT identity.id FROM fleet_known JOIN identity USING (number)"
            " WHERE fleet_known.id NOT IN (SELECT key FROM fleet_copied) ORDER BY number"
        )
        return [id_ for (id_,) in found]

    def waiting(self) -> int:
        """Return the number of changes that are not sent yet."""
        counts = "+".join(
            f"(SELECT count(*) FROM {table})"  # noqa: S608 - constants
            for table in ("fleet_change", "fleet_apart_change", "fleet_erased")
        )
        return int(self._store.value(f"SELECT {counts}"))

    # ---- erased people

    def erase(self, number: int, ids: Collection[str], reason: str) -> None:
        """Note that a person is being erased here, so that the site erases the person, too.

        One who expired is noted only if the site knows the person: it decides whether another device has seen
        them since. Whom a full gallery drops stays at the site.
        """
        if self.device is None:
            return
        if reason == "evicted":
            self._site.skip()
        if reason not in {"request", "expired"}:
            return
        shared = "SELECT EXISTS (SELECT 1 FROM fleet_shared WHERE number = ?)"
        if reason == "expired" and not self._store.value(shared, (number,)):
            return
        self._store.run_many(
            "INSERT OR IGNORE INTO fleet_erased VALUES (?, ?)", [(one, reason) for one in ids]
        )

    def erase_others(self, ids: Collection[str], reason: Reason) -> None:
        """Note that people were merged here with one whom the site erased: it erases them, too."""
        self._store.run_many(
            "INSERT OR IGNORE INTO fleet_erased SELECT ?, ?"
            " WHERE NOT EXISTS (SELECT 1 FROM fleet_tombstone WHERE id = ?)",
            [(one, reason, one) for one in ids],
        )

    def erase_again(self, id_: str) -> None:
        """Note that the site does not know any more that a person was erased."""
        self._store.run(
            "INSERT OR IGNORE INTO fleet_erased SELECT id, reason FROM fleet_tombstone WHERE id = ?", (id_,)
        )

    def drop_unknown_erasures(self) -> None:
        """Forget erased people whom the site does not have, by a full copy that is complete."""
        self._store.run("DELETE FROM fleet_erased WHERE id NOT IN (SELECT key FROM fleet_copied)")

    def returned(self, id_: str) -> None:
        """Note that another device saw a person who expired here."""
        self._store.run("DELETE FROM fleet_erased WHERE id = ? AND reason = 'expired'", (id_,))

    def erased(self, most: int) -> list[tuple[str, Reason]]:
        """Return erased people to be sent."""
        return self._store.rows("SELECT id, reason FROM fleet_erased LIMIT ?", (most,))

    def erased_sent(self, people: Sequence[tuple[str, Reason]], version: int) -> None:
        """Note that the site knows who was erased here; whether people expired, it decides."""
        for id_, reason in people:
            self._store.run("DELETE FROM fleet_erased WHERE id = ? AND reason = ?", (id_, reason))
            if reason == "request":
                self._site.bury(id_, reason, version)


def owned_by(camera: str) -> str | None:
    """Return the device whose exemplars have this camera; None: this one."""
    device, slash, _ = camera.partition("/")
    return device if slash else None


def foreign_camera(device: str, camera: str) -> str:
    """Return the name that the camera of another device has here."""
    return f"{device}/{camera}"


def foreign_origin(device: str, id_: str) -> str:
    """Return the origin of what a device contributed to a person."""
    return f"fleet/{device}/{id_}"
