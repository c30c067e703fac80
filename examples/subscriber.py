#!/usr/bin/env python3
"""Receive identity events of edge-agent without loss: python subscriber.py mqtt://HOST:PORT

Needs only paho-mqtt (`pip install "paho-mqtt>=2"`). Prints one line per event. The subscription stays while
the program is away (persistent session), repeated deliveries are dropped, and missing numbers are reported
with the reason.
"""
# ruff: noqa: T201, D103, ANN401 - prints; function names are those of paho's callbacks

from __future__ import annotations

import json
import signal
import sys
from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

CLIENT_ID = "example-subscriber"  # unique per subscriber: the broker keeps undelivered messages for it
AWAY_S = 24 * 3600  # how long the broker keeps the session
REMEMBERED = 100_000  # ids; more than any device repeats after an outage


class Device:
    """What was received from one device: finds repetitions, holes and their reasons."""

    def __init__(self) -> None:
        self.seen: OrderedDict[str, None] = OrderedDict()
        self.highest: int | None = None
        self.missing: set[int] = set()

    def is_new(self, event: dict[str, Any]) -> bool:
        """Record the event; return False for a repeated delivery, which has the same id."""
        if event["id"] in self.seen:
            return False
        self.seen[event["id"]] = None
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        seq = event["seq"]
        if self.highest is not None and seq > self.highest + 1:
            self.missing.update(range(self.highest + 1, seq))  # a gap event or a late event explains them
        self.missing.discard(seq)
        self.highest = max(seq, self.highest or 0)
        return True

    def explain(self, gap: dict[str, Any]) -> int:
        """Remove the lost numbers of a gap from the missing ones; return how many were missing."""
        gone = {n for r in gap["ranges"] for n in range(r["first"], r["last"] + 1)}
        explained = len(self.missing & gone)
        self.missing -= gone
        return explained


devices: dict[str, Device] = {}


def on_connect(client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
    if reason.is_failure:
        sys.exit(f"the broker refuses us: {reason}")
    for kind in ("identity/+", "person/+", "gap", "alert/+", "status"):
        client.subscribe(f"edge/v1/+/+/{kind}", qos=1)


def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
    event = json.loads(message.payload)
    where, data = event["source"].removeprefix("edge/v1/"), event["data"]
    if "seq" not in event:  # status: retained, not numbered
        print(f"{event['time']} {where} is {data['state']} {data['reason']}", flush=True)
        return
    device = devices.setdefault(event["source"], Device())
    if not device.is_new(event):
        return
    kind = event["type"].split(".")[1]
    if kind == "gap":
        print(f"{event['time']} {where} lost {data['count']} events: {data['reason']}", flush=True)
        device.explain(data)
    elif kind == "alert":
        print(f"{event['time']} {where} {data['severity']}: {data['message']}", flush=True)
    elif kind == "person":
        other = f" {data['absorbed_id']} into" if data["absorbed_id"] else ""
        who = f"{data['identity_id']} {data['name'] or ''}".rstrip()
        print(f"{event['time']} {where} {data['kind']}{other} {who}", flush=True)
    else:
        who = data["name"] or data["identity_id"] or "somebody"
        if data["kind"] == "corrected":
            who = f"{data['previous_identity_id'] or 'somebody'} -> {who}"
        print(f"{event['time']} {where} {data['camera']}: {data['kind']} {who} ({data['score']})", flush=True)
    if device.missing:
        print(f"{event['time']} {where} still waiting for {len(device.missing)} numbers", flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = urlsplit(sys.argv[1] if len(sys.argv) > 1 else "mqtt://127.0.0.1:1883")
    if address.scheme not in {"mqtt", "mqtts"} or not address.hostname:
        sys.exit("usage: subscriber.py mqtt://HOST:PORT or mqtts://HOST:PORT")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, CLIENT_ID, protocol=mqtt.MQTTv5)
    if address.scheme == "mqtts":
        client.tls_set()
    if address.username:
        client.username_pw_set(address.username, address.password)
    client.on_connect = on_connect
    client.on_message = on_message
    stay = Properties(PacketTypes.CONNECT)
    stay.SessionExpiryInterval = AWAY_S
    port = address.port or (8883 if address.scheme == "mqtts" else 1883)
    try:
        client.connect(address.hostname, port, clean_start=False, properties=stay)
        client.loop_forever()
    except KeyboardInterrupt:
        client.disconnect()
    except OSError as problem:  # at the first connection; later ones are repeated
        sys.exit(f"{address.hostname}:{port}: {problem}")


if __name__ == "__main__":
    main()
