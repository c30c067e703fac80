"""The alert that two people of the site are probably one but have two names."""

from __future__ import annotations

from edge_agent.agent.fleet_link import conflict_alert
from edge_agent.core.alerts import AlertKind
from edge_agent.fleet.records import Pair


def test_the_alert_names_both_and_what_to_do_and_its_end_does_too() -> None:
    pair = Pair("p-000000000001", "p-000000000002")
    begin, end = (conflict_alert(pair, active=active, time=1e9) for active in (True, False))
    assert begin.detail == end.detail == AlertKind.FLEET_CONFLICT == "fleet_conflict"
    for alert, active in ((begin, True), (end, False)):
        data = alert.data
        assert data.active is active
        assert data.details == {"one_id": pair.one, "other_id": pair.other}
    assert "gallery merge p-000000000001 p-000000000002" in begin.data.message
    assert "gallery reject p-000000000001 p-000000000002" in begin.data.message
