"""Delivery of an agent as a separate process that tests can kill: makes events at a rate and logs them.

Each event leaves lines in the log: `begin ID` before it is published, then `done ID SEQ` once it is on disk,
or `drop ID SEQ` when the disk did not take it. After a kill in between, an event may or may not arrive.
`start FIRST LAST` are the numbers of the departures that a start publishes for a killed run.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import structlog

from edge_agent.core.clock import Clock
from edge_agent.core.delivery_settings import MqttSettings, OutboxSettings
from edge_agent.deliver import connection, pacing, pump, sender
from edge_agent.deliver.local import Origin
from edge_agent.deliver.outbox import Outbox
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.topics import Topics
from tests.deliver.deliver_fixtures import INFO, identity

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("--broker", required=True)
ARGUMENTS.add_argument("--state", type=Path, required=True)
ARGUMENTS.add_argument("--log", type=Path, required=True)
ARGUMENTS.add_argument("--session", required=True)
ARGUMENTS.add_argument("--rate", type=float, default=200.0)
ARGUMENTS.add_argument("--until", type=float, default=math.inf, help="Unix seconds")
ARGUMENTS.add_argument("--count", type=float, default=math.inf, help="events")
ARGUMENTS.add_argument("--drain", type=float, default=180.0)
ARGUMENTS.add_argument("--padding", type=int, default=0, help="bytes added to each event")
ARGUMENTS.add_argument("--ca", type=Path)
ARGUMENTS.add_argument("--cert", type=Path)
ARGUMENTS.add_argument("--key", type=Path)


def produce(publisher: Publisher, log: int, chosen: argparse.Namespace) -> None:
    begin, made = time.time(), 0
    while (now := time.time()) < chosen.until and made < chosen.count:
        while made < min((now - begin) * chosen.rate, chosen.count):
            event = identity(made + 1, reason="x" * chosen.padding)
            os.write(log, f"begin {event.id}\n".encode())
            unwritten = publisher.counters.unwritten
            seq = publisher.publish(event)
            word = "done" if publisher.counters.unwritten == unwritten else "drop"
            os.write(log, f"{word} {event.id} {seq}\n".encode())
            made += 1
        time.sleep(0.002)


def main() -> None:
    chosen = ARGUMENTS.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    log = os.open(chosen.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    connection.WILL_DELAY_S = 0
    pump.ACK_TIMEOUT_S = 3.0
    sender.DRAIN_JITTER_S = 0.5
    pacing.FIRST_WAIT_S, pacing.LONGEST_WAIT_S, pacing.REFUSED_WAIT_S = 0.3, 2.0, 2.0
    settings = MqttSettings(
        broker=chosen.broker,
        site="lab",
        device="jx01",
        keepalive_s=5,
        ca_file=chosen.ca,
        cert_file=chosen.cert,
        key_file=chosen.key,
    )
    origin = Origin(Topics("lab", "jx01"), chosen.session, None, Clock())
    with (
        Outbox(chosen.state / "outbox.db", OutboxSettings()) as outbox,
        contextlib.nullcontext(outbox.last_number + 1) as first,
        Publisher(settings, origin, outbox=outbox, info=lambda: INFO) as publisher,
    ):
        os.write(log, f"start {first} {outbox.last_number}\n".encode())
        publisher.set_status("online")
        produce(publisher, log, chosen)
        drained = publisher.drain(chosen.drain)
        left = publisher.counters
        print(f"drained {drained} rows {left.outbox_rows} parked {left.outbox_parked}", flush=True)
        print(f"problem {publisher.problem}", flush=True)


if __name__ == "__main__":
    main()
