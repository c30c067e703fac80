"""Exchanges changes between a gallery and its site: pull, apply, push, confirm.

Everything is a state, sent at least once: a kill, a lost answer or a store that was restored repeats it. The
device pulls before it pushes, so that what was erased meanwhile does not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import structlog

from edge_agent.core.errors import StorageError
from edge_agent.fleet.apply import Applier, set_name
from edge_agent.fleet.outbox import Outbox, Parcel
from edge_agent.fleet.records import MOST_CHANGES, Candidate, Page, PushResult, Welcome
from edge_agent.fleet.store import FleetStore, StaleMark, StoreDown
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.rows import EVENTS_FACT, Erased

_log = structlog.get_logger(__name__)

T = TypeVar("T")

PAGE = 200
"""People or contributions of a page."""
CALL_S = 20.0
"""Longest wait for the store; its own deadlines are shorter."""
CONFIRM_S = 60.0
"""Interval at which a device without changes shows that it is there."""
BREATH_S = 0.001
"""Pause between two steps: a thread that waits for the lock of the gallery gets it."""
REFILL_S = 600.0
"""Shortest interval of full copies to get people who did not fit, or expired here and not at the site."""
_ROOM = 0.9
"""Share of the capacity up to which people are fetched who did not fit before."""


async def answered(call: Awaitable[T], deadline_s: float = CALL_S) -> T:
    """Return what the store answers; StoreDown when it does not within the deadline."""
    try:
        return await asyncio.wait_for(call, deadline_s)
    except asyncio.TimeoutError:
        raise StoreDown(f"the store of the fleet did not answer within {deadline_s:g} s") from None


class Sync:
    """One device's exchange with a site; not safe for use by two tasks.

    `gallery` is open, and `device` is the name of this device at the site. `erase` deletes the events and
    pictures of erased people (`gallery.erasure.Erasure.run`); the device confirms after that.
    """

    def __init__(
        self,
        gallery: Gallery,
        store: FleetStore,
        device: str,
        *,
        erase: Callable[[], object] | None = None,
    ) -> None:
        self.welcome: Welcome | None = None
        """Answer of the store to the latest `connect`."""
        self.version = 0
        """Of the site, as far as known."""
        self._gallery = gallery
        self._store = store
        self.erase = erase
        self.changed: Callable[[], object] = lambda: None
        """Called when people of the gallery have changed."""
        self.erased_one: Callable[[Erased], object] = lambda _: None
        """Called for each person who was erased by the site."""
        self._outbox = Outbox(gallery, device)
        self._applier = Applier(gallery, device)
        self._device = device
        self.sent = 0
        """People in changes sent since the start."""
        self.received = 0
        """People in pages applied since the start."""
        self.waiting = 0
        """Changes that the site does not have, as of the latest `step`."""
        self.applied: int | None = None
        """`mark` as of the latest page; None: before the first exchange."""
        self._confirmed: tuple[int, float] | None = None
        """Mark confirmed last, and when."""
        self._refilled: float | None = None

    @property
    def mark(self) -> int:
        """Version of the site up to which everything is applied."""
        with self._gallery.file.reading() as rows:
            return rows.site.mark

    def pending(self) -> int:
        """Return the number of changes that the site does not have yet."""
        with self._gallery.file.reading() as rows:
            return rows.fleet.waiting()

    def erased(self, ids: Collection[str]) -> bool:
        """Whether somebody with one of these ids was erased, at the site, or here on request."""
        with self._gallery.file.reading() as rows:
            return any(map(rows.site.is_erased, ids))

    def take(self, candidate: Candidate) -> int | None:
        """Put a person whom the store named into the gallery, see `Applier.take`; from any thread."""
        return self._applier.take(candidate)

    async def connect(self) -> Welcome:
        """Greet the store, and find out whether a full copy is needed; errors as of `FleetStore.hello`."""
        with self._gallery.file.changing() as rows:
            rows.fleet.start(self._device)
            mark, receipts = rows.site.mark, rows.site.receipts
        welcome = await answered(self._store.hello(mark, receipts))
        self.welcome, self.version = welcome, welcome.version
        self._confirmed = None
        with self._gallery.file.changing() as rows:
            site = rows.site
            # Where nothing was ever confirmed, the store has a smaller mark without having been restored.
            was_restored = not welcome.known and welcome.confirmed < mark and site.is_confirmed
            if not welcome.known:
                rows.fleet.note_all()
                site.begin_copy("erase" if mark < welcome.horizon and not was_restored else "keep")
            elif mark < welcome.horizon:
                site.begin_copy("erase")
            elif (
                site.copy is not None or mark == 0 or mark != welcome.confirmed or site.is_partly_applied
            ):  # anew: what was applied since, a store that lost its last seconds may not have any more
                site.begin_copy(site.copy or "keep")
            if not was_restored:
                site.drop_tombstones(welcome.horizon)
            copy = site.copy
        if copy is not None:
            _log.info("fleet_full_copy", known=welcome.known, mark=mark, horizon=welcome.horizon)
        return welcome

    async def step(self) -> None:
        """Exchange everything that changed on either side; errors as of the store's calls.

        When this returns, the device has the whole site as it was, and the site has the changes that the
        device had made before.
        """
        if self.welcome is None:
            await self.connect()
        try:
            await self._exchange()
        except StaleMark as error:  # since the connection was made
            _log.info("fleet_mark_refused", reason=str(error))
            await self.connect()
            await self._exchange()

    async def _exchange(self) -> None:
        await self._pull()
        while await self._push():
            pass
        if self._refill():
            await self._pull()
        await self._confirm()
        self.waiting = self.pending()

    def disconnected(self) -> None:
        """Greet the store again at the next step."""
        self.welcome = None
        with contextlib.suppress(StorageError, RuntimeError):  # the gallery may be closed, at the end
            self.waiting = self.pending()

    # ---- from the site

    async def _pull(self) -> None:
        with self._gallery.file.reading() as rows:
            anew = rows.site.mark == 0 and rows.site.copy is None
        if anew:  # no mark is too old for the store then: whom it had may be erased, and that forgotten
            with self._gallery.file.changing() as rows:
                rows.site.begin_copy("erase")
        while True:
            with self._gallery.file.reading() as rows:
                mark, full = rows.site.mark, rows.site.copy is not None
            page = await answered(self._store.pull(mark, PAGE, full=full))
            self.version = page.version
            if page.upto > mark or full:
                await self._apply(page)
            self.applied = page.upto
            if page.upto >= page.version:
                return

    def _refill(self) -> bool:
        """Begin a full copy if people of the site are not here and there is room; return whether it began."""
        now = time.monotonic()
        if self._refilled is not None and now - self._refilled < REFILL_S:
            return False
        with self._gallery.file.reading() as rows:
            if not rows.site.skipped or len(self._gallery) >= _ROOM * rows.policy.capacity:
                return False
        with self._gallery.file.changing() as rows:
            rows.site.begin_copy("keep")
        self._refilled = now
        _log.info("fleet_full_copy", reason="people of the site are not here")
        return True

    async def _apply(self, page: Page) -> None:
        for _ in self._applier.steps(page):
            self._report()
            await asyncio.sleep(BREATH_S)
        self.received += len(page.people)
        if page.people:
            self.changed()

    def _report(self) -> None:
        gone, self._applier.erased = self._applier.erased, []
        for one in gone:
            self.erased_one(one)

    # ---- to the site

    async def _push(self) -> bool:
        """Send one parcel; return whether there are more."""
        parcel = Parcel()
        after: int | None = 0
        while after is not None and len(parcel.people) < MOST_CHANGES:
            after = self._outbox.read_people(parcel, after, MOST_CHANGES - len(parcel.people))
            await asyncio.sleep(BREATH_S)
        self._outbox.read_others(parcel, MOST_CHANGES)
        if parcel.is_empty:
            return False
        # Noted before: the answer may be lost, and the person erased at the site.
        with self._gallery.file.changing(durable=False) as rows:
            rows.fleet.offer([number for number, _, _ in parcel.noted])
        mark = self.mark
        parcel.result = await answered(self._store.push(parcel.push, mark))
        self._take_answer(parcel, parcel.result, mark)
        await self._confirm(force=True)
        self._outbox.confirmed(parcel)
        self.sent += len(parcel.people)
        return MOST_CHANGES in {len(parcel.people), len(parcel.erased), len(parcel.pairs)}

    def _take_answer(self, parcel: Parcel, result: PushResult, mark: int) -> None:
        """Erase whom the site erased, and take over the names that it gave; or note that all is the same."""
        if result.exact:
            with self._gallery.file.changing(durable=False) as rows:
                if rows.site.copy is None and rows.site.mark == mark:
                    rows.site.put_mark(result.version)
                    rows.fleet.share([(number, seen) for number, _, seen in parcel.noted])  # by no page
                    self.version = self.applied = result.version
            return
        if not (result.forgotten or result.renamed or result.kept):
            return
        counts = {person.id: noted for person, noted in zip(parcel.people, parcel.noted, strict=True)}
        with self._gallery.file.changing(durable=False) as rows, rows.fleet.quiet():
            for id_ in result.forgotten:
                rows.site.bury(id_, "request", result.version)
                self._applier.erase(rows, id_)
            for id_ in result.kept:
                rows.site.take_back(id_)
            for id_, name in result.renamed.items():
                number, count, _ = counts[id_]
                change = rows.fleet.change(number)
                if change is not None and change.count == count:
                    set_name(rows, number, name)
        self._report()
        self.changed()

    async def _confirm(self, *, force: bool = False) -> None:
        """Let the store know what is applied here, and erased: a receipt finds out who was restored."""
        mark, now = self.mark, time.monotonic()
        if not force and self._confirmed is not None:
            before, at = self._confirmed
            if before == mark and now - at < CONFIRM_S:
                return
        if self.erase is not None and self._gallery.facts.get(EVENTS_FACT):
            self.erase()
            self.changed()
        receipt = secrets.token_hex(16)
        with self._gallery.file.changing(durable=False) as rows:
            rows.site.put_receipt(receipt, pending=True)
            store = rows.store
        store.log.flush()  # not under the lock: it may take long
        await answered(self._store.confirm(mark, receipt))
        with self._gallery.file.changing(durable=False) as rows:
            rows.site.put_receipt(receipt, pending=False)
        self._confirmed = mark, now
