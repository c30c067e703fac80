"""Who is present: the retained message and the events come to the same state, also after kills."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.clock import Clock
from edge_agent.core.codec import encode
from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.events import Event, new_event
from edge_agent.core.presence import PersonData
from edge_agent.core.structures import DecisionKind
from edge_agent.deliver import present_message
from edge_agent.deliver.local import LocalPublisher, Origin
from edge_agent.deliver.open_tracks import PersonNow
from edge_agent.deliver.presence import Presence
from edge_agent.deliver.publisher import Publisher
from edge_agent.deliver.topics import Topics
from tests.conftest import REPO, Mosquitto
from tests.deliver.deliver_fixtures import (
    INFO,
    Listener,
    configured_mosquitto,
    identity,
    outbox_and_storage,
    outbox_at,
    publishing,
    until,
)

spec = importlib.util.spec_from_file_location("who_is_where", REPO / "examples" / "who_is_where.py")
assert spec is not None
assert spec.loader is not None
who_is_where = importlib.util.module_from_spec(spec)
spec.loader.exec_module(who_is_where)

IDS = ["p-1", "p-2", "p-3", "p-4"]
CAMERAS = ["gate", "hall"]
NOWHERE = "mqtt://127.0.0.1:1"


def departed(track: int, **changes: Any) -> Event:
    return identity(track, kind=DecisionKind.DEPARTED, ended=True, **changes)


def person(kind: Any, identity_id: str, **more: Any) -> Event:
    return new_event("person", PersonData(kind, identity_id, **more), detail=kind, time=time.time())


class Run:
    """A publisher without a broker, on an outbox that a kill leaves as it is."""

    def __init__(self, path: Path, session: str, known: Callable[[str], PersonNow | None]) -> None:
        self.outbox, self.storage = outbox_and_storage(path)
        self.stack = ExitStack()
        self.stack.enter_context(self.outbox)
        self.origin = Origin(Topics("lab", "jx01"), session, None, Clock())
        mqtt = MqttSettings(broker=NOWHERE, site="lab", device="jx01")
        with mock.patch("edge_agent.deliver.publisher.Pump"):  # its thread would only wait for a broker
            self.publisher = Publisher(mqtt, self.origin, outbox=self.outbox, info=lambda: INFO, known=known)
        self.stack.enter_context(self.publisher)

    def present(self) -> Any:
        return json.loads(self.origin.message("present", self.origin.presence.snapshot()))

    def kill(self) -> list[Any]:
        """End as a kill does; return all events of the outbox."""
        rows = self.storage.connection.execute("SELECT seq, body FROM event ORDER BY seq").fetchall()
        self.storage.close()
        self.stack.close()
        return [json.loads(body) | {"seq": seq} for seq, body in rows]


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("seen"), st.sampled_from(CAMERAS), st.integers(1, 3), st.sampled_from([*IDS, None])
        ),
        st.tuples(st.just("left"), st.sampled_from(CAMERAS), st.integers(1, 3)),
        st.tuples(st.just("late correction"), st.sampled_from(CAMERAS), st.integers(1, 3)),
        st.tuples(st.just("merged"), st.sampled_from(IDS), st.sampled_from(IDS)),
        st.tuples(st.just("forgotten"), st.sampled_from(IDS)),
        st.tuples(st.just("named"), st.sampled_from(IDS), st.sampled_from(["Ada", None])),
        st.tuples(st.just("kill")),
    ),
    max_size=25,
)


class Truth:
    """What happens, without events."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], str | None] = {}
        self.names: dict[str, str | None] = {}
        self.gone: dict[str, str | None] = {}
        """Ids that are not used any more, with the one that remains."""

    def now(self, id_: str | None) -> str | None:
        while id_ in self.gone:
            id_ = self.gone[id_]
        return id_

    def state(self) -> dict[tuple[str, int], tuple[str | None, str | None]]:
        return {key: (id_, self.names.get(id_ or "")) for key, id_ in self.open.items()}


def shown(device: Any) -> dict[tuple[str, int], tuple[str | None, str | None]]:
    people = device.present()
    assert len({key[1:] for key in people}) == len(people)  # no track of two sessions
    return {key[1:]: (one["identity_id"], one["name"]) for key, one in people.items()}


def step(truth: Truth, kind: str, *given: Any) -> Event | None:
    """Let something happen; return its event."""
    if kind == "seen":
        camera, track, id_ = given
        id_ = truth.now(id_)
        before = truth.open.get((camera, track))
        truth.open[camera, track] = id_
        corrected = {"kind": DecisionKind.CORRECTED, "previous": before} if before else {}
        return identity(track, camera=camera, identity=id_, name=truth.names.get(id_ or ""), **corrected)
    if kind == "left":
        camera, track = given
        if (camera, track) not in truth.open:
            return None
        return departed(track, camera=camera, identity=truth.open.pop((camera, track)))
    if kind == "late correction":
        camera, track = given
        if (camera, track) in truth.open:
            return None
        return identity(track, camera=camera, kind=DecisionKind.CORRECTED, ended=True, identity="p-1")
    if kind == "named":
        id_, name = given
        if id_ in truth.gone:
            return None
        truth.names[id_] = name
        return person("named", id_, name=name)
    old, new = (given[1], given[0]) if kind == "merged" else (given[0], None)
    if old in truth.gone or new in truth.gone or old == new:
        return None
    truth.gone[old] = new
    if new is not None and truth.names.get(new) is None:
        truth.names[new] = truth.names.get(old)
    truth.open = {key: new if id_ == old else id_ for key, id_ in truth.open.items()}
    if new is None:
        return person("forgotten", old)
    return person("merged", new, absorbed_id=old, name=truth.names.get(new))


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, subscribed=st.integers(0, 25), shuffled=st.randoms(use_true_random=False))
def test_a_subscriber_computes_the_truth(steps: list[Any], subscribed: int, shuffled: Any) -> None:
    """From the retained message at any time, and the later events in any order and repeatedly."""
    truth, device = Truth(), who_is_where.Device()

    def known(id_: str) -> PersonNow | None:
        now = truth.now(id_)
        return None if now is None else PersonNow(now, 1, truth.names.get(now))

    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        path, sessions, given_out = Path(folder) / "o.db", 1, 0
        run = Run(path, "s1", known)
        closing.callback(lambda: run.storage.close())  # noqa: PLW0108 - the latest run; hypothesis may end an example anywhere
        for number, (kind, *given) in enumerate(steps):
            if number == subscribed:
                device.take(run.present())
            if kind == "kill":
                run.kill()
                sessions += 1
                run = Run(path, f"s{sessions}", known)
                truth.open.clear()
                events = run.storage.connection.execute("SELECT seq, body FROM event").fetchall()
                new = [json.loads(body) | {"seq": seq} for seq, body in events if seq > given_out]
            else:
                event = step(truth, kind, *given)
                if event is None:
                    continue
                seq = run.publisher.publish(event)
                new = [json.loads(encode(run.origin.stamp(event))) | {"seq": seq}]
            given_out = run.outbox.last_number
            if number >= subscribed:
                for one in shuffled.sample(new + new, 2 * len(new)):
                    device.take(one)
                assert shown(device) == truth.state()
                if shuffled.random() < 0.2:
                    device.take(run.present())
                    assert shown(device) == truth.state()
        device.take(run.present())
        assert shown(device) == truth.state()
        run.kill()


def test_open_tracks_depart_exactly_once_after_kills(tmp_path: Path) -> None:
    """In the order of their first events, also when the next start is killed in the middle."""
    path = tmp_path / "o.db"

    def known(id_: str) -> PersonNow | None:
        return PersonNow("p-9", 9, "Ada") if id_ == "p-1" else None

    run = Run(path, "s1", known)
    for track, id_ in ((3, "p-1"), (1, "p-2"), (2, None)):
        run.publisher.publish(identity(track, identity=id_))
    run.publisher.publish(identity(3, identity="p-1", kind=DecisionKind.CORRECTED))
    run.publisher.publish(departed(1))
    run.kill()

    outbox, storage = outbox_and_storage(path)
    with outbox:
        assert [track.change.track_id for track in outbox.stored.open_tracks()] == [3, 2]
        first = outbox.stored.open_tracks()[0]
        event = first.departed(known)
        assert event is not None
        outbox.append(encode(event), f"{event.source}/identity/departed", first.change)
        storage.close()  # killed after the first

    for session in ("s2", "s3"):
        run = Run(path, session, known)
        data = run.present()["data"]
        assert (data["seq"], data["people"], data["omitted"]) == (7, [], 0)
        events = run.kill()
    ended = [e for e in events if e["data"]["reason"] == "restart"]
    assert [(e["session"], e["data"]["track_id"]) for e in ended] == [("s1", 3), ("s1", 2)]
    assert [e["data"]["identity_id"] for e in ended] == ["p-9", None]
    assert all(e["data"]["ended"] and e["data"]["kind"] == "departed" for e in ended)
    assert len({e["id"] for e in events}) == len(events) == 7


def test_an_outbox_of_an_earlier_version_gets_the_table(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    outbox, storage = outbox_and_storage(path)
    with outbox:
        outbox.append(b"{}", "t")
        storage.connection.execute("DROP TABLE track")
    with outbox_at(path) as again:
        assert again.stored.open_tracks() == []
        assert again.last_number == 1
        assert again.set_aside is None


def test_an_erased_person_is_in_no_open_track(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    run = Run(path, "s1", lambda _: None)
    run.publisher.publish(identity(1, identity="p-1", name="Ada"))
    assert run.outbox.erase("p-1") == 1
    (track,) = run.outbox.stored.open_tracks()
    assert b"p-1" not in track.body
    assert b"Ada" not in track.body
    run.kill()
    assert b"p-1" not in path.read_bytes()


def test_rows_that_another_program_wrote_do_not_prevent_the_start(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    outbox, storage = outbox_and_storage(path)
    with outbox:
        storage.connection.execute("INSERT INTO track VALUES ('s', 'c', 1, 1, x'7b7d')")
        storage.connection.execute("INSERT INTO track VALUES ('s', 'c', 2, 2, x'ff')")
        event = encode(Origin(Topics("lab", "jx01"), "s", None, Clock()).stamp(identity(3)))
        storage.connection.execute("INSERT INTO track VALUES ('s', 'c', 3, 3, ?)", (event,))
    run = Run(path, "s2", lambda _: None)
    assert run.publisher.publish(identity(1)) == 2
    run.kill()


def test_the_retained_message_is_sent_and_followed(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with outbox_at(tmp_path / "o.db") as outbox:
        with publishing(outbox, mosquitto.url) as publisher, Listener(mosquitto.port) as listener:
            publisher.set_status("online")
            until(lambda: listener.of("/present"))
            assert listener.of("/present")[0]["data"]["people"] == []
            for track in range(1, 40):
                publisher.publish(identity(track))
            until(lambda: len(listener.of("/present")[-1]["data"]["people"]) == 39)
            assert len(listener.of("/present")) <= 4  # not one for each event
        with Listener(mosquitto.port, "+/+/+/+/present") as late:
            until(lambda: late.heard)
            assert late.heard[0].retained
            assert late.heard[0].message["data"]["seq"] == 39


def test_the_retained_message_fits_the_broker(tmp_path: Path) -> None:
    """Those with the newest events are kept, and the others counted."""
    lines = "listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 8000"
    with (
        configured_mosquitto(tmp_path / "broker", lines) as broker,
        outbox_at(tmp_path / "o.db") as outbox,
        publishing(outbox, broker.url) as publisher,
        Listener(broker.port, "+/+/+/+/present") as listener,
    ):
        for track in range(1, 101):
            publisher.publish(identity(track))
        until(lambda: listener.heard and listener.heard[-1].message["data"]["seq"] >= 100)
        data = listener.heard[-1].message["data"]
        assert data["omitted"] == 100 - len(data["people"])
        assert len(data["people"]) > 20
        assert data["people"][-1]["track_id"] == 100
        assert publisher.counters.refused == 0


def test_without_a_broker_there_is_the_same_state() -> None:
    origin = Origin(Topics("lab", "jx01"), "s", None, Clock())
    with LocalPublisher(origin) as publisher:
        publisher.publish(identity(1))
        publisher.publish(departed(1))
        publisher.publish(identity(2))
    assert [one.track_id for one in origin.presence.snapshot().people] == [2]


def test_the_cost_of_an_event_does_not_grow_with_the_people() -> None:
    """The state is a dictionary; the message is made only when it is sent."""
    presence = Presence()
    for seq in range(1, 501):
        presence.apply(identity(seq), seq)
    assert presence.changes == 500
    assert len(presence.snapshot().people) == 500
    assert present_message.INTERVAL_S >= 1.0


@pytest.mark.parametrize("kind", ["merged", "forgotten"])
def test_a_change_of_an_identity_leaves_unknown_tracks_alone(kind: str) -> None:
    presence = Presence()
    presence.apply(identity(1, identity=None), 1)
    presence.apply(person(kind, "p-1"), 2)
    assert presence.snapshot().people[0].identity_id is None


def run_until_killed(path: str, session: str) -> None:
    """Open tracks until somebody kills this process; `test_every_track_departs_once_after_real_kills`."""
    run = Run(Path(path), session, lambda _: None)
    for track in range(1, 60):
        for camera in CAMERAS:
            run.publisher.publish(identity(track, camera=camera))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    time.sleep(60)


@pytest.mark.slow
def test_every_track_departs_once_after_real_kills(tmp_path: Path) -> None:
    """Each process is killed while it ends the tracks of the one before, or opens its own."""
    path, random = tmp_path / "o.db", Random(1)
    code = "import sys; from tests.deliver.test_presence import run_until_killed as run;"
    code += "sys.stdout.write('go\\n'); sys.stdout.flush(); run(*sys.argv[1:])"
    for round_ in range(9):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), f"s{round_}"], stdout=subprocess.PIPE, text=True, cwd=REPO
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "go\n"
            if round_ == 8:
                assert process.stdout.readline() == "open\n"
            else:
                time.sleep(random.uniform(0, 0.08))
            process.kill()
            process.wait(10)
    outbox, storage = outbox_and_storage(path)
    with outbox:
        left = {(one.change.session, one.change.track_id) for one in outbox.stored.open_tracks()}
        rows = storage.connection.execute("SELECT seq, body FROM event ORDER BY seq").fetchall()
    messages = [json.loads(body) for _, body in rows]
    tracks = [
        (m["session"], m["data"]["camera"], m["data"]["track_id"], m["data"]["ended"]) for m in messages
    ]
    opened = {track[:3] for track in tracks if not track[3]}
    ended = [track[:3] for track in tracks if track[3]]
    assert {session for session, _ in left} == {"s8"}
    assert len(ended) == len(set(ended))
    assert set(ended) == {track for track in opened if track[0] != "s8"}
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
