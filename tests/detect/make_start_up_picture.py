"""Writes edge_agent/detect/start_up.jpg: rendered people of several heights.

python -m tests.detect.make_start_up_picture edge_agent/detect/start_up.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity

SEED = 23
"""Of the first 30 the one in which YOLOX nano finds people in most cells."""
SIDE = 416
HEIGHTS = (330, 280, 240)


def picture() -> np.ndarray:
    shade = np.linspace(0, 1, SIDE)[:, None, None]
    scene = np.asarray([150, 140, 130]) * (1 - shade) + np.asarray([95, 100, 105]) * shade
    image = (scene * np.ones((1, SIDE, 1))).astype(np.uint8)
    random, left = np.random.default_rng(SEED), 6
    for number, high in enumerate(HEIGHTS):
        wide, top = int(high * 0.42), SIDE - high - 10 - (HEIGHTS[0] - high) // 3
        person = render_crop(identity(SEED * 100 + number), camera(SEED), random, (high, wide))
        image[top : top + high, left : left + wide] = person
        left += wide + 4
    return image


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(
        cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    )
