"""Constant-velocity Kalman filter of boxes, for many tracks at a time.

The state of a track has four axes (cx, cy, w, h). Each axis has a position, a velocity per second, and the
covariance of the two. Neither motion nor measurement couples the axes, so a state is `(5, T, 4)` float64 with
the rows `POSITION`, `VELOCITY`, `VARIANCE`, `COVARIANCE`, `VELOCITY_VARIANCE`.

Lengths are scaled by the height of the person, time is in seconds. A person of 1.75 m who walks 1.4 m/s moves
0.8 heights a second; starting, stopping and turning take about 1 m/s2, 0.6 heights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
States = NDArray[np.float64]

POSITION, VELOCITY, VARIANCE, COVARIANCE, VELOCITY_VARIANCE = range(5)

_ACCELERATION = 0.8
_START_VELOCITY = np.array([1.0, 1.0, 0.1, 0.1])
"""Standard deviation of the velocity of a new track."""
_MEASURED = np.array(0.05)
"""Standard deviation of a detector's box edge, in heights (ByteTrack uses 1/20)."""
_PROCESS_NOISE = _ACCELERATION**2 * np.array([1.0, 1.0, 0.05, 0.05])
"""White-noise acceleration by axis: the size changes far more slowly than the position."""
_ONE = np.array(1.0)  # NumPy is faster with an array than with a number
_SMALLEST = np.array([-np.inf, -np.inf, 1.0, 1.0])
"""Least position of each axis: width and height are at least a pixel."""
_FROM_CORNERS = np.array([[0.5, 0, -1, 0], [0, 0.5, 0, -1], [0.5, 0, 1, 0], [0, 0.5, 0, 1]])
"""From corners x1, y1, x2, y2 to cx, cy, w, h."""
_TO_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])


def initial_states(boxes: Boxes) -> States:
    """States `(5, N, 4)` of new tracks at `(N, 4)` boxes xyxy."""
    height = np.maximum(boxes[:, 3:] - boxes[:, 1:2], 1.0).astype(np.float64)
    states = np.zeros((5, len(boxes), 4))
    states[POSITION] = boxes @ _FROM_CORNERS
    states[VARIANCE] = (_MEASURED * height) ** 2
    states[VELOCITY_VARIANCE] = (_START_VELOCITY * height) ** 2
    return states


def predict(states: States, dt: float | NDArray[np.float64]) -> Boxes:
    """Move states `(5, T, 4)` forward, in place.

    Args:
        states: of the last frame.
        dt: seconds, the same for all or `(T, 1)`.

    Returns:
        `(T, 4)` float32 xyxy, the expected boxes.
    """
    position, covariance, variances = states[POSITION], states[COVARIANCE], states[VARIANCE:]
    moved, drift = dt * states[VELOCITY :: VELOCITY_VARIANCE - VELOCITY]
    position += moved
    clamped = np.maximum(position, _SMALLEST)
    square = dt * dt
    weights = np.array([square * square / 4, square * dt / 2, square]).reshape(3, -1, 1)
    growth = weights * (_PROCESS_NOISE * np.square(clamped[:, 3:]))  # of each row of `variances`
    of_variance, of_covariance, _ = growth
    of_variance += dt * (covariance + covariance + drift)
    of_covariance += drift
    variances += growth
    boxes: Boxes = clamped.dot(_TO_CORNERS).astype(np.float32)
    return boxes


def correct(states: States, rows: Sequence[int], boxes: Boxes) -> None:
    """Correct N of the states `(5, T, 4)`, those at `rows`, by measured boxes `(N, 4)` xyxy, in place."""
    every, at = rows == list(range(states.shape[1])), np.array(rows, np.intp)
    chosen = states if every else states.take(at, axis=1)
    # Of each axis both at a time: position and velocity, and what couples them to the measured position.
    moving, coupled = chosen[: VELOCITY + 1], chosen[VARIANCE : COVARIANCE + 1]
    measured = boxes.astype(np.float64).dot(_FROM_CORNERS)
    total = np.square(_MEASURED * np.maximum(measured[:, 3:], _ONE)) + chosen[VARIANCE]
    measured -= chosen[POSITION]
    gains = coupled / total
    moving += gains * measured
    velocity_variance = chosen[VELOCITY_VARIANCE]
    velocity_variance -= gains[1] * chosen[COVARIANCE]
    coupled *= _ONE - gains[0]
    if not every:
        states[:, at] = chosen
