"""The one background thread of the fleet: exchanges changes, answers questions, does tasks of the site.

Nothing else of the agent waits for the network. All calls of the store run in the event loop of this thread,
so questions are answered while pages are applied. After a failure, the store is left alone for a time that
doubles each time; meanwhile questions are refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import structlog

from edge_agent.core.errors import EdgeAgentError, StorageError
from edge_agent.fleet.store import FleetStore, StoreDown, StoreRefused
from edge_agent.fleet.sync import Sync, answered

_log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""How long the store is left alone after a failure; twice as long after each further one."""
REFUSED_WAIT_S = 60.0
"""After a refusal, which somebody has to correct."""
STOP_S = 0.8
"""Longest wait for the thread to end."""
LEASE, LEASE_S = "reconcile", 60.0
"""The right to do the tasks of the whole site, and how long it lasts."""

Condition = Literal["starting", "online", "down", "refused", "stopped"]


@dataclass(slots=True)
class LeaseTask:
    """Something that one device does for the whole site: whoever has the lease.

    Attributes:
        every_s: interval.
        run: is awaited in the loop of the worker; an error of the store ends it as any other call.
    """

    name: str
    every_s: float
    run: Callable[[FleetStore], Awaitable[None]]
    due: float = 0.0
    """When it runs next, `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """How the exchange is going.

    Attributes:
        condition: `down`: the store does not answer; `refused`: see `problem`.
        problem: the latest error; "" while it works.
        mark, version: up to which the site is applied here, and that of the site as far as known.
        pending: changes of this device that the site does not have.
        synced_s: since everything was exchanged last; None: not in this run.
        failed_s: since the first of the failures in a row; None: none.
        retry_s: until the next attempt, while `down` or `refused`.
        people: of the site, as of the latest connection.
        clock_offset_s: how far the clock of the store was ahead of the label of this device; None: unknown.
        skipped: whether people of the site are not here for lack of space.
        leads: whether this device has the lease.
    """

    condition: Condition
    problem: str
    mark: int
    version: int
    pending: int
    synced_s: float | None
    failed_s: float | None
    retry_s: float | None
    people: int | None
    clock_offset_s: float | None
    skipped: bool
    leads: bool

    @property
    def lag(self) -> int:
        """Versions of the site that are not applied here."""
        return max(0, self.version - self.mark)


@dataclass(slots=True)
class _Breaker:
    """Failures in a row; times are of `time.monotonic`."""

    wait_s: float = 0.0
    until: float = 0.0
    since: float | None = None

    @property
    def is_open(self) -> bool:
        return self.since is not None

    def failed(self, *, refused: bool) -> float:
        """Return how long to leave the store alone."""
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        doubled = min(LONGEST_WAIT_S, max(FIRST_WAIT_S, 2 * self.wait_s))
        self.wait_s = REFUSED_WAIT_S if refused else doubled
        wait_s = self.wait_s * random.uniform(0.8, 1.2)  # noqa: S311 - devices must not return at once
        self.until = now + wait_s
        return wait_s

    def succeeded(self) -> None:
        self.wait_s, self.since = 0.0, None


@dataclass(slots=True)
class FleetWorker:
    """Runs a `Sync` while it is entered; any thread may call."""

    sync: Sync
    store: FleetStore
    sync_s: float
    """Interval of exchanges."""
    label: Callable[[], float] = time.time
    """The present time as this device knows it."""
    tasks: list[LeaseTask] = field(default_factory=list)
    """Of the lease holder; add to it before `__enter__`."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None
    _main: asyncio.Task[None] | None = None
    _wake: asyncio.Event | None = None
    _breaker: _Breaker = field(default_factory=_Breaker)
    _condition: Condition = "starting"
    _problem: str = ""
    _synced: float | None = None
    _offset_s: float | None = None
    _leads: bool = False
    _pending: int = 0
    _mark: int = 0
    _skipped: bool = False

    def __enter__(self) -> FleetWorker:
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop within a second, whatever the store does."""
        self._condition = "stopped"
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._cancel)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def submit(self, ask: Callable[[FleetStore], Awaitable[T]], deadline_s: float) -> Future[T]:
        """Ask the store something, from any thread: `ask` is called and awaited in the loop of the worker.

        The future ends within about `deadline_s`: with the answer, or StoreDown when there is none in time;
        at once with StoreDown while the store is left alone, or is not connected yet. Questions run beside
        the exchange and beside each other.
        """
        refused: Future[T] = Future()
        if self._condition != "online":
            refused.set_exception(StoreDown(self._problem or "the fleet is not connected"))
            return refused
        try:
            return asyncio.run_coroutine_threadsafe(answered(ask(self.store), deadline_s), self._loop)
        except RuntimeError:  # the loop was closed
            refused.set_exception(StoreDown("the fleet is stopping"))
            return refused

    def sync_now(self) -> None:
        """Exchange changes without waiting for the interval, or for the end of the wait after a failure."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_wake)

    def state(self) -> WorkerState:
        """Return how it goes, without waiting for anything."""
        now, welcome = time.monotonic(), self.sync.welcome
        down = self._condition in {"down", "refused"}
        return WorkerState(
            condition=self._condition,
            problem=self._problem,
            mark=self._mark,
            version=max(self.sync.version, self._mark),
            pending=self._pending,
            synced_s=None if self._synced is None else now - self._synced,
            failed_s=None if self._breaker.since is None else now - self._breaker.since,
            retry_s=max(0.0, self._breaker.until - now) if down else None,
            people=None if welcome is None else welcome.people,
            clock_offset_s=self._offset_s,
            skipped=self._skipped,
            leads=self._leads,
        )

    # ---- in the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._main = self._loop.create_task(self._work())
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._main)
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _set_wake(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _work(self) -> None:
        self._wake = asyncio.Event()
        while True:
            self._wake.clear()
            wait_s = self.sync_s
            try:
                await self._exchange()
            except StoreRefused as error:
                wait_s = self._failed(error, "refused")
            except StoreDown as error:
                wait_s = self._failed(error, "down")
            except StorageError as error:  # of the gallery, e.g. a full disk
                self._problem = str(error)
                _log.warning("fleet_gallery_failed", error=str(error))
                wait_s = LONGEST_WAIT_S
            except EdgeAgentError as error:
                wait_s = self._failed(error, "down")
            except Exception as error:  # noqa: BLE001  a fault here must not end the exchange for ever
                _log.exception("fleet_failed")
                wait_s = self._failed(StoreDown(f"{type(error).__name__}: see the log"), "down")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    async def _exchange(self) -> None:
        if self.sync.welcome is None:
            welcome = await self.sync.connect()
            self._offset_s = welcome.now - self.label()
            self._online()
        await self.sync.step()
        self._synced = time.monotonic()
        self._note()
        await self._lead()

    def _online(self) -> None:
        if self._condition == "stopped":
            return
        if self._breaker.is_open:
            _log.info("fleet_connected")
        self._breaker.succeeded()
        self._condition, self._problem = "online", ""

    def _note(self) -> None:
        """Read what `state` returns, so that nobody else has to wait for the lock of the gallery."""
        self._pending, self._mark, self._skipped = self.sync.counts()

    def _failed(self, error: EdgeAgentError, condition: Condition) -> float:
        first = not self._breaker.is_open
        wait_s = self._breaker.failed(refused=condition == "refused")
        (_log.warning if first else _log.debug)("fleet_" + condition, error=str(error), retry_s=round(wait_s))
        if self._condition != "stopped":
            self._condition = condition
        self._problem, self._leads = str(error), False
        self.sync.disconnected()
        with contextlib.suppress(StorageError):
            self._note()
        return wait_s

    async def _lead(self) -> None:
        """Do the tasks of the site that are due, if this device has the lease."""
        now = time.monotonic()
        due = [task for task in self.tasks if task.due <= now]
        if not due:
            return
        self._leads = await answered(self.store.lease(LEASE, LEASE_S))
        for task in due:
            if self._leads:
                await task.run(self.store)
            task.due = time.monotonic() + task.every_s

    async def _end(self) -> None:
        """End questions that wait, and the connection."""
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 0.2)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.store.close(), 0.3)
