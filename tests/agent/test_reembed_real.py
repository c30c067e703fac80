"""Real people and networks: a gallery of OSNet moves to another network, and knows the same people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app

PEOPLE = 10
CONFIG = """
state_dir = "{state}"
[gallery]
keep_crops = 8
[engine]
model = "{model}"
preprocess = "{preprocess}"
[[sources]]
id = "yard"
url = "crops:{crops}"
once = true
fps = 10
settle_seconds = 0.0
"""


def run(folder: Path, name: str, model: Path, preprocess: str, crops: Path) -> dict[tuple[str, int], str]:
    """Play the visits; return the last identity of each track."""
    config, events = folder / f"{name}.toml", folder / f"{name}.jsonl"
    # A folder of its own, since the agent remembers which crops it has processed.
    own = folder / f"crops-{name}"
    shutil.copytree(crops, own)
    config.write_text(CONFIG.format(state=folder / "state", model=model, preprocess=preprocess, crops=own))
    for record in (folder / "state").glob("crops-*.sqlite*"):
        record.unlink()
    done = CliRunner().invoke(app, ["run", "--config", str(config), "--events", str(events)])
    assert done.exit_code == 0, done.output
    found: dict[tuple[str, int], str] = {}
    for line in events.read_text().splitlines():
        data: dict[str, Any] = json.loads(line)["data"]
        if data.get("identity_id") is not None and "track_id" in data:
            found[data["camera"], data["track_id"]] = data["identity_id"]
    return found


def gallery(*words: object) -> Any:
    done = CliRunner().invoke(app, ["gallery", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_same_people_are_recognised_by_another_network(
    tmp_path: Path, osnet_onnx: Path, omz_onnx: Path, pets_market: Path
) -> None:
    crops = tmp_path / "all"
    crops.mkdir()
    for part in ("bounding_box_test", "bounding_box_train", "query"):
        for picture in (pets_market / part).glob("*.jpg"):
            shutil.copy(picture, crops)
    state = tmp_path / "state"
    first = run(tmp_path, "first", osnet_onnx, "imagenet", crops)
    people = gallery("list", "--state", state)
    assert all(one["exemplars"] for one in people)
    moved = gallery("reembed", "--model", omz_onnx, "--preprocess", "openvino-raw", "--state", state)
    assert moved["people"] == len(people)
    assert moved["unseen"] == []
    second = run(tmp_path, "second", omz_onnx, "openvino-raw", crops)
    known = {one["id"] for one in people}
    recognised = [track for track in first if second.get(track) in known]
    same = [track for track in recognised if second[track] == first[track]]
    assert len(first) >= PEOPLE
    assert len(same) >= 0.8 * len(first)
    assert gallery("reembed", "--confirm", "--yes", "--state", state)["space"] == moved["space"]
