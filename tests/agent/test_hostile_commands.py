"""Commands whose fields are anything: each is answered, by the rules of the command line."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.agent.command_handlers import CommandHandlers
from edge_agent.core.clock import Clock
from edge_agent.core.codec import encode
from edge_agent.core.config import GallerySettings
from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.events import Event
from edge_agent.core.mqtt import Incoming
from edge_agent.core.text import is_visible
from edge_agent.core.timing import rfc3339
from edge_agent.deliver.commands import CommandDesk
from edge_agent.gallery.erasure import Erasure
from edge_agent.gallery.gallery import Gallery
from tests.core.test_text import HOSTILE

T = TypeVar("T")
TOPIC = "edge/v1/site/device/cmd/"
VERBS = ("name", "merge", "forget", "stats")
FIELDS = ("identity_id", "absorbed_id", "name", "transaction", "issued")


class Now:
    """Runs tasks at once."""

    def call(self, task: Callable[[], T]) -> T:
        return task()

    def put(self, task: Callable[[], object]) -> None:
        task()


@pytest.fixture
def people(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(tmp_path / "gallery.db", GallerySettings(), space="s", dimension=4) as gallery:
        for name, row in (("Ada", [1, 0, 0, 0]), (None, [0, 1, 0, 0])):
            gallery.enrol(
                np.array([row], np.float32),
                np.array([0.5]),
                name=name,
                origin="s:c:1",
                camera="c",
                time=1.7e9,
            )
        yield gallery


def answer(gallery: Gallery, folder: Path, verb: str, payload: bytes) -> list[Event]:
    """Give one command to a desk whose handlers work on this gallery; return its answers."""
    handlers = CommandHandlers(
        gallery=gallery,
        identifier=cast("Any", SimpleNamespace(merged=lambda *_: None, together=frozenset)),
        embed=cast("Any", None),
        gate=cast("Any", None),
        tasks=cast("Any", Now()),
        erasure=Erasure(gallery, lambda _: 0),
        reload=list,
        delivery=cast("Any", None),
        state=folder,
    )
    sent: list[Event] = []
    table = {one: found for one, found in handlers.table().items() if one in VERBS[:3]}
    settings = MqttSettings(commands=tuple(table), site="site", device="device")
    with CommandDesk(settings, table, Clock(), "run-1") as desk:
        message = Incoming(topic=TOPIC + verb, payload=payload, retained=False)
        desk.accept(message, lambda _topic, event, _correlation: sent.append(event))
        deadline = time.monotonic() + 5.0
        while not sent and time.monotonic() < deadline:
            time.sleep(0.001)
    return sent


def check(events: list[Event], gallery: Gallery) -> Any:
    """Check an answer and the gallery, and return the answer's data."""
    assert len(events) == 1
    encoded = encode(events[0])
    assert b"\n" not in encoded
    data = events[0].data
    assert data.error is None or (is_visible(data.error) and len(data.error) < 1_000)
    assert data.error is None or "internal error" not in data.error
    for person in gallery.identities():
        assert person.name is None or is_visible(person.name)
    return data


def command(**changes: Any) -> bytes:
    values = {"transaction": str(uuid.uuid4()), "issued": rfc3339(time.time()), "identity_id": "1"}
    return json.dumps(values | changes).encode()


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(VERBS), st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3))
def test_fields_of_any_value(people: Gallery, tmp_path: Path, verb: str, changes: dict[str, Any]) -> None:
    check(answer(people, tmp_path, verb, command(**changes)), people)


@pytest.mark.parametrize("name", ["[/red]", "{{ states }}", "<script>", "李"])
def test_names_that_are_markup_are_names(people: Gallery, tmp_path: Path, name: str) -> None:
    data = check(answer(people, tmp_path, "name", command(name=name)), people)
    assert (data.status, people.get(1).name) == ("ok", name)


@pytest.mark.parametrize(
    "name", ["", " ", "\x1b[2J", "a\nb", "\u202e", "\u200b", "\u3164", "12", "p-abcdefghijkl", "a" * 129,
             "a" * 400_000]
)  # fmt: skip
def test_names_have_the_rules_of_the_command_line(people: Gallery, tmp_path: Path, name: str) -> None:
    data = check(answer(people, tmp_path, "name", command(name=name)), people)
    assert data.status == "error"
    assert people.get(1).name == "Ada"


@pytest.mark.parametrize(
    "who", ["9" * 40, "9" * 5_000, "-1", "0", "\x00", "\ud800", "²", "a" * 100_000, "1.0", "*"]
)
@pytest.mark.parametrize("verb", ["name", "forget", "merge"])
def test_nobody_is_known_by_any_text(people: Gallery, tmp_path: Path, verb: str, who: str) -> None:
    more = {"name": "Bob"} if verb == "name" else {"absorbed_id": "2"} if verb == "merge" else {}
    data = check(answer(people, tmp_path, verb, command(identity_id=who, **more)), people)
    assert data.status == "error"
    assert len(people) == 2


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[" * 100_000, b"null", b"5", b'"x"', b"[]", b'{"a": 1e999}', b"9" * 5_000]
)
def test_payloads_that_are_no_commands(people: Gallery, tmp_path: Path, payload: bytes) -> None:
    assert check(answer(people, tmp_path, "name", payload), people).status == "error"
