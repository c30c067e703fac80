"""Real runs that are recorded: the same decisions in another process; nothing is left of who is forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.agent.daemon import Agent
from edge_agent.core.config import Settings
from edge_agent.offline.demo.street import render
from edge_agent.offline.synthetic.street import Street
from edge_agent.record.recorder import FOLDER, recordings


def record(folder: Path, sources: dict[str, Path], detector: str, most: int, **changes: object) -> Agent:
    """Run the agent on files, with a recording; stop after some outcomes."""
    settings = Settings.model_validate(
        {
            "state_dir": folder / "state",
            "sources": [{"url": str(path), "id": name} for name, path in sources.items()],
            "detector": {"kind": detector},
            "record": {"enabled": True},
            **changes,
        }
    )
    agent, stop, seen = Agent(settings), threading.Event(), []
    agent.add_observer(lambda outcome: (seen.append(outcome), stop.set() if len(seen) > most else None)[0])
    agent.run(stop)
    return agent


def replay(*arguments: object, seed: str = "7") -> dict[str, object]:
    """Replay in another process, in which texts have other hashes."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "replay", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_vtest_is_decided_again_bit_for_bit(tmp_path: Path, vtest_video: Path, yolox_onnx: Path) -> None:
    record(tmp_path, {"street": vtest_video}, f"yolox:{yolox_onnx}", 320)
    state, other = tmp_path / "state", ("--set", "identify.threshold-=0.1", "--set", "identify.margin=0")
    found = replay("--state", state, *other)
    assert found["recording"]["decisions"] > 10  # type: ignore[index]
    assert found["repeated"]["identical"]  # type: ignore[index]
    assert replay("--state", state, seed="8")["repeated"] == found["repeated"]


@pytest.mark.slow
def test_the_demo_street_is_decided_again_bit_for_bit(tmp_path: Path, yolox_onnx: Path) -> None:
    scene = render(Street(3, people=4, seconds=24.0, fps=8.0), tmp_path)
    sources = {video.camera: video.video for video in scene.videos}
    record(tmp_path, sources, f"yolox:{yolox_onnx}", 10_000, gallery={"keep_crops": 4})
    found = replay("--state", tmp_path / "state")
    assert found["recording"]["decisions"] > 10  # type: ignore[index]
    assert found["repeated"] == {
        "identical": True,
        "first_difference": None,
        "decisions": found["recording"]["decisions"],  # type: ignore[index]
        "not_repeated": 0,
    }
    other = replay("--state", tmp_path / "state", "--model", "colour-stripes")
    assert len(other["runs"]) == 1  # type: ignore[arg-type]
    forget_all(tmp_path / "state")
    record(tmp_path, sources, f"yolox:{yolox_onnx}", 10)  # without gallery.keep_crops
    left = b"".join(file.read_bytes() for file in (tmp_path / "state" / FOLDER).iterdir())
    assert b"\xff\xd8\xff\xe0" not in left


def forget_all(state: Path) -> None:
    """The command erases everybody from the recording, too: pictures, embeddings, ids."""
    path = recordings(state / FOLDER)[0]
    before = path.read_bytes()
    pictures = before.count(b"\xff\xd8\xff\xe0")
    listed = command("gallery", "list", "--state", state, "--json")
    ids = [one["id"].encode() for one in json.loads(listed)]
    assert pictures > 10
    assert ids
    assert all(one in before for one in ids)
    command("gallery", "forget", "--all", "--yes", "--state", state)
    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert not any(one in left for one in ids)
    assert left.count(b"\xff\xd8\xff\xe0") < pictures / 4, "of tracks without an identity, some stay"
    found = replay("--state", state)
    assert found["recording"]["erased"] == len(ids)  # type: ignore[index]


def command(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
