"""The fault scenarios of tests/faults, shortened, as a slow test; run the script for the full length."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPO, mosquitto_binary


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", ["storm", "disk", "mtls", "outage"])
def test_scenario(scenario: str) -> None:
    mosquitto_binary()
    words = [sys.executable, str(REPO / "tests" / "faults" / "run.py"), scenario, "--seconds", "20", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=380, check=False)
    found = json.loads(done.stdout)[scenario]
    assert found["ok"], found
