"""Messages are as their schemas say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge_agent.core.codec import decode, encode
from tests.deliver.deliver_fixtures import identity


@pytest.mark.parametrize("since", [None, 1_700_000_000.25])
def test_a_time_that_may_be_missing_is_written_as_a_time(since: float | None) -> None:
    event = identity()
    event = replace(event, data=replace(event.data, since=since), source="edge/v1/lab/jx01", session="s")
    written = json.loads(encode(event))["data"]["since"]
    assert written == (None if since is None else "2023-11-14T22:13:20.250Z")
    assert decode(encode(event)).data.since == since
