#!/usr/bin/env python3
"""Keep who is in view of which camera: python who_is_where.py mqtt://HOST:PORT

Needs only paho-mqtt (`pip install "paho-mqtt>=2"`). Prints one JSON line per change of a device. The state is
right through corrections, repeated and missing events, restarts of the agent, and restarts of this program:
the retained `present` message has everyone after the event `seq`; later events are applied to it.
"""
# ruff: noqa: T201, D103, ANN401 - prints; function names are those of paho's callbacks

from __future__ import annotations

import json
import signal
import sys
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

CLIENT_ID = "example-who-is-where"  # unique per subscriber: the broker keeps undelivered messages for it
AWAY_S = 24 * 3600  # how long the broker keeps the session

Key = tuple[str, str, int]  # a track: session, camera, track id


def apply(people: dict[Key, dict[str, Any]], event: dict[str, Any]) -> None:
    """Apply one numbered event to the people in view."""
    data, kind = event["data"], event["type"].split(".")[1]
    if kind == "identity":
        key = event["session"], data["camera"], data["track_id"]
        people.pop(key, None)
        if not data["ended"]:
            kept = ("camera", "track_id", "identity_id", "number", "name", "score")
            people[key] = {name: data[name] for name in kept}
            people[key] |= {"since": data["first_seen"], "event_id": event["id"]}
    elif kind == "person":  # merged, forgotten, named
        now = None if data["kind"] == "forgotten" else data["identity_id"]
        for person in people.values():
            if person["identity_id"] and person["identity_id"] in (data["identity_id"], data["absorbed_id"]):
                person |= {"identity_id": now, "number": data["number"], "name": data["name"]}


class Device:
    """The people in view of the cameras of one device."""

    def __init__(self) -> None:
        self.people: dict[Key, dict[str, Any]] = {}
        """After the event with the number `seq`."""
        self.seq = 0
        self.later: dict[int, dict[str, Any]] = {}
        """Events with higher numbers, which may come out of order or repeatedly."""

    def take(self, message: dict[str, Any]) -> None:
        """Take a `present` message or a numbered event."""
        if message["type"] != "edge.present.v1":
            if message["seq"] > self.seq:
                self.later[message["seq"]] = message
            return
        data, session = message["data"], message["session"]
        before = self.present() if data["omitted"] else {}  # those that the message has no room for
        self.seq = data["seq"]
        # The numbers of an agent that lost its state folder begin again, in another session.
        self.later = {n: m for n, m in self.later.items() if n > self.seq and m["session"] == session}
        self.people = {key: person for key, person in before.items() if key[0] == session}
        self.people |= {(session, one["camera"], one["track_id"]): one for one in data["people"]}

    def present(self) -> dict[Key, dict[str, Any]]:
        """Return everyone in view now."""
        people = {key: dict(person) for key, person in self.people.items()}
        for seq in sorted(self.later):
            apply(people, self.later[seq])
        return people


devices: dict[str, Device] = {}
printed: dict[str, str] = {}


def on_connect(client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
    if reason.is_failure:
        sys.exit(f"the broker refuses us: {reason}")
    for kind in ("identity/+", "person/+", "present"):
        client.subscribe(f"edge/v1/+/+/{kind}", qos=1)


def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
    event = json.loads(message.payload)
    device = devices.setdefault(event["source"], Device())
    device.take(event)
    where = [[p["camera"], p["name"] or p["identity_id"]] for p in device.present().values()]
    line = json.dumps([event["source"], sorted(where, key=str)])
    if printed.get(event["source"]) != line:
        printed[event["source"]] = line
        print(line, flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = urlsplit(sys.argv[1] if len(sys.argv) > 1 else "mqtt://127.0.0.1:1883")
    if address.scheme not in {"mqtt", "mqtts"} or not address.hostname:
        sys.exit("usage: who_is_where.py mqtt://HOST:PORT or mqtts://HOST:PORT")
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
