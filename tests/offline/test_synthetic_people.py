"""Rendered people, cameras and crops: the same seed gives the same picture, and it shows the person."""

from __future__ import annotations

import subprocess
import sys
from math import pi

import cv2
import numpy as np
import pytest

from edge_agent.offline.synthetic.camera import Camera, Spread, camera, daylight
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity
from edge_agent.offline.synthetic.person import Light, render_person
from edge_agent.offline.synthetic.pose import Pose, project, skeleton

DIGEST = """
import hashlib, numpy as np
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity
rng = np.random.default_rng(5)
crops = [render_crop(identity(n), camera(n % 2), rng, (128, 64)) for n in range(4)]
print(hashlib.sha256(b"".join(crop.tobytes() for crop in crops)).hexdigest())
"""


def stripes(crop: np.ndarray) -> np.ndarray:
    """Six stripes of a hue-saturation histogram: the simplest descriptor of clothes."""
    hsv = cv2.cvtColor(cv2.resize(crop, (64, 128)), cv2.COLOR_BGR2HSV)[:, 12:52]
    parts = [
        cv2.calcHist([band], [0, 1], None, [8, 4], [0, 180, 0, 256]).ravel()
        for band in np.split(hsv[:126], 6)
    ]
    vector = np.sqrt(np.concatenate(parts))
    return vector / np.linalg.norm(vector)


def test_the_same_seed_is_the_same_person_and_another_seed_another():
    assert identity(7) == identity(7)
    assert len({(p.top, p.bottom, p.head) for p in map(identity, range(50))}) == 50


def test_crops_are_the_same_bytes_in_every_process():
    digests = {
        subprocess.run([sys.executable, "-c", DIGEST], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("turn", [0.0, pi / 2, pi, -pi / 2])
@pytest.mark.parametrize("height", [40, 230])
def test_a_sprite_has_the_requested_height_and_its_foot_point(turn: float, height: int):
    sprite = render_person(identity(3), Pose(turn, 0.0, elevation=0.0), height)
    rows, columns = sprite.image.shape[:2]
    assert 0.9 * height <= rows <= 1.15 * height
    assert 0.1 * height <= columns <= 0.75 * height
    assert 0 <= sprite.foot[0] <= columns
    assert rows - 0.06 * height <= sprite.foot[1] <= rows + 0.02 * height
    assert 0.3 < (sprite.image[..., 3] > 127).mean() < 0.95


def test_front_and_back_of_a_person_with_a_face_differ():
    front, back = (render_person(identity(3), Pose(turn, 1.0), 150).image for turn in (0.0, pi))
    head = slice(0, 20)
    assert (
        abs(
            front[head, :, 2][front[head, :, 3] > 200].mean()
            - back[head, :, 2][back[head, :, 3] > 200].mean()
        )
        > 8
    )


def test_the_lit_side_is_the_brighter_one():
    left, right = (
        render_person(identity(3), Pose(0.0, 1.0, stride=0.0), 150, Light(side, 0.3, 0.3, 0.4)).image
        for side in (-1.0, 1.0)
    )
    middle = left.shape[1] // 2

    def excess(image: np.ndarray) -> float:
        shown = image[..., 3] > 200
        grey = image[..., :3].mean(axis=2)
        return float(grey[:, :middle][shown[:, :middle]].mean() - grey[:, middle:][shown[:, middle:]].mean())

    assert excess(left) > excess(right) + 10


def test_one_foot_is_always_on_the_ground():
    for phase in np.linspace(0, 2 * pi, 16):
        bones = skeleton(identity(1).body, Pose(0.0, float(phase)))
        soles = [
            min(ankle[2] - 0.039, toe[2] - 0.014) for ankle, toe in zip(bones.ankles, bones.toes, strict=True)
        ]
        assert min(soles) == pytest.approx(0, abs=1e-9)
        assert bones.head[2] > bones.neck[2] > bones.pelvis[2] > max(knee[2] for knee in bones.knees) - 0.05


def test_a_person_facing_the_camera_shows_the_left_hand_on_the_right():
    bones = skeleton(identity(1).body, Pose(0.0, 0.0))
    assert project(bones.shoulders[0], 0.0, 0.2)[0] > 0 > project(bones.shoulders[1], 0.0, 0.2)[0]
    assert project(np.array([0.0, 1.0, 0.0]), pi / 2, 0.0)[0] == pytest.approx(1.0)


def test_cameras_differ_and_repeat():
    assert camera(4) == camera(4)
    views = [camera(number) for number in range(40)]
    assert len({view.ground for view in views}) >= 5
    assert all(40 <= view.heights[0] < view.heights[1] <= 290 for view in views)


def test_without_a_spread_of_colours_all_cameras_have_neutral_ones():
    views = [camera(number, Spread(colours=0.0)) for number in range(20)]
    assert {view.gain for view in views} == {(1.0, 1.0, 1.0)}
    assert {(view.gamma, view.saturation, view.lift, view.contrast) for view in views} == {
        (1.0, 1.0, 0.0, 0.0)
    }


def test_a_spread_changes_neither_place_nor_view():
    usual = [camera(number) for number in range(20)]
    wide = [camera(number, Spread(colours=1.6)) for number in range(20)]
    for one, other in zip(usual, wide, strict=True):
        assert (one.ground, one.wall, one.headings, one.heights) == (
            other.ground, other.wall, other.headings, other.heights,
        )  # fmt: skip
        assert one.gain != other.gain
    spreads = [np.log([view.gain for view in views]).std() for views in (usual, wide)]
    assert spreads[1] == pytest.approx(1.6 * spreads[0])


def test_people_can_be_as_small_as_asked_for():
    lowest = [camera(number, Spread(smallest=24.0)).heights[0] for number in range(40)]
    assert 24 <= min(lowest) < 32


def test_a_camera_without_faults_is_sharp():
    view = camera(3, Spread(faults=0.0))
    assert (view.blur, view.noise, view.sharpen) == (0.0, 0.0, 0.0)
    assert view.quality[0] >= 95


def test_morning_light_comes_from_elsewhere_than_afternoon_light_except_indoors():
    outdoors = next(view for view in map(camera, range(40)) if not view.indoor)
    indoors = next(view for view in map(camera, range(40)) if view.indoor)
    assert daylight(outdoors, 9).light != daylight(outdoors, 16).light
    assert daylight(indoors, 9) == daylight(indoors, 16)


@pytest.mark.parametrize("size", [(128, 64), (256, 128)])
def test_a_crop_has_the_size_asked_for(size: tuple[int, int]):
    crop = render_crop(identity(1), camera(1), np.random.default_rng(0), size)
    assert crop.shape == (*size, 3)
    assert crop.dtype == np.uint8
    assert crop.std() > 4


def test_without_a_size_crops_keep_the_resolution_of_their_camera():
    rng = np.random.default_rng(0)
    heights = [len(render_crop(identity(n), camera(n), rng, None)) for n in range(10)]
    assert min(heights) < 90
    assert max(heights) > 110
    assert all(12 <= height <= 400 for height in heights)


def test_clothes_distinguish_people_better_than_chance():
    """A colour descriptor finds the same person nearer than another one, most of the time, on one camera."""
    rng, view = np.random.default_rng(1), _clear(camera(2))
    people = [
        [stripes(render_crop(identity(n), view, rng, (128, 64), 12.0)) for _ in range(3)] for n in range(12)
    ]
    wins = total = 0
    for n, own in enumerate(people):
        for m, other in enumerate(people):
            if n != m:
                wins += float(own[0] @ own[1]) > float(own[0] @ other[2])
                total += 1
    assert wins / total > 0.7


def _clear(view: Camera) -> Camera:
    from dataclasses import replace

    return replace(view, blur=0.3, noise=2.0, heights=(100.0, 180.0))
