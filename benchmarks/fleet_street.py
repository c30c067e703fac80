"""A rendered street over three devices and six cameras, with and without the fleet.

    python -m benchmarks.fleet_street [--seconds 60] [--people 8] [--seeds 1,2,3] [--output FILE.json]

Real agents, one process each, with separate state folders, a broker, and PostgreSQL with pgvector on
127.0.0.1. Boxes are the generator's, so that identities alone are measured. A re-entry across devices is a
visit of somebody who visited another device before; it is recognised if its identity is one that the person
had there, by the events that a subscriber has after the last one. The machine needs a free core.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent.core.logs import configure
from edge_agent.core.manifest import write_json_atomic
from edge_agent.offline.bench.environment import machine, open_broker


def main() -> None:
    """Run the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--people", type=int, default=8)
    options.add_argument("--seeds", default="1,2,3")
    options.add_argument("--output", type=Path, help="write the result as JSON")
    chosen = options.parse_args()
    configure("error")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for seed in map(int, chosen.seeds.split(",")):
            rows.append(measured(Path(place) / str(seed), chosen.seconds, chosen.people, seed))
            print(markdown({"streets": rows[-1:]}), flush=True)
    result = {
        "seconds": chosen.seconds,
        "people": chosen.people,
        "cameras": 6,
        "devices": 3,
        "streets": rows,
        "machine": machine(),
    }
    print(markdown(result))
    if chosen.output is not None:
        write_json_atomic(chosen.output, result)


def measured(place: Path, seconds: float, people: int, seed: int) -> dict[str, Any]:
    """Play one street with and without the fleet."""
    from tests.fleet import postgres_server
    from tests.fleet.conftest import new_database
    from tests.fleet.postgres_site import Site
    from tests.fleet.street import DEVICES, alone, play, scored, shared, space_of_network, street

    walk, found = street(seconds, people=people, seed=seed), dict[str, Any](seed=seed)
    place.mkdir()
    with (
        postgres_server.server() as server,
        new_database(server) as database,
        open_broker(place) as (broker, _),
    ):
        site = Site(database, space=space_of_network(place / "embedder"))
        site.init()
        for way in ("fleet", "alone"):
            settings = {
                name: shared(site, name, broker) if way == "fleet" else alone(name, broker)
                for name in DEVICES
            }
            with play(walk, place / "street", place / way, settings) as playing:
                playing.wait()
            found[way] = asdict(scored(walk, playing.folders))
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows = result["streets"]
    lines = [
        "| street | people | recognised at another device | merged pairs | identities |"
        " without the fleet | identities |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fleet, lone = row["fleet"], row["alone"]
        lines.append(
            f"| {row['seed']} | {fleet['people']} | {fleet['recognised']} of {fleet['reentries']} |"
            f" {fleet['merged']} | {fleet['identities']} | {lone['recognised']} of {lone['reentries']} |"
            f" {lone['identities']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
