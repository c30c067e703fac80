"""Whatever happens, in whatever order: all devices and the store agree in the end, and nobody comes back."""

from __future__ import annotations

import itertools
import random
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edge_agent.fleet import sync
from tests.fleet.histories import KINDS, MODES, History, Step

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

KNOWN_GAP = "both restored"
"""Site and devices restored from older copies: about 1 of 2,000 ends unequal, see decision 070."""


def _check(folder: Path, devices: int, mode: str, steps: list[Step]) -> None:
    own = folder / str(next(_numbers))
    own.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "choice", random.Random(1).choice)  # of ids: the same in each run
        history = History(own, devices, mode)
        try:
            history.run(steps)
        finally:
            history.close()
            shutil.rmtree(own)


def _histories(folder: Path, examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(st.integers(2, 5), st.sampled_from([one for one in MODES if one != KNOWN_GAP]), STEPS)
    def check(devices: int, mode: str, steps: list[Step]) -> None:
        _check(folder, devices, mode, steps)

    check()


def test_histories(folder: Path) -> None:
    _histories(folder, 150)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_histories(folder: Path) -> None:
    _histories(folder, 10_000)
