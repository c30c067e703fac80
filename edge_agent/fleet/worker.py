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
from typing import TypeVar

import structlog

from edge_agent.core.errors import EdgeAgentError, StorageError
from edge_agent.core.fleet_state import FleetLink
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


@dataclass(slots=True)
class Task:
    """Something that is done again and again beside the exchange.

    Attributes:
        run: is awaited in the loop of the worker; an error of the store ends it as any other call.
        every_s: interval.
        leads: it is done for the whole site, by one device: whoever has the lease.
    """

    run: Callable[[FleetStore], Awaitable[None]]
    every_s: float
    leads: bool = True
    due: float = 0.0
    """When it runs next, `time.monotonic`."""


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
    tasks: list[Task] = field(default_factory=list)
    """Add to it before `__enter__`."""
    link: FleetLink = "connecting"
    problem: str = ""
    """The latest error; "" while it works."""
    exchanged: float | None = None
    """Label of the latest complete exchange."""
    clock_offset_s: float | None = None
    """How far the clock of the store was ahead of the label when the connection was made."""
    leads: bool = False
    """Whether this device has the lease."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None
    _main: asyncio.Task[None] | None = None
    _wake: asyncio.Event | None = None
    _breaker: _Breaker = field(default_factory=_Breaker)

    def __enter__(self) -> FleetWorker:
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop within a second, whatever the store does."""
        self.link = "stopped"
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._cancel)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def submit(self, call: Callable[[FleetStore], Awaitable[T]], deadline_s: float, /) -> Future[T]:
        """Ask the store something, from any thread: `call` runs in the loop of the worker.

        The future ends within about `deadline_s`: with the answer, or an error; at once with StoreDown while
        the store is not connected, or is left alone. Questions run beside the exchange and beside each other.
        """
        if self.link == "connected":
            question = self._answer(call, deadline_s)
            try:
                return asyncio.run_coroutine_threadsafe(question, self._loop)
            except RuntimeError:  # the loop was closed
                question.close()
        refused: Future[T] = Future()
        refused.set_exception(StoreDown(self.problem or "the store of the fleet is not connected"))
        return refused

    async def _answer(self, call: Callable[[FleetStore], Awaitable[T]], deadline_s: float) -> T:
        return await answered(call(self.store), deadline_s)

    def sync_now(self) -> None:
        """Exchange changes without waiting for the interval, or for the end of the wait after a failure."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_wake)

    @property
    def retry_s(self) -> float | None:
        """Seconds until the next attempt; None while connected."""
        if self.link not in ("waiting", "refused"):
            return None
        return max(0.0, self._breaker.until - time.monotonic())

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
        if self._main is not None and not self._main.done():
            self._main.cancel()
            self._loop.call_later(0.1, self._cancel)  # Python 3.10 may lose one

    def _set_wake(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _work(self) -> None:
        self._wake = asyncio.Event()
        while self.link != "stopped":
            self._wake.clear()
            wait_s = await self._once()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    async def _once(self) -> float:
        """Exchange changes and do tasks; return how long to wait."""
        try:
            await self._exchange()
        except StoreRefused as error:
            return self._failed(error, "refused")
        except StorageError as error:  # of the gallery, e.g. a full disk
            if not self.problem:
                _log.warning("fleet_waits", error=str(error))
            self.problem = str(error)
            return LONGEST_WAIT_S
        except EdgeAgentError as error:
            return self._failed(error, "waiting")
        except Exception as error:  # noqa: BLE001  a fault must not end the exchange for ever
            _log.exception("fleet_failed")
            return self._failed(StoreDown(f"{type(error).__name__}, see the log"), "waiting")
        return self.sync_s

    async def _exchange(self) -> None:
        if self.sync.welcome is None:
            welcome = await self.sync.connect()
            self.clock_offset_s = welcome.now - self.label()
            if not self._breaker.is_open:  # else the exchange shows whether it works again
                self._set_link("connected")
        await self.sync.step()
        self._succeeded()
        await self._do_tasks()

    def _succeeded(self) -> None:
        if self._breaker.is_open:
            _log.info("fleet_connected")
        self._breaker.succeeded()
        self._set_link("connected")
        self.exchanged, self.problem = self.label(), ""

    def _set_link(self, link: FleetLink) -> None:
        if self.link != "stopped":
            self.link = link

    def _failed(self, error: EdgeAgentError, link: FleetLink) -> float:
        first = not self._breaker.is_open
        wait_s = self._breaker.failed(refused=link == "refused")
        (_log.warning if first else _log.debug)("fleet_" + link, error=str(error), retry_s=round(wait_s))
        self._set_link(link)
        self.problem, self.leads = str(error), False
        self.sync.disconnected()
        return wait_s

    async def _do_tasks(self) -> None:
        due = [task for task in self.tasks if task.due <= time.monotonic()]
        if any(task.leads for task in due):
            self.leads = await answered(self.store.lease(LEASE, LEASE_S))
        for task in due:
            if self.leads or not task.leads:
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
