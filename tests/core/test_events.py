"""Messages: encoding, decoding, schema."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge_agent.core.codec import data_schema, decode, encode, envelope_schema, from_wire
from edge_agent.core.errors import InputError
from edge_agent.core.events import (
    DATA_TYPES,
    CommandResultData,
    Event,
    GapData,
    IdentityData,
    NumberRange,
    StatusData,
    alert_event,
    camera_status_event,
    new_event,
)
from edge_agent.core.presence import PersonData, PresentData, PresentPerson
from edge_agent.core.structures import DecisionKind, SourceState, SourceStatus
from edge_agent.core.timing import parse_time, rfc3339
from tests.deliver.deliver_fixtures import INFO, decision, identity, telemetry


def stamped(event: Event, seq: int | None = None) -> Event:
    return replace(event, source="edge/v1/lab/jx01", session="s-1", seq=seq)


def one_of_each() -> list[Event]:
    now = 1_700_000_000.25
    return [
        stamped(identity(), 7),
        stamped(identity(kind=DecisionKind.CORRECTED, corrects="x", previous="p-2", reason="contested"), 8),
        stamped(
            identity(
                kind=DecisionKind.UNKNOWN,
                identity=None,
                number=None,
                score=None,
                runner_up=None,
                threshold=None,
            ),
            9,
        ),
        stamped(new_event("gap", GapData("rows", (NumberRange(3, 9),), 7), time=now), 10),
        stamped(
            alert_event("camera_lost", "camera cam1 is gone", time=now, details={"tries": 3, "why": None}), 11
        ),
        stamped(
            new_event("person", PersonData("merged", "p-1", absorbed_id="p-2"), detail="merged", time=now), 12
        ),
        stamped(
            new_event(
                "present",
                PresentData(12, (PresentPerson("cam1", 1, "p-1", 1, None, now, 0.8, "e-1"),)),
                time=now,
            )
        ),
        stamped(new_event("status", StatusData("degraded", now, "one camera is away", "0.1.0"), time=now)),
        stamped(new_event("info", INFO, time=now)),
        stamped(new_event("telemetry", telemetry(), time=now)),
        stamped(camera_status_event(SourceStatus("cam1", SourceState.RECONNECTING, "no frame for 3 s", now))),
        stamped(
            new_event("command-result", CommandResultData("name", "t1", "ok", data={"a": [1, {}]}), time=now)
        ),
    ]


def test_every_kind_has_a_sample() -> None:
    assert {event.kind for event in one_of_each()} == set(DATA_TYPES)


@pytest.mark.parametrize("event", one_of_each(), ids=lambda event: event.type)
def test_message_fits_its_schema_and_comes_back_the_same(event: Event) -> None:
    payload = encode(event)
    Draft202012Validator(
        envelope_schema(event.kind), format_checker=Draft202012Validator.FORMAT_CHECKER
    ).validate(json.loads(payload))
    read = decode(payload)
    assert encode(read) == payload
    assert read.kind == event.kind
    assert read.detail == event.detail
    assert read.seq == event.seq


@pytest.mark.parametrize("kind", DATA_TYPES)
def test_schemas_are_schemas_and_describe_every_key(kind: str) -> None:
    schema = data_schema(kind)
    Draft202012Validator.check_schema(schema)
    assert schema["description"]
    assert all("description" in entry for entry in schema["properties"].values())


def test_identity_event_contains_the_decision() -> None:
    made = decision(score=0.81234567, runner_up=0.41)
    event = identity(3, id=made.id, score=0.81234567, runner_up=0.41)
    data = event.data
    assert event.id == made.id
    assert event.type == "edge.identity.matched.v1"
    assert data.score == 0.8123
    assert data.margin == 0.4023
    assert data.bbox == (0.1, 0.1, 0.2, 0.5)
    assert data.simulated is False
    assert data.device.temperature_c == 51.5
    text = encode(event).decode()
    assert "vector" not in text
    assert "crop" not in text


def test_margin_needs_two_scores() -> None:
    assert identity(runner_up=None).data.margin is None


def test_unknown_keys_are_passed_over_and_missing_ones_are_named() -> None:
    found = json.loads(encode(one_of_each()[0]))
    found["later"] = 1
    found["data"]["later"] = {"deep": True}
    found["data"]["model"]["later"] = []
    assert isinstance(decode(json.dumps(found)).data, IdentityData)
    del found["data"]["camera"]
    with pytest.raises(InputError, match="camera"):
        decode(json.dumps(found))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data", "track_id"), "one"),
        (("data", "track_id"), True),
        (("data", "score"), "high"),
        (("data", "bbox"), [0.1, 0.2]),
        (("data", "kind"), "guessed"),
        (("data", "frame_time"), 12.5),
        (("data", "frame_time"), "2024-05-01T10:00:00"),
        (("data", "device"), []),
        (("data", "latency_ms"), {"embed": "slow"}),
        (("id",), 5),
        (("type",), "edge.rumour.v1"),
        (("type",), None),
        (("time",), "yesterday"),
    ],
)
def test_wrong_values_are_refused(path: tuple[str, ...], value: Any) -> None:
    found = json.loads(encode(one_of_each()[0]))
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(InputError):
        decode(json.dumps(found))


@given(
    st.binary(max_size=200)
    | st.text(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(json.dumps)
)
def test_anything_else_is_refused_politely(payload: bytes | str) -> None:
    with pytest.raises(InputError):
        decode(payload)


def test_deeply_nested_json_is_refused_politely() -> None:
    with pytest.raises(InputError):
        decode("[" * 100_000)


@given(st.floats(min_value=0, max_value=4e9))
def test_times_survive_to_the_millisecond(seconds: float) -> None:
    text = rfc3339(seconds)
    assert text.endswith("Z")
    assert len(text) == 24
    assert abs(parse_time(text) - seconds) <= 0.000501


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(new_event("telemetry", replace(telemetry(), hottest_c=float("nan")), time=0.0))


def test_unknown_object_is_refused() -> None:
    with pytest.raises(InputError, match="expected an object"):
        from_wire(StatusData, [])


def test_importing_events_loads_nothing_heavy() -> None:
    code = (
        "import sys, edge_agent.core.events; "
        "print([m for m in ('pydantic', 'paho', 'cv2', 'structlog', 'scipy') if m in sys.modules])"
    )
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert reported.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999Z",
     "2024-01-01T00:00:00"],
)  # fmt: skip
def test_a_time_that_cannot_be_written_again_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"outside|offset"):
        parse_time(text)


@given(st.datetimes(timezones=st.timezones()))
def test_a_time_that_is_read_can_be_written(moment: datetime) -> None:
    try:
        seconds = parse_time(moment.isoformat())
    except ValueError:
        return
    assert abs(parse_time(rfc3339(seconds)) - seconds) <= 0.002
