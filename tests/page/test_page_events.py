"""What the page keeps of events: in order, bounded, and nothing of a person who was forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_agent.agent.page_service import PageService
from edge_agent.page.errors import Refused
from edge_agent.page.events import EventLog
from edge_agent.page.link import AgentLink


def event(seq: int, group: str = "identity", **data: Any) -> str:
    values = {"kind": "matched", "camera": "gate", "identity_id": "p-1", "name": "Anna"} | data
    return json.dumps({"id": f"e{seq}", "seq": seq, "type": f"edge.{group}.x.v1", "time": "", "data": values})


class Agent:
    """Answers like an agent, from a list of events."""

    def __init__(self) -> None:
        self.session = "one"
        self.events: list[str] = []
        self.missing: set[str] = set()

    def table(self) -> dict[str, Any]:
        return {"hello": self.hello, "events": self.ask, "missing": self.without}

    def without(self, values: Mapping[str, Any], _bytes: bytes) -> tuple[dict[str, Any], bytes]:
        return {"missing": [one for one in values["people"] if one in self.missing]}, b""

    def hello(self, _values: Mapping[str, Any], _bytes: bytes) -> tuple[dict[str, Any], bytes]:
        return {"session": self.session, "info": {"cameras": []}}, b""

    def ask(self, values: Mapping[str, Any], _bytes: bytes) -> tuple[dict[str, Any], bytes]:
        found = [one for one in self.events if json.loads(one)["seq"] > values["after"]]
        return {"session": self.session, "base": 0, "last": 0, "events": found}, b""


async def follow(log: EventLog, seconds: float = 0.5) -> None:
    task = asyncio.create_task(log.follow())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def ids(log: EventLog) -> list[str]:
    return [one["id"] for one in log.newest()]


def test_events_are_followed_and_a_forgotten_person_leaves_nothing(tmp_path: Path) -> None:
    agent = Agent()
    agent.events = [event(1), event(2, identity_id="p-2", name="Bert"), event(3, previous_identity_id="p-2")]
    told: list[Any] = []

    async def scenario() -> EventLog:
        log = EventLog(AgentLink(tmp_path))
        log.listeners.add(told.append)
        await follow(log)
        assert ids(log) == ["e3", "e2", "e1"]
        assert log.name("p-2") == "Bert"
        agent.events += [event(4, "person", kind="named", identity_id="p-1", name="Anne")]
        agent.events += [event(5, "person", kind="forgotten", identity_id="p-2", name=None)]
        await follow(log)
        return log

    with PageService(tmp_path, agent.table()):
        log = asyncio.run(scenario())
    assert log.name("p-1") == "Anne"
    assert log.name("p-2") is None
    assert "Bert" not in json.dumps([*log.newest()])
    assert {"type": "forgotten", "identity": "p-2"} in told


def test_an_agent_that_restarts_is_followed_from_its_first_event(tmp_path: Path) -> None:
    agent = Agent()
    agent.events = [event(1), event(2)]

    async def scenario() -> list[str]:
        log = EventLog(AgentLink(tmp_path))
        await follow(log)
        agent.session, agent.events = "two", [event(1)]
        await follow(log)
        return ids(log)

    with PageService(tmp_path, agent.table()):
        assert asyncio.run(scenario()) == ["e1", "e2", "e1"]


def test_who_was_forgotten_while_no_agent_ran_is_dropped(tmp_path: Path) -> None:
    agent = Agent()
    agent.events = [event(1), event(2, identity_id="p-2", name="Bert")]

    async def scenario() -> list[str]:
        log = EventLog(AgentLink(tmp_path))
        await follow(log)
        agent.session, agent.events, agent.missing = "two", [], {"p-2"}
        await follow(log)
        return ids(log)

    with PageService(tmp_path, agent.table()):
        assert asyncio.run(scenario()) == ["e1"]


def test_events_of_another_form_are_skipped(tmp_path: Path) -> None:
    agent = Agent()
    odd = {"seq": 1, "id": "odd", "type": "odd", "data": {}}
    agent.events = [json.dumps(odd), json.dumps(odd | {"seq": 2, "type": 5}), event(3)]

    async def scenario() -> list[str]:
        log = EventLog(AgentLink(tmp_path))
        await follow(log)
        return ids(log)

    with PageService(tmp_path, agent.table()):
        assert asyncio.run(scenario()) == ["e3"]


def test_without_an_agent_there_is_a_refusal_and_no_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(Refused) as caught:
            await AgentLink(tmp_path / "nowhere").ask("hello")
        assert caught.value.code == "agent-away"
        log = EventLog(AgentLink(tmp_path))
        await follow(log, 0.1)
        assert not log.online

    asyncio.run(scenario())
