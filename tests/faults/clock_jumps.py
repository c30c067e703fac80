"""A wall clock that jumps, for an hour: no identity and no event may be lost.

    python tests/faults/clock_jumps.py                   # a simulated hour, then five minutes of a real agent
    python tests/faults/clock_jumps.py hour --seconds 36000
    python tests/faults/clock_jumps.py agent --seconds 3600 --json

`hour` moves all clocks of a simulated machine, with the real gallery and outbox: jumps, restarts, reboots and
synchronisations. `agent` runs the real agent with a shim that moves its wall clock (needs gcc) every few
seconds, kills and restarts it, and delivers to a real mosquitto in the end. Exits 1 when something was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edge_agent.core.clock import CLOCK_FILE, Clock
from edge_agent.core.config import GallerySettings
from edge_agent.core.delivery_settings import OutboxSettings
from edge_agent.deliver.outbox import Outbox
from edge_agent.gallery import Gallery
from tests.hand_clock import HandTime

YEAR_S = 365.25 * 86_400
JUMPS = (10 * YEAR_S, -10 * YEAR_S, 10 * 86_400.0, -7200.0, 7200.0, -1.78e9, 45.0, -45.0, 0.0)
KEPT_HOURS = 24.0
"""Of identities and events: longer than either run."""
PEOPLE = 200
DIMENSION = 4

Result = dict[str, Any]


def hour(folder: Path, seconds: int, seed: int) -> Result:
    """A simulated machine, in steps of one second."""
    chance, machine, counts = random.Random(seed), HandTime(sync=True), Counter[str]()
    people: set[str] = set()
    events: set[int] = set()
    left = seconds
    while left > 0:
        with _opened(folder, machine) as (clock, gallery, outbox):
            while left > 0:
                left -= 1
                machine.passes(1.0)
                _sighting(chance, clock, gallery, people)
                events.add(outbox.append(b'{"a":1}', "t"))
                if left % 10 == 0:
                    _turn(clock, gallery, outbox)
                happens = chance.random()
                if happens < 0.25:
                    machine.error, machine.sync = chance.choice(JUMPS), False
                    counts["jumps"] += 1
                elif happens < 0.27:
                    machine.error, machine.sync = 0.0, True
                    counts["synchronisations"] += 1
                elif happens < 0.29:
                    counts["restarts"] += 1
                    break
        if chance.random() < 0.2:
            machine.reboot(chance.choice((1.0, 60.0, 600.0)))
            counts["reboots"] += 1
    with _opened(folder, machine) as (clock, gallery, outbox):
        _turn(clock, gallery, outbox)
        kept = {person.id for person in gallery.identities()}
        waiting = set()
        while rows := outbox.pending(1000):
            waiting.update(row.seq for row in rows)
    lost = {"identities lost": len(people - kept), "events lost": len(events - waiting)}
    made = {"simulated s": seconds, "identities": len(people), "events": len(events), **counts}
    return {**made, **lost, "ok": not any(lost.values())}


@contextlib.contextmanager
def _opened(folder: Path, machine: HandTime) -> Iterator[tuple[Clock, Gallery, Outbox]]:
    clock = Clock.open(folder / CLOCK_FILE, machine)
    settings = GallerySettings(ttl_hours=KEPT_HOURS)
    limits = OutboxSettings(max_age_hours=KEPT_HOURS)
    with (
        Gallery(
            folder / "gallery.db", settings, space="s", dimension=DIMENSION, owner=True, clock=clock
        ) as gallery,
        Outbox(folder / "outbox.db", limits, clock=clock) as outbox,
    ):
        yield clock, gallery, outbox


def _turn(clock: Clock, gallery: Gallery, outbox: Outbox) -> None:
    """What the agent does at intervals."""
    relabelled = clock.check()
    if relabelled is not None:
        gallery.retention.relabel(relabelled)
    gallery.retention.expire()
    outbox.expire()


def _sighting(chance: random.Random, clock: Clock, gallery: Gallery, people: set[str]) -> None:
    if len(people) < PEOPLE and chance.random() < 0.2:
        row = np.eye(DIMENSION, dtype=np.float32)[:1]
        quality = np.ones(1, np.float32)
        people.add(gallery.enrol(row, quality, origin="t", camera="c", time=clock.moment()).id)
    elif people and chance.random() < 0.1:
        gallery.touch(gallery.get(chance.choice(sorted(people))).number, clock.moment())


def agent(folder: Path, seconds: int, seed: int) -> Result:
    """The real agent, first without a broker, then with one."""
    from tests.agent.test_agent import Listener, config, put
    from tests.conftest import Mosquitto, find_free_port, mosquitto_binary
    from tests.shimmed import WallClock

    chance, counts, wall = random.Random(seed), Counter[str](), WallClock(folder)
    shown, crops, port = _pictures(), folder / "crops", find_free_port()
    crops.mkdir()
    broker = Mosquitto(mosquitto_binary(), folder / "mosquitto.conf", port)
    broker.config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
    settings = config(folder, crops, once=False, broker=broker.url)
    settings.write_text(f"{settings.read_text()}[gallery]\nttl_hours = {KEPT_HOURS}\n")
    files: list[Path] = []
    deadline = time.monotonic() + seconds
    visit = 0

    def run(until: float, *, last: bool = False) -> None:
        """One life of the agent, with jumps every few seconds; it ends by a kill, or on request."""
        nonlocal visit
        files.append(folder / f"events-{len(files)}.jsonl")
        words = ("run", "--config", settings, "--events", files[-1])
        with wall.running(*words, log=folder / "log") as process:
            while time.monotonic() < until:
                visit += 1
                put(crops, shown, 1000.0 * visit, {10 * visit + one: one for one in shown})
                wall.shift(chance.choice(JUMPS))
                counts["jumps"] += 1
                time.sleep(chance.uniform(1.0, 5.0))
            if last:
                wall.shift(0)
                _wait(lambda: _number(listener) == _events(files)[1], 120)
            killed = not last and chance.random() < 0.5
            counts["kills" if killed else "stops"] += 1
            process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            process.wait(30)

    while time.monotonic() < deadline:
        run(min(deadline, time.monotonic() + chance.uniform(5.0, 20.0)))
    broker.start()
    listener = Listener(port)
    try:
        run(time.monotonic() + 5.0, last=True)
    finally:
        listener.close()
        broker.stop()
    ids, _ = _events(files)
    delivered = [event for event in listener.of("") if "seq" in event]
    numbers = {int(str(event["seq"])) for event in delivered}
    people = {event["data"]["identity_id"] for event in listener.of("identity/enrolled")}  # type: ignore[index]
    listed = json.loads(wall.run("gallery", "list", "--state", folder / "state", "--json").stdout)
    kept = {one["id"] for one in listed} | {one for person in listed for one in _former(wall, folder, person)}
    lost = {
        "identities lost": len(people - kept),
        "events lost": len(ids - {event["id"] for event in delivered}),
        "numbers missing": max(numbers, default=0) - len(numbers),
        "gap events": len(listener.of("/gap")),
        "pictures lost": 14 * len(shown) * visit - len(list(crops.glob("*.png"))),
    }
    made = {"seconds": seconds, "identities": len(people), "events": len(numbers), **counts}
    return {**made, **lost, "ok": bool(numbers) and not any(lost.values())}


def _pictures() -> dict[int, list[bytes]]:
    import cv2

    from edge_agent.offline.synthetic.camera import camera
    from edge_agent.offline.synthetic.crops import render_crop
    from edge_agent.offline.synthetic.identity import identity

    draw, view = np.random.default_rng(5), camera(3)
    return {
        person: [
            cv2.imencode(".png", render_crop(identity(40 + person), view, draw, (128, 64), hour=12.0))[
                1
            ].tobytes()
            for _ in range(14)
        ]
        for person in range(4)
    }


def _events(files: list[Path]) -> tuple[set[str], int]:
    """Return the ids of all events that were written, and the highest number."""
    texts = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    found = [json.loads(line) for line in texts]
    return {event["id"] for event in found}, max((event["seq"] for event in found), default=0)


def _number(listener: Any) -> int:
    return max((int(str(event["seq"])) for event in listener.of("") if "seq" in event), default=-1)


def _former(wall: Any, folder: Path, person: dict[str, Any]) -> list[str]:
    words = ("gallery", "show", person["number"], "--state", folder / "state", "--json")
    found: list[str] = json.loads(wall.run(*words).stdout)["former_ids"]
    return found


def _wait(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


RUNS = {"hour": (hour, 3600), "agent": (agent, 300)}


def main() -> int:
    """Run and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="?", choices=sorted(RUNS))
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    results = {}
    for name, (run, seconds) in RUNS.items():
        if chosen.which in (None, name):
            with tempfile.TemporaryDirectory(prefix="clock-jumps-") as folder:
                results[name] = run(Path(folder), chosen.seconds or seconds, chosen.seed)
    if chosen.json:
        print(json.dumps(results, indent=2))
    for name, result in {} if chosen.json else results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return 0 if all(result["ok"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
