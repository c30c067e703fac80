"""The background thread of the fleet: questions, the breaker, tasks, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings
from edge_agent.fleet import worker as working
from edge_agent.fleet.records import Answer
from edge_agent.fleet.store import FleetStore, StoreDown
from edge_agent.fleet.sync import Sync
from edge_agent.fleet.worker import FleetWorker, Task
from edge_agent.gallery import Gallery
from tests.fleet.memory_store import MemorySite

D = 8
QUERY = np.eye(1, D, dtype=np.float32)


@pytest.fixture
def site() -> MemorySite:
    return MemorySite(dimension=D)


@pytest.fixture
def worker(site: MemorySite, tmp_path: Path) -> Iterator[FleetWorker]:
    with ExitStack() as stack:
        gallery = stack.enter_context(
            Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=D, owner=True)
        )
        gallery.enrol(QUERY, np.ones(1), origin="s:door:1", camera="door", time=1e9)
        store = site.store("a")
        yield FleetWorker(Sync(gallery, store, "a"), store, 0.05)


def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def ask(store: FleetStore) -> Answer:
    return await store.ask(QUERY, 5)


def assert_refused(worker: FleetWorker) -> None:
    future = worker.submit(ask, 1.0)
    assert future.done()
    assert isinstance(future.exception(), StoreDown)


def test_it_exchanges_and_answers(worker: FleetWorker, site: MemorySite) -> None:
    assert_refused(worker)  # not connected yet
    with worker:
        until(lambda: worker.exchanged)
        assert (worker.link, worker.problem, worker.retry_s) == ("connected", "", None)
        assert (worker.sync.sent, worker.sync.waiting) == (1, 0)
        until(lambda: worker.sync.applied == 1)
        assert worker.clock_offset_s == pytest.approx(site.now - time.time(), abs=5)
        future = worker.submit(ask, 1.0)
        assert len(future.result(2.0).candidates) == 1
    assert worker.link == "stopped"
    assert_refused(worker)


def test_questions_are_refused_while_the_store_is_away(
    worker: FleetWorker, site: MemorySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "FIRST_WAIT_S", 0.1)
    with worker:
        until(lambda: worker.exchanged)
        site.down = True
        until(lambda: worker.link == "waiting")
        assert_refused(worker)
        assert "cannot be reached" in worker.problem
        site.down = False
        until(lambda: worker.link == "connected")
        assert worker.problem == ""


def test_a_refusal_waits_long_and_a_wish_ends_the_wait(worker: FleetWorker, site: MemorySite) -> None:
    site.refused = "the role is wrong"
    with worker:
        until(lambda: worker.link == "refused")
        assert worker.problem == "the role is wrong"
        assert worker.retry_s is not None
        assert worker.retry_s > 40
        site.refused = None
        worker.sync_now()
        until(lambda: worker.exchanged)


def test_a_frozen_store_delays_neither_questions_nor_the_end(worker: FleetWorker, site: MemorySite) -> None:
    with worker:
        until(lambda: worker.exchanged)
        site.frozen, site.deadline_s = True, 1e9
        future = worker.submit(ask, 0.2)
        began = time.monotonic()
        with pytest.raises(StoreDown):
            future.result(2.0)
        assert time.monotonic() - began < 1.0
        time.sleep(0.1)  # the exchange hangs, too
        began = time.monotonic()
    assert time.monotonic() - began < 1.0


def test_one_device_does_the_tasks_of_the_site(worker: FleetWorker, site: MemorySite) -> None:
    done: list[str] = []

    def task(name: str, **more: bool) -> Task:
        async def run(_: FleetStore) -> None:
            done.append(name)

        return Task(run, 3600.0, **more)

    worker.tasks += [task("leader"), task("everybody", leads=False)]
    site.content.leases[working.LEASE] = ("b", site.now + 10)
    with worker:
        until(lambda: done)
        time.sleep(0.2)
        assert done == ["everybody"]
        assert not worker.leads
    asyncio.run(worker.store.close())


def test_a_fault_in_a_task_does_not_end_the_exchange(
    worker: FleetWorker, site: MemorySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "FIRST_WAIT_S", 0.05)
    runs: list[int] = []

    async def run(_: FleetStore) -> None:
        runs.append(1)
        raise ValueError("a secret")

    worker.tasks.append(Task(run, 0.0))
    with worker:
        until(lambda: len(runs) > 1)
        assert "secret" not in worker.problem
    del site
