"""People who walk from one device to another, with real agents, a broker, and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.offline.bench.environment import open_broker
from tests.fleet.postgres_site import Site
from tests.fleet.server_database import Database
from tests.fleet.street import DEVICES, play, scored, shared, space_of_network, street


@pytest.mark.slow
def test_people_are_recognised_at_other_devices(database: Database, tmp_path: Path) -> None:
    """Without the fleet, nobody is: every device gives ids of its own."""
    pytest.importorskip("asyncpg")
    site = Site(database, space=space_of_network(tmp_path / "embedder"))
    site.init()
    walk = street(24.0, people=5, seed=1)
    with open_broker(tmp_path) as (broker, _):
        settings = {name: shared(site, name, broker) for name in DEVICES}
        with play(walk, tmp_path / "street", tmp_path / "devices", settings) as playing:
            playing.wait()
    result = scored(walk, playing.folders)
    assert result.reentries >= 3
    assert result.recognised >= result.reentries / 2  # on a busy machine, pictures are left out
    assert result.merged == 0
