"""`edge-agent engines`, on a machine that need not have a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.host import this_host
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.plans.store import PlanStore
from tests.engine.test_engine_plans import INT8, put, record


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    """Plans of this device, as if built by a GPU that is not here."""
    return PlanStore(tmp_path / "engines")


def run(tmp_path: Path, *arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, ["engines", *arguments, "--state", str(tmp_path)])
    assert (result.exit_code == 1) == fails, result.output
    return result.output


def run_json(tmp_path: Path, *arguments: str, fails: bool = False) -> dict[str, Any]:
    reported: dict[str, Any] = json.loads(run(tmp_path, *arguments, "--json", fails=fails))
    return reported


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    for command in ("list", "verify"):
        assert f"no plans were built in {tmp_path / 'engines'}; name another" in run(tmp_path, command)
    assert run_json(tmp_path, "prune", "--yes") == {"plans": [], "calibrations": [], "others": 0, "bytes": 0}
    assert not list(tmp_path.iterdir())


def test_list_and_verify(tmp_path: Path, store: PlanStore) -> None:
    good, bad = put(store), put(store, INT8)
    ActiveEngine(store.folder).switch(record("reid fp16", f"{good.key}.plan"))
    shown = run(tmp_path, "list")
    assert "active: reid fp16 (tensorrt, fp16)" in shown
    assert good.key[:12] in shown
    assert "current" in shown
    reported = run_json(tmp_path, "list")
    assert reported["active"]["current"]["name"] == "reid fp16"
    assert {plan["key"] for plan in reported["plans"]} == {good.key, bad.key}
    # Without a GPU they cannot be checked; with one, these were built for an Orin.
    verdict = "unchecked" if reported["not_compared"] else "stale"
    assert {plan["verdict"] for plan in reported["plans"]} == {verdict}
    assert f"2 {verdict}" in run(tmp_path, "verify")

    (store.folder / f"{bad.key}.plan").write_bytes(b"plaN")
    assert "sha256 differs" in run(tmp_path, "verify", fails=True)
    found = {plan["key"]: plan["verdict"] for plan in run_json(tmp_path, "verify", fails=True)["plans"]}
    assert found == {good.key: verdict, bad.key: "damaged"}
    assert not (store.folder / "quarantine").exists(), "looking changes nothing"


def test_plans_of_another_device_are_distinguished(tmp_path: Path, store: PlanStore) -> None:
    put(PlanStore(store.folder, host="f" * 16 if this_host() != "f" * 16 else "e" * 16))
    assert "another device" in run(tmp_path, "verify", fails=True)


def test_rollback_and_prune(tmp_path: Path, store: PlanStore) -> None:
    old, new = put(store), put(store, INT8)
    ActiveEngine(store.folder).switch(record("old", f"{old.key}.plan"))
    ActiveEngine(store.folder).switch(record("new", f"{new.key}.plan"))
    reported = run_json(tmp_path, "rollback", "--yes")
    assert (reported["current"]["name"], reported["previous"]["name"]) == ("old", "new")
    assert "active: new" in run(tmp_path, "rollback", "--yes")
    gone = run_json(tmp_path, "prune", "--yes", "--unused-days", "0")
    assert gone == {"plans": [], "calibrations": [], "others": 0, "bytes": 0}
