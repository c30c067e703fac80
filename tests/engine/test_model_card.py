"""The manifest next to a network, written by anyone: a profile, or an error of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.text import visible
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.profiles import profile_of


def profile(folder: Path, card: str) -> str | None:
    """Return the profile of a network with this card, or None and check the error."""
    (folder / "net.json").write_text(card)
    try:
        return profile_of(folder / "net.onnx").name
    except EdgeAgentError as problem:
        message = visible(str(problem))
    assert "net" in message
    return None


@pytest.mark.parametrize(
    "card",
    ["[]", "null", "5", "{", '{"preprocess": 5}', '{"preprocess": []}', '{"preprocess": "\\u001b[31m"}',
     "[" * 50_000],
)  # fmt: skip
def test_cards_that_state_no_profile(tmp_path: Path, card: str) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert profile(tmp_path, card) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
    )
)
def test_any_card(tmp_path: Path, value: Any) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    found = profile(tmp_path, json.dumps({"preprocess": value}))
    assert found is None or found in PROFILES
    profile(tmp_path, json.dumps(value))
