"""A recording with uneven times gives about the events of the same frames at a fixed rate."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.agent.test_agent import run
from tests.source.recordings import write_mkv

FRAMES = 80


@pytest.fixture(scope="module")
def pictures(vtest_video: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(vtest_video))
    return [capture.read()[1] for _ in range(FRAMES)]


def identify(tmp_path: Path, video: Path, detector: Path) -> tuple[list[dict[str, object]], list[str], str]:
    """Identity events, MOT rows and the log."""
    out, mot = tmp_path / f"{video.stem}.jsonl", tmp_path / f"{video.stem}.txt"
    done = run(
        "run", "--source", video, "--detector", f"yolox:{detector}", "--broker", "none",
        "--state", tmp_path / f"state-{video.stem}", "--events", out, "--mot", mot,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in out.read_text().splitlines()]
    return [e for e in events if ".identity." in e["type"]], mot.read_text().splitlines(), done.stderr


@pytest.mark.slow
def test_a_browser_recording_gives_the_events_of_one_at_a_fixed_rate(tmp_path, pictures, yolox_onnx):
    steps = np.cumsum([0, *np.random.default_rng(1).integers(20, 47, FRAMES - 1)]).tolist()
    uneven = write_mkv(tmp_path / "uneven.mkv", steps, pictures)
    fixed = write_mkv(tmp_path / "fixed.mkv", [33 * n for n in range(FRAMES)], pictures)
    found, rows, log = identify(tmp_path, uneven, yolox_onnx)
    expected, expected_rows, _ = identify(tmp_path, fixed, yolox_onnx)
    assert "file_ended_early" not in log
    assert "file_without_frame_rate" not in log
    assert found
    assert abs(len(found) - len(expected)) <= 2
    people = len({row.split(",")[1] for row in rows})
    assert abs(people - len({row.split(",")[1] for row in expected_rows})) <= 1
    assert {int(row.split(",")[0]) for row in rows} <= set(range(1, FRAMES + 1))
