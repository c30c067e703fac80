"""Poses of standing and walking people, and the positions of their joints.

Body frame: x to the person's left, y forward, z up, the ground at 0, in units of the stature.
Segment lengths follow Drillis and Contini (1966) as tabulated in Winter, "Biomechanics and Motor Control of
Human Movement"; the knee and hip curves follow the normal gait cycle of Perry, "Gait Analysis" (loading
flexion of about 15 degrees, swing flexion of about 60 degrees).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, exp, pi, sin

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.identity import Body, Colour

Point = NDArray[np.float64]

_ANKLE, _KNEE, _HIP, _SHOULDER, _CHIN = 0.039, 0.285, 0.53, 0.818, 0.87
_UPPER_ARM, _FOREARM = 0.172, 0.14
_SHOULDER_HALF, _HIP_HALF = 0.104, 0.05
_PHONE, _PAPER = (30.0, 30.0, 30.0), (225.0, 225.0, 222.0)
GESTURES = ("walk", "pockets", "phone", "carry", "folded")


@dataclass(frozen=True, slots=True)
class Pose:
    """Pose of a person relative to a camera."""

    turn: float  # heading relative to the camera in radians: 0 walks towards it, pi away, pi/2 to the right
    phase: float  # point of the gait cycle, radians; at 0 the left heel strikes
    stride: float = 0.42  # swing of the hips in radians, 0 for standing, about .45 for brisk walking
    elevation: float = 0.2  # downward angle of the camera, radians
    gesture: str = "walk"  # position of the arms: `walk`, `pockets`, `phone`, `carry` or `folded`
    nod: float = 0.05  # forward tilt of the head, radians
    glance: float = 0.0  # turn of the head relative to the trunk, radians
    held: Colour | None = None  # colour of a sheet of paper or a phone in the right hand, or None


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Joints in the body frame, `(3,)` float64; index 0 of a pair is the left side."""

    pelvis: Point
    neck: Point
    head: Point
    hips: tuple[Point, Point]
    knees: tuple[Point, Point]
    ankles: tuple[Point, Point]
    toes: tuple[Point, Point]
    shoulders: tuple[Point, Point]
    elbows: tuple[Point, Point]
    wrists: tuple[Point, Point]


def random_pose(rng: np.random.Generator, turn: float, elevation: float) -> Pose:
    """Draw a likely pose of a passer-by: mostly walking, sometimes standing."""
    standing = rng.random() < 0.18
    gesture = str(rng.choice(GESTURES, p=[0.66, 0.14, 0.07, 0.08, 0.05]))
    return Pose(
        turn=turn,
        phase=float(rng.uniform(0, 2 * pi)),
        stride=float(rng.uniform(0, 0.1) if standing else np.clip(rng.normal(0.4, 0.08), 0.15, 0.6)),
        elevation=elevation,
        gesture=gesture,
        nod=float(rng.normal(0.1, 0.12)),
        glance=float(rng.normal(0, 0.3)),
        held=_PHONE if gesture == "phone" else _PAPER if rng.random() < 0.06 else None,
    )


def _bump(phase: float, centre: float, width: float) -> float:
    apart = (phase - centre + pi) % (2 * pi) - pi
    return exp(-((apart / width) ** 2))


def _down(length: float, forward: float, outward: float = 0.0) -> Point:
    """A hanging segment, swung `forward` and `outward` by these angles."""
    return length * np.array([sin(outward) * cos(forward), sin(forward), -cos(forward) * cos(outward)])


def _leg(hip: Point, phase: float, stride: float, side: int) -> tuple[Point, Point, Point]:
    """Knee, ankle and toe of the leg whose heel strikes at phase 0."""
    swing = 0.04 + stride * cos(phase)
    moving = min(stride / 0.4, 1.2)
    loading, swinging = _bump(phase, 0.3 * pi, 0.25 * pi), _bump(phase, 1.42 * pi, 0.26 * pi)
    flexion = 0.06 + moving * (0.2 * loading + 1.0 * swinging)
    shin = swing - flexion
    knee = hip + _down(_HIP - _KNEE, swing, side * 0.02)
    ankle = knee + _down(_KNEE - _ANKLE, shin, side * 0.01)
    heel_off, heel_strike = _bump(phase, 1.2 * pi, 0.25 * pi), _bump(phase, 0.0, 0.2 * pi)
    pointing = -0.75 * moving * heel_off + 0.25 * moving * heel_strike
    splay = side * 0.14
    toe = ankle + np.array([0.115 * sin(splay), 0.115 * cos(pointing), 0.115 * sin(pointing) - 0.022])
    return knee, ankle, toe


def _arm(shoulder: Point, pose: Pose, phase: float, side: int) -> tuple[Point, Point]:
    """Elbow and wrist; the arm swings against the leg of its side."""
    swing = -0.85 * pose.stride * cos(phase)
    upper, bend, outward, inward = swing, 0.22 + max(0.0, swing) * 0.9, 0.1, 0.05
    if pose.gesture == "pockets":
        upper, bend, outward, inward = -0.28 + 0.1 * swing, 0.62, 0.26, 0.32
    elif pose.gesture == "phone" and side > 0:
        upper, bend, outward, inward = 0.35, 1.85, 0.2, 0.15
    elif pose.gesture == "carry":
        upper, bend, outward, inward = 0.1 * swing, 0.1, 0.12, 0.02
    elif pose.gesture == "folded":
        upper, bend, outward, inward = 0.3, 1.25, 0.2, 0.75
    elbow = shoulder + _down(_UPPER_ARM, upper, side * outward)
    wrist = elbow + _down(_FOREARM, upper + bend, -side * inward)
    return elbow, wrist


def skeleton(body: Body, pose: Pose) -> Skeleton:
    """Return all joints, with the lower foot on the ground."""
    half_hip, half_shoulder = _HIP_HALF * body.hips, _SHOULDER_HALF * body.shoulders
    lean = body.stoop + 0.08 * pose.stride
    pelvis = np.array([0.0, 0.0, _HIP])
    twist = 0.14 * pose.stride * cos(pose.phase)
    legs = []
    for side, phase in ((1, pose.phase), (-1, pose.phase + pi)):
        hip = pelvis + np.array([side * half_hip, 0.0, 0.0])
        legs.append((hip, *_leg(hip, phase % (2 * pi), pose.stride * body.stride, side)))
    spine = _SHOULDER - _HIP
    neck = pelvis + np.array([0.0, sin(lean) * spine, cos(lean) * spine])
    arms = []
    for side, phase in ((1, pose.phase), (-1, pose.phase + pi)):
        shoulder = neck + np.array([side * half_shoulder, -side * twist * 0.3, -0.034])
        arms.append((shoulder, *_arm(shoulder, pose, phase, side)))
    tilt = lean + pose.nod
    head = neck + np.array([0.0, 0.02 + sin(tilt) * 0.1, 0.115])
    lift = np.array([0.0, 0.0, -min(min(ankle[2] - _ANKLE, toe[2] - 0.014) for _, _, ankle, toe in legs)])
    (left_leg, right_leg), (left_arm, right_arm) = legs, arms
    return Skeleton(
        pelvis + lift,
        neck + lift,
        head + lift,
        *((left + lift, right + lift) for left, right in zip(left_leg, right_leg, strict=True)),
        *((left + lift, right + lift) for left, right in zip(left_arm, right_arm, strict=True)),
    )


def project(point: Point, turn: float, elevation: float) -> tuple[float, float, float]:
    """Project a point: `(right, down, towards the camera)` in statures, the ground point at 0."""
    x, y, z = float(point[0]), float(point[1]), float(point[2])
    right = x * cos(turn) + y * sin(turn)
    near = y * cos(turn) - x * sin(turn)
    return right, near * sin(elevation) - z * cos(elevation), near * cos(elevation) + z * sin(elevation)
