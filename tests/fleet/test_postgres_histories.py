"""Random histories on a real PostgreSQL: at every call it answers as the store in memory does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.fleet.postgres import rows
from tests.fleet.server_database import Database
from tests.fleet.test_histories import folder, run_histories  # noqa: F401 - a fixture
from tests.fleet.twin_store import Clock, Twin, TwinSite


@pytest.fixture
def twin(database: Database) -> Iterator[Twin]:
    with Twin(database) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_histories_on_postgresql(folder: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    clock = Clock()
    monkeypatch.setattr(rows, "NOW", clock)

    def site() -> TwinSite:
        clock.site = made = TwinSite(twin)
        return made

    run_histories(folder, 200, site)
