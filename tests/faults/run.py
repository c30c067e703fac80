"""Delivery under faults, with a real mosquitto: events produced, received, lost, duplicated, out of order.

    python tests/faults/run.py                 # everything, about 6 minutes
    python tests/faults/run.py storm --seconds 20
    python tests/faults/run.py rates --json

Needs mosquitto and openssl; `disk` needs root, to mount a small file system. Exits 1 when a promise broke.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import certificates
import rates
import structlog
from scene import Log, Subscriber, account, broker, gaps, start_agent, wait_for

from tests.deliver.deliver_fixtures import identity, outbox_at, publishing

Result = dict[str, Any]
DRAIN_S = 180.0
"""Longest time (s) for the arrival of events on a loaded machine."""
DRAINS_S = {"jx99": 20.0, "jx01": DRAIN_S}
"""Times (s) of clients that are let in. At each topic that it forbids, the broker drops the connection."""
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
ZERO = ("lost", "out of order", "number differs", "holes not reported", "never made")


def storm(folder: Path, seconds: float, seed: int) -> Result:
    """200 events/s; the broker is killed, frozen and restarted, the agent is killed -9 three times."""
    (folder / "state").mkdir()
    log, subscriber, said = weather(folder, seconds, seed, [])
    found = account(log, subscriber.seen)
    return found | said | {"ok": said["drained"] and all(found[k] == 0 for k in ZERO)}


def disk(folder: Path, seconds: float, seed: int) -> Result:
    """The same, with the outbox's disk full twice: dropped events are reported exactly."""
    state = folder / "state"
    state.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(state)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode != 0:
        return {"skipped": "mounting a small file system needs root", "ok": True}
    more = [(0.22, "disk fill"), (0.38, "disk free"), (0.50, "disk fill"), (0.68, "disk free")]
    try:
        log, subscriber, said = weather(folder, seconds, seed, more)
    finally:
        subprocess.run(["umount", str(state)], check=True)
    found = account(log, subscriber.seen)
    reported = set(gaps(subscriber.seen).get("disk-full", []))
    # A kill may come between the loss of an event and its log line.
    unclear = reported - set(log.dropped) - log.of_starts
    exact = set(log.dropped) <= reported and len(unclear) <= len(log.cut_off)
    counts = {
        "dropped": len(log.dropped),
        "reported as disk-full": len(reported),
        "cut off by a kill": len(log.cut_off),
        "reported = dropped": exact,
    }
    fine = exact and bool(reported) and said["drained"] and all(found[k] == 0 for k in ZERO)
    return found | counts | said | {"ok": fine}


def weather(
    folder: Path, seconds: float, seed: int, more: list[tuple[float, str]]
) -> tuple[Log, Subscriber, Result]:
    """Run the agent through everything that is planned, then let it deliver the rest in peace."""
    chance = random.Random(seed)
    log = Log(folder / "agent.log")
    with broker(folder / "broker") as server, Subscriber(server.port) as subscriber:
        plan: list[tuple[float, str]] = [(chance.uniform(0.05, 0.9), "agent kill -9") for _ in range(3)]
        plan += [(0.20, "broker kill -9"), (0.30, "broker start"), (0.45, "broker freeze")]
        plan += [(0.60, "broker thaw"), (0.75, "broker stop"), (0.80, "broker start"), *more]
        agent = run_agent(folder, server.url, count=1, life="first")  # a full disk keeps a new outbox out
        agent.communicate(timeout=DRAIN_S)
        begin = time.time()
        agent = run_agent(folder, server.url, until=begin + seconds, life=0)
        lives = 1
        for moment, what in sorted(plan):
            time.sleep(max(0.0, begin + moment * seconds - time.time()))
            if what == "agent kill -9":
                agent.send_signal(signal.SIGKILL)
                agent.communicate()
                agent = run_agent(folder, server.url, until=begin + seconds, life=lives)
                lives += 1
            elif what.startswith("disk"):
                do_to_disk(folder / "state", what)
            else:
                do_to_broker(server, what)
        said, _ = agent.communicate(timeout=seconds + DRAIN_S + 60)
        wait_for(log, subscriber, DRAIN_S)
    return log, subscriber, {"agent lives": lives, "drained": "drained True" in said}


def do_to_disk(state: Path, what: str) -> None:
    ballast = state / "ballast"
    if what == "disk free":
        ballast.unlink()
        return
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def run_agent(folder: Path, url: str, *, life: int | str, **more: Any) -> subprocess.Popen[str]:
    return start_agent(
        broker=url,
        state=folder / "state",
        log=folder / "agent.log",
        session=f"life-{life}",
        **more,
    )


def do_to_broker(server: Any, what: str) -> None:
    if what == "broker kill -9":
        server.stop(kill=True)
    elif what == "broker stop":
        server.stop()
    elif what == "broker start":
        server.start()
    elif what == "broker freeze":
        os.kill(server.process.pid, signal.SIGSTOP)
    elif what == "broker thaw":
        os.kill(server.process.pid, signal.SIGCONT)


def mtls(folder: Path, seconds: float, seed: int) -> Result:
    """Foreign certificate, expired certificate, a forbidden topic: refused, reported, nothing lost."""
    made = certificates.make(folder / "certificates")
    acl = folder / "broker" / "acl"
    acl.parent.mkdir()
    example = (EXAMPLES / "mosquitto" / "edge-agent.acl").read_text()
    acl.write_text(example.replace("site1", "lab").replace("user dashboard", "user watcher"))
    (folder / "state").mkdir()
    log = Log(folder / "agent.log")
    said: Result = {}
    with broker(acl.parent, certificates.BROKER.replace("{certificates}", str(made.folder))) as server:
        url = f"mqtts://127.0.0.1:{server.port}"
        watcher = {
            "ca_certs": made.ca,
            "certfile": made.file("watcher.pem"),
            "keyfile": made.file("watcher.key"),
        }
        with Subscriber(server.port, tls=watcher) as subscriber:
            for name in ("foreign", "expired", "jx99", "jx01"):
                agent = run_agent(
                    folder,
                    url,
                    life=name,
                    count=50,
                    drain=DRAINS_S.get(name, 4.0),
                    ca=made.ca,
                    cert=made.file(f"{name}.pem"),
                    key=made.file(f"{name}.key"),
                )
                out, _ = agent.communicate(timeout=DRAIN_S + 60)
                said[name] = out.partition("problem ")[2].strip()[-90:]
            wait_for(log, subscriber, DRAIN_S)
            found = account(log, subscriber.seen)
            reported = gaps(subscriber.seen)
    # Events refused for their topic come late, under their old numbers: reported before, and not lost.
    order = found.pop("out of order")
    more = {"late": order, "reported as rejected": len(reported.get("rejected", [])), "said": said}
    refused = "ALERT" in said["foreign"].upper() and "ALERT" in said["expired"].upper()
    kept = ("lost", "number differs", "holes not reported", "never made")
    told_all = more["reported as rejected"] >= 50
    return found | more | {"ok": refused and told_all and all(found[k] == 0 for k in kept)}


def outage(folder: Path, seconds: float, seed: int) -> Result:
    """An hour without broker at 5 events/s, by a clock that is moved; then everything, in order."""
    now = [1_800_000_000.0]
    count = 18_000
    with (
        broker(folder / "broker", rates.BROKER, start=False) as server,
        outbox_at(folder / "outbox.db", clock=lambda: now[0]) as outbox,
        publishing(outbox, server.url, first_wait_s=0.2, longest_wait_s=0.5) as publisher,
    ):
        made = {}
        for number in range(count):
            event = identity(number + 1)
            made[event.id] = publisher.publish(event)
            now[0] += 3600 / count
        (folder / "agent.log").write_text(
            "".join(f"begin {event}\ndone {event} {seq}\n" for event, seq in made.items())
        )
        log = Log(folder / "agent.log")
        server.start()
        with Subscriber(server.port) as subscriber:
            begin = time.monotonic()
            drained = publisher.drain(2 * DRAIN_S)
            spent = time.monotonic() - begin
            wait_for(log, subscriber, DRAIN_S)
            found = account(log, subscriber.seen)
    ok = drained and all(found[k] == 0 for k in (*ZERO, "numbers in gaps"))
    return found | {"caught up in s": round(spent, 1), "ok": ok}


def commands(folder: Path, seconds: float, seed: int) -> Result:
    """10,000 malformed commands: see tests/deliver/test_commands.py."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "slow or not slow",
            "-k",
            "ten_thousand",
            str(Path(__file__).parent.parent / "deliver" / "test_commands.py"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"said": done.stdout.strip().splitlines()[-1], "ok": done.returncode == 0}


def measured_rates(folder: Path, seconds: float, seed: int) -> Result:
    """Append and drain compared with plain sqlite3 and plain paho, in turn in one run."""
    with broker(folder / "broker", rates.BROKER) as server:
        return rates.measure(folder, server.url, server.port, seconds)


SCENARIOS: dict[str, Callable[[Path, float, int], Result]] = {
    "storm": storm,
    "disk": disk,
    "mtls": mtls,
    "outage": outage,
    "commands": commands,
    "rates": measured_rates,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the storm")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="moments of the kills")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    results = {}
    for name in chosen.scenario or SCENARIOS:
        folder = Path(tempfile.mkdtemp(prefix=f"edge-agent-{name}-"))
        try:
            results[name] = SCENARIOS[name](folder, chosen.seconds, chosen.seed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if not chosen.json:
            print(f"\n{name}: {SCENARIOS[name].__doc__}")
            for key, value in results[name].items():
                print(f"  {key:24} {value}")
    if chosen.json:
        print(json.dumps({"seed": chosen.seed, **results}, indent=2))
    return 0 if all(result["ok"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
