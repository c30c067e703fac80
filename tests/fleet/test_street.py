"""People who walk from one device to another, with real agents, a broker, and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.offline.bench.environment import open_broker
from edge_agent.offline.synthetic.street import Street
from tests.fleet import postgres_server
from tests.fleet.conftest import new_database
from tests.fleet.final_states import State, check_equal
from tests.fleet.forwarder import Forwarder
from tests.fleet.postgres_site import Site
from tests.fleet.server_database import Database
from tests.fleet.street import DEVICES, Playing, play, scored, shared, space_of_network, street

pytestmark = pytest.mark.slow
SECONDS = 24.0


@pytest.fixture
def site(database: Database, tmp_path: Path) -> Site:
    """A site for the shipped network."""
    return made(database, tmp_path)


def made(database: Database, folder: Path) -> Site:
    pytest.importorskip("asyncpg")
    found = Site(database, space=space_of_network(folder / "embedder"))
    found.init()
    return found


def exchange_all(site: Site, playing: Playing) -> State:
    """Exchange what is left as an operator does, and compare all devices with the store."""
    for _ in range(2):  # the first device then has what the last one sent
        for name in DEVICES:
            settings = (playing.folders[name] / "config.toml").read_text()
            config = playing.folders[name] / "operator.toml"
            config.write_text(settings.replace("memory:", "rtsp://127.0.0.1:1/"))
            command = [sys.executable, "-m", "edge_agent", "fleet", "sync", "--config", str(config)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    states = {name: folder / "state" for name, folder in playing.folders.items()}
    return check_equal(site, states, site.space.dimension)


def check_complete(walk: Street, playing: Playing, final: State) -> None:
    """Every device contributed, and nobody was taken for somebody else."""
    assert len(final.people) >= 4
    assert {device for _, device, _ in final.shared} == set(DEVICES)
    assert scored(walk, playing.folders).merged == 0


def test_people_are_recognised_at_other_devices(site: Site, tmp_path: Path) -> None:
    """Without the fleet, nobody is: every device gives ids of its own."""
    walk = street(SECONDS, people=5, seed=3)
    with open_broker(tmp_path) as (broker, _):
        settings = {name: shared(site, name, broker) for name in DEVICES}
        with play(walk, tmp_path / "street", tmp_path / "devices", settings) as playing:
            playing.wait()
            final = exchange_all(site, playing)
    result = scored(walk, playing.folders)
    assert result.reentries >= 2
    assert result.recognised >= result.reentries / 2  # on a busy machine, pictures are left out
    assert result.merged == 0
    assert final.people
    assert final.shared


def test_a_server_that_is_killed_for_the_middle_third_leaves_all_devices_equal(tmp_path: Path) -> None:
    walk = street(SECONDS, people=5, seed=2)
    with (
        postgres_server.server() as server,
        new_database(server) as database,
        open_broker(tmp_path) as (broker, _),
    ):
        site = made(database, tmp_path)
        settings = {name: shared(site, name, broker) for name in DEVICES}
        with play(walk, tmp_path / "street", tmp_path / "devices", settings) as playing:
            sleep_until(playing.begin + SECONDS / 3)
            server.kill()
            sleep_until(playing.begin + 2 * SECONDS / 3)
            server.start()
            playing.wait()
            final = exchange_all(site, playing)
    check_complete(walk, playing, final)


def test_a_device_that_is_cut_off_for_half_of_the_time_becomes_equal(site: Site, tmp_path: Path) -> None:
    walk, port = street(SECONDS, people=5, seed=3), site.database.server.port
    with Forwarder(port) as network, open_broker(tmp_path) as (broker, _):
        settings = {name: shared(site, name, broker) for name in DEVICES}
        settings["hall"] = settings["hall"].replace(f":{port}/", f":{network.port}/")
        with play(walk, tmp_path / "street", tmp_path / "devices", settings) as playing:
            sleep_until(playing.begin + SECONDS / 4)
            network.cut()
            sleep_until(playing.begin + 3 * SECONDS / 4)
            network.mend()
            playing.wait()
            final = exchange_all(site, playing)
    check_complete(walk, playing, final)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))
