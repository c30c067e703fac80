"""Home Assistant entities of named people: templates, and removal with the person."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jinja2

from edge_agent.core.presence import PresentData, PresentPerson
from edge_agent.deliver.home_people import MOST_PEOPLE, PeopleAnnouncer, announcement, person_topic
from edge_agent.deliver.topics import Topics

TOPICS = Topics("lab", "jx01")


class Broker:
    """A publisher that keeps the retained messages."""

    def __init__(self) -> None:
        self.origin = SimpleNamespace(topics=TOPICS)
        self.retained: dict[str, bytes] = {}
        self.sent = 0

    def set_retained(self, topic: str, payload: bytes) -> None:
        self.sent += 1
        self.retained.pop(topic, None)
        if payload:
            self.retained[topic] = payload


class Facts:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value


def announcer(broker: Broker, facts: Facts, *, withdraw: bool = False) -> PeopleAnnouncer:
    return PeopleAnnouncer(broker, facts, "fact", withdraw)  # type: ignore[arg-type]


def rendered(identity: str, entity: str, people: list[PresentPerson], before: str = "hall") -> str:
    document = json.loads(announcement(TOPICS, identity, "Ada"))
    assert document["state_topic"] == TOPICS.present
    shown = [{"identity_id": one.identity_id, "camera": one.camera} for one in people]
    template = jinja2.Environment(autoescape=False).from_string(
        document["components"][entity]["value_template"]
    )
    value = {"data": {"people": shown}}
    return str(template.render(value_json=value, this=SimpleNamespace(state=before)))


def seen(camera: str, identity: str | None) -> PresentPerson:
    return PresentPerson(camera, 1, identity, 1, "Ada", 1.7e9, 0.8, "e-1")


def test_templates() -> None:
    people = [seen("gate", None), seen("gate", "p-2"), seen("yard", "p-'1"), seen("door", "p-'1")]
    assert PresentData(1, tuple(people)).omitted == 0
    assert rendered("p-'1", "presence", people) == "ON"
    assert rendered("p-'1", "camera", people) == "door"
    assert rendered("p-3", "presence", people) == "OFF"
    assert rendered("p-3", "camera", people) == "hall"


def test_people_come_and_go_also_between_runs() -> None:
    broker, facts = Broker(), Facts()
    one = announcer(broker, facts)
    one.update({"p-1": "Ada", "p-2": "Bob"})
    sent = broker.sent
    one.update({"p-1": "Ada", "p-2": "Bob"})
    assert broker.sent == sent
    one.update({"p-1": "Ada L.", "p-2": "Bob"})
    assert json.loads(broker.retained[person_topic(TOPICS, "p-1")])["device"]["name"] == "Ada L."
    one.update({"p-2": "Bob"})
    assert set(broker.retained) == {person_topic(TOPICS, "p-2")}
    announcer(broker, facts).update({"p-3": "Cem"})  # the next run; p-2 was forgotten meanwhile
    assert set(broker.retained) == {person_topic(TOPICS, "p-3")}
    announcer(broker, facts, withdraw=True).update({"p-3": "Cem"})
    assert broker.retained == {}
    assert facts.values["fact"] is None


def test_the_number_of_people_is_bounded() -> None:
    broker = Broker()
    announcer(broker, Facts()).update({f"p-{n}": f"name {n}" for n in range(MOST_PEOPLE + 50)})
    assert len(broker.retained) == MOST_PEOPLE
