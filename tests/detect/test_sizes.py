"""Advice for cameras whose pictures are too small for the detector, or for the quality gate."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.config import Settings
from edge_agent.core.structures import Frame
from edge_agent.detect.hog import HogDetector
from edge_agent.detect.opening import open_detection
from tests import tiny_detectors


def advice(
    settings: Settings, height: int, width: int, cameras: tuple[str, ...] = ("gate",)
) -> dict[str, str]:
    with ExitStack() as stack:
        detection = open_detection(settings, stack, cameras=dict.fromkeys(cameras))
        for camera in (*cameras, *cameras):
            detection.detect(Frame(camera, 1, 0.0, np.full((height, width, 3), 90, np.uint8)))
        return dict(detection.small())


@pytest.mark.parametrize(("factor", "smallest"), [(1.0, 80.6), (2.0, 40.3), (0.5, 161.3)])
def test_the_smallest_person_that_hog_finds(factor: float, smallest: float) -> None:
    assert HogDetector(factor).smallest == pytest.approx(smallest, abs=0.05)


def test_hog_in_small_pictures(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    found = advice(settings, 288, 384, ("gate", "yard"))
    assert set(found) == {"gate", "yard"}
    assert found["gate"] == (
        "the pictures of gate are small (384 x 288): hog finds people from a height of 81 pixels on, "
        "which is 28% of their height; edge-agent model fetch yolox-nano, detector hog:2, or larger pictures"
    )
    assert advice(settings, 576, 768) == {}
    larger = Settings.model_validate({"detector": {"kind": "hog:2"}, "state_dir": tmp_path})
    assert advice(larger, 288, 384) == {}


def test_a_network_in_pictures_that_are_too_small_for_the_gate(tmp_path: Path) -> None:
    file = tiny_detectors.write(tmp_path / "net.onnx", tiny_detectors.yolox())
    settings = Settings.model_validate({"detector": {"kind": f"yolox:{file}"}, "quality": {"min_height": 48}})
    assert "people need a height of 48 pixels (quality.min_height)" in advice(settings, 144, 176)["gate"]
    assert advice(settings, 288, 384) == {}
