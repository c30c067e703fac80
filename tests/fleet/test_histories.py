"""Whatever happens, in whatever order: all devices and the store agree in the end, and nobody comes back."""

from __future__ import annotations

import itertools
import random
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edge_agent.fleet import sync
from tests.fleet.histories import KINDS, MODES, History, HistorySite, Step, new_site

T = TypeVar("T")

STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 15)), min_size=3, max_size=60
)


async def _answered(call: Awaitable[T], _: float = 0.0) -> T:
    return await call


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory; exchanges wait for nothing but the steps of a history."""
    monkeypatch.setattr(sync, "answered", _answered)
    monkeypatch.setattr(sync, "BREATH_S", 0)
    monkeypatch.setattr(sync, "REFILL_S", 0)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=memory if memory.is_dir() else None) as found:
        yield Path(found)


_numbers = itertools.count()

UNEQUAL_ONCE = {
    "a restored site does not know who expired": (
        4,
        "both restored",
        "advance 3 8, save 9 0, enrol 1 0, weeks 0 7, advance 9 12, lead 4 0, advance 3 4, restore 6 "
        "0, name 9 0",
    ),
    "ids that were merged come back with more than one person keeps": (
        2,
        "both restored",
        "save 9 1, enrol 3 0, enrol 9 0, enrol 3 0, advance 3 15, exchange 8 0, merge 8 0, see 3 0, "
        "merge 2 0, see 9 1, exchange 3 0, restore 7 1",
    ),
    "the time to live of the one who stays prevails": (
        2,
        "both restored",
        "enrol 7 1, enrol 1 0, ttl 5 7, ttl 9 1, exchange 5 0, merge 9 0",
    ),
    "a join that a restored site forgot is made again": (
        5,
        "both restored",
        "advance 2 10, advance 2 0, enrol 1 0, enrol 1 0, save 2 0, weeks 3 0, advance 6 9, join 0 1, "
        "advance 2 12, restore 1 0",
    ),
    "who expires right after an exact answer is known to the site": (
        5,
        "both restored",
        "enrol 0 0, advance 0 10, days 4 1, ttl 0 2",
    ),
    "of an expired person a part is here": (
        3,
        "both restored",
        "enrol 6 0, enrol 8 0, enrol 9 0, enrol 4 0, enrol 3 0, see 1 0, enrol 9 0, advance 0 13, "
        "name 0 14, split 1 0, advance 4 15, advance 8 9, enrol 3 0, weeks 0 2, exchange 6 0, join 0 "
        "5, forget 2 6, exchange 5 0, exchange 0 0, join 0 3, advance 0 6, advance 0 5",
    ),
}
"""Histories that ended unequal before a fault was mended, by what they show: devices, mode and steps."""


def _check(
    folder: Path, devices: int, mode: str, steps: list[Step], site: Callable[[], HistorySite] = new_site
) -> None:
    own = folder / str(next(_numbers))
    own.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "choice", random.Random(1).choice)  # of ids: the same in each run
        history = History(own, devices, mode, site())
        try:
            history.run(steps)
        finally:
            history.close()
            shutil.rmtree(own)


def run_histories(folder: Path, examples: int, site: Callable[[], HistorySite] = new_site) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(st.integers(2, 5), st.sampled_from(MODES), STEPS)
    def check(devices: int, mode: str, steps: list[Step]) -> None:
        _check(folder, devices, mode, steps, site)

    check()


@pytest.mark.parametrize("name", UNEQUAL_ONCE)
def test_histories_that_ended_unequal(folder: Path, name: str) -> None:
    devices, mode, steps = UNEQUAL_ONCE[name]
    split = [step.split() for step in steps.split(", ")]
    _check(folder, devices, mode, [(kind, int(one), int(other)) for kind, one, other in split])


def test_histories(folder: Path) -> None:
    run_histories(folder, 150)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_histories(folder: Path) -> None:
    run_histories(folder, 10_000)
