"""Drawing of a person: an articulated body of textured, shaded tubes under an orthographic camera.

The clothes are wrapped around the body, so a jacket shows its zip from the front, its print from the back,
and half of both from the side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.figure import figure
from edge_agent.offline.synthetic.identity import Identity, identity
from edge_agent.offline.synthetic.pose import Pose, project
from edge_agent.offline.synthetic.tubes import Canvas, Light, draw_tube

__all__ = ["Identity", "Light", "Sprite", "identity", "render_person"]


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn person.

    Attributes:
        image: `(h, w, 4)` uint8 BGRA, straight alpha, cut to the drawn pixels.
        foot: `(x, y)` of the ground point below the body, in pixels of `image`.
    """

    image: NDArray[np.uint8]
    foot: tuple[float, float]


def render_person(person: Identity, pose: Pose, height: float, light: Light | None = None) -> Sprite:
    """Draw `person` in `pose`.

    Args:
        person: the person.
        pose: pose and heading.
        height: pixels from sole to crown when standing upright; the sprite may be slightly higher or lower.
        light: direction of the light; a mild light from the upper left when None.

    Returns:
        The sprite, cut to the drawn pixels.
    """
    light = light or Light()
    scale, margin = height, 0.12 * height
    rows, columns = int(height * 1.1 + 2 * margin), int(height * 0.9)
    centre, ground = columns / 2, rows - margin
    canvas = np.zeros((4, rows, columns), np.float32)
    for tube in figure(person, pose):
        x0, y0, _ = project(tube.start, pose.turn, pose.elevation)
        x1, y1, _ = project(tube.end, pose.turn, pose.elevation)
        start, end = (centre + x0 * scale, ground + y0 * scale), (centre + x1 * scale, ground + y1 * scale)
        draw_tube(canvas, tube, start=start, end=end, turn=pose.turn, scale=scale, light=light)
    return _cut(canvas, centre, ground)


def _cut(canvas: Canvas, centre: float, ground: float) -> Sprite:
    drawn = canvas[3] > 0.25
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    cut = canvas[:, top:bottom, left:right]
    cut[:3] /= np.maximum(cut[3], 1e-3)
    cut[3] *= 255
    planes = np.minimum(np.maximum(cut, 0), 255).astype(np.uint8)
    return Sprite(np.ascontiguousarray(planes.transpose(1, 2, 0)), (centre - left, ground - top))
