"""The fault scenarios of tests/faults, shortened, as a slow test; run the script for the full length."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPO, mosquitto_binary


@pytest.mark.slow
@pytest.mark.timeout(850)
@pytest.mark.parametrize("scenario", ["storm", "disk", "mtls", "outage"])
def test_scenario(scenario: str) -> None:
    mosquitto_binary()
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    words = [sys.executable, str(REPO / "tests" / "faults" / "run.py"), scenario, "--seconds", "20", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=840, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    if "skipped" in found[scenario]:
        pytest.skip(found[scenario]["skipped"])
    if not found[scenario]["ok"]:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
