"""What a device reports of its fleet: alert, telemetry, metrics, status and `info`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from edge_agent.agent.fleet_watch import AWAY_S, FleetWatch, fleet_telemetry
from edge_agent.cli.status import fleet_text
from edge_agent.core.alerts import AlertKind
from edge_agent.core.config import Settings
from edge_agent.core.events import AlertData, Event
from edge_agent.core.fleet_state import FleetLink, FleetState
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver.metrics import telemetry_families

HERE = FleetState("plant-7", "store.example:5432")


class Watched:
    def __init__(self) -> None:
        self.time = 0.0
        self.events: list[Event] = []
        self.notes: dict[str, str] = {}
        self.watch = FleetWatch(
            self.events.append, self.notes.__setitem__, lambda: 1.7e9, now=lambda: self.time
        )

    def check(self, link: FleetLink, problem: str = "", *, after_s: float = 0.0) -> list[str]:
        self.time += after_s
        self.watch.check(replace(HERE, link=link, problem=problem, pending=3))
        return [str(one.data.message) for one in self.events if isinstance(one.data, AlertData)]


def test_a_store_that_is_away_for_long_is_an_alert_until_it_is_back() -> None:
    at = Watched()
    assert at.check("connecting") == []
    assert at.check("connected") == []
    assert at.check("waiting", "no answer in 5 s") == []
    assert at.check("waiting", "no answer in 5 s", after_s=AWAY_S - 1) == []
    (text,) = at.check("waiting", "no answer in 5 s", after_s=1)
    assert text == "no answer in 5 s"
    assert at.notes["fleet"] == text
    assert len(at.check("connecting", after_s=60)) == 1
    assert at.check("connected", after_s=60)[1:] == ["the fleet's store store.example:5432 is reached again"]
    assert at.notes["fleet"] == ""
    raised, ended = (one.data for one in at.events)
    assert isinstance(raised, AlertData)
    assert isinstance(ended, AlertData)
    assert (raised.kind, raised.active, ended.active) == (AlertKind.FLEET_DOWN, True, False)
    assert raised.details == {
        "site": "plant-7",
        "store": "store.example:5432",
        "link": "waiting",
        "reason": "no answer in 5 s",
        "pending": 3,
    }


def test_a_short_interruption_is_no_alert() -> None:
    at = Watched()
    for _ in range(10):
        assert at.check("waiting", "restarts", after_s=AWAY_S - 1) == []
        assert at.check("connected", after_s=1) == []


def test_a_refusal_is_an_alert_at_once() -> None:
    at = Watched()
    assert at.check("refused", "this device left the site") == ["this device left the site"]
    assert len(at.check("refused", "this device left the site", after_s=AWAY_S)) == 1
    assert len(at.check("stopped")) == 1


def test_telemetry_has_every_figure() -> None:
    state = replace(HERE, link="waiting", retry_s=8.0, mark=5, version=9, pending=2, asked=7, known=4, late=1)
    given = fleet_telemetry(state)
    assert given == {
        "fleet_link": "waiting",
        "fleet_down": True,
        "fleet_retry_s": 8.0,
        "fleet_lag": 4,
        "fleet_pending": 2,
        "fleet_sent": 0,
        "fleet_received": 0,
        "fleet_asked": 7,
        "fleet_known": 4,
        "fleet_late": 1,
        "fleet_unasked": 0,
        "fleet_conflicts": None,
    }
    assert set(given) == {name for name in TelemetryData.__dataclass_fields__ if name.startswith("fleet_")}
    telemetry = TelemetryData(uptime_s=1.0, state="online", **given)
    samples = {sample.name: sample.value for one in telemetry_families(telemetry) for sample in one.samples}
    wanted = {"down": 1.0, "retry_seconds": 8.0, "lag": 4.0, "pending": 2.0}
    wanted |= {"asked_total": 7.0, "known_total": 4.0, "late_total": 1.0, "sent_total": 0.0}
    assert (
        wanted.items() <= {name.removeprefix("edge_agent_fleet_"): v for name, v in samples.items()}.items()
    )
    assert replace(HERE, mark=None, version=9).lag is None
    assert json.loads(json.dumps(state.document())) == asdict(state) | {"lag": 4}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (replace(HERE, link="connected"), "connected; 0 change(s) to send"),
        (
            replace(HERE, link="waiting", retry_s=30.0, pending=2),
            "waiting, tried again in 30 s; 2 change(s) to send",
        ),
        (
            replace(HERE, link="connected", mark=1, version=3, asked=9, known=4, late=1, conflicts=2),
            "connected; 0 change(s) to send; 2 to apply; 4 of 9 strangers known, 1 late; 2 conflict(s)",
        ),
    ],
)
def test_the_state_as_text(state: FleetState, text: str) -> None:
    assert fleet_text(state.document()) == text


def test_info_states_where_people_go() -> None:
    fleet = {"enabled": True, "store": "postgresql://g@127.0.0.1/f"}
    settings = Settings.model_validate({"fleet": fleet, "mqtt": {"site": "plant-7", "device": "b"}})
    assert settings.fleet.destination(settings.mqtt.site) == "plant-7@127.0.0.1:5432"
    assert Settings().fleet.destination("plant-7") == "off"
