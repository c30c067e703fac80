"""Person detection: HOG, YOLOX, boxes of an upstream detector, or none; and the motion gate.

Scores are comparable within one detector only, so each detector has its own levels (`ScoreLevels`).
"""

from __future__ import annotations

from edge_agent.detect.base import Detector
from edge_agent.detect.opening import Detection, add_motion_gate, open_detection, open_detector

__all__ = ["Detection", "Detector", "add_motion_gate", "open_detection", "open_detector"]
