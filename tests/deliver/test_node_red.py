"""The Node-RED flow: its structure, and its function on the messages of a run with kills."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_agent.core.codec import encode
from edge_agent.core.structures import DecisionKind
from tests.conftest import REPO
from tests.deliver.deliver_fixtures import identity
from tests.deliver.test_presence import Run, departed, person, who_is_where

FLOW = json.loads((REPO / "examples" / "node-red-flow.json").read_text())
NODES = {node["id"]: node for node in FLOW}
RUNNER = """
const { code, messages } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const stored = {};
const context = { get: (key) => stored[key], set: (key, value) => { stored[key] = value; } };
const run = new Function("msg", "context", code);
const out = messages.map((payload) => run({ payload }, context)).filter((msg) => msg !== null);
console.log(JSON.stringify(out.map((msg) => [msg.topic, msg.payload])));
"""


def test_structure() -> None:
    """Ids are unique, every wire leads to a node, and the three topics come with QoS 1 and a session."""
    assert len(NODES) == len(FLOW)
    for node in FLOW:
        assert {target for wires in node.get("wires", []) for target in wires} <= NODES.keys()
    inputs = [node for node in FLOW if node["type"] == "mqtt in"]
    assert {node["topic"] for node in inputs} == {
        "edge/v1/+/+/identity/+", "edge/v1/+/+/person/+", "edge/v1/+/+/present",
    }  # fmt: skip
    assert all(node["qos"] == "1" and node["broker"] == "broker" for node in inputs)
    broker = NODES["broker"]
    assert broker["cleansession"] is False
    assert broker["protocolVersion"] == "5"
    code = NODES["who"]["func"]
    assert code.count("{") == code.count("}")
    assert all(
        word in code for word in ("edge.present.v1", "edge.person.", "ended", "absorbed_id", "omitted")
    )


def messages(path: Path) -> list[Any]:
    """A run that is killed, and the next one, as a subscriber may get them."""
    found = []
    run = Run(path, "s1", lambda _: None)
    events = [
        identity(1, identity="p-1"), identity(2, identity="p-2", camera="hall"),
        identity(1, identity="p-3", kind=DecisionKind.CORRECTED, previous="p-1"),
        person("named", "p-2", name="Ada"), person("merged", "p-2", absorbed_id="p-3", name="Ada"),
        identity(7, identity="p-1"), departed(7), identity(8, kind=DecisionKind.CORRECTED, ended=True),
    ]  # fmt: skip
    for event in events:
        seq = run.publisher.publish(event)
        found.append(json.loads(encode(run.origin.stamp(event))) | {"seq": seq})
        if seq == 3:
            found.append(run.present())
    found += [found[1], found[-1]]  # repeated deliveries
    before = run.outbox.last_number
    run.kill()
    run = Run(path, "s2", lambda _: None)
    rows = run.storage.connection.execute("SELECT seq, body FROM event ORDER BY seq").fetchall()
    found += [json.loads(body) | {"seq": seq} for seq, body in rows if seq > before]
    seq = run.publisher.publish(event := identity(1, identity="p-9"))
    found += [run.present(), json.loads(encode(run.origin.stamp(event))) | {"seq": seq}]
    run.kill()
    return found


def test_the_function_keeps_who_is_where(tmp_path: Path) -> None:
    """As the Python example does, after every message."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    given = messages(tmp_path / "o.db")
    device, expected = who_is_where.Device(), []
    for message in given:
        device.take(message)
        people = sorted([p["camera"], p["name"] or p["identity_id"]] for p in device.present().values())
        if not expected or expected[-1] != people:
            expected.append(people)
    done = subprocess.run(
        ["node", "-e", RUNNER],
        input=json.dumps({"code": NODES["who"]["func"], "messages": given}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert {topic for topic, _ in shown} == {"edge/v1/lab/jx01"}
    assert [sorted(people) for _, people in shown] == expected
    assert [["cam1", "Ada"], ["hall", "Ada"]] in expected
    assert [] in expected
    assert expected[-1] == [["cam1", "p-9"]]
