"""The quality gate: refusals, and the direction of each factor of the grade."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.config import QualitySettings
from edge_agent.core.errors import ConfigError
from edge_agent.core.loading import load
from edge_agent.embed.quality import BLURRED, QualityGate, blocking, sharpness

GATE = QualityGate(QualitySettings())
TEXTURE = np.random.default_rng(3).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def assess_crops(gate, image, boxes, scores):
    """Grade as the embedder does: by the boxes, then by the sharpness of the crops that are left."""
    ((quality, reasons, inside),) = gate.grade([(boxes, scores, (image.shape[1], image.shape[0]))])
    reasons = list(reasons)
    for row, (x1, y1, x2, y2) in enumerate(inside):
        if not reasons[row]:
            factors, blurred = gate.sharp(np.array([sharpness(image[y1:y2, x1:x2])], np.float32))
            quality[row] *= factors[0]
            reasons[row] = BLURRED if blurred[0] else ""
    return quality, tuple(reasons), inside


def assess(*boxes, scores=None, gate=GATE, image=TEXTURE):
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    return assess_crops(gate, image, array, np.asarray(scores or [0.9] * len(array), np.float32))[:2]


def test_nothing_in_nothing_out():
    quality, reasons = assess()
    assert (quality.shape, quality.dtype, reasons) == ((0,), np.float32, ())


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((100, 100, 160, 260), ""),
        ((np.nan, 100, 160, 260), "invalid"),
        ((100, 100, np.inf, 260), "invalid"),
        ((160, 100, 100, 260), "invalid"),
        ((100, 260, 160, 100), "invalid"),
        ((100, 100, 100, 260), "invalid"),
        ((700, 100, 760, 260), "off-image"),
        ((-90, 100, -20, 260), "off-image"),
        ((100, -200, 160, -10), "off-image"),
        ((100, 481, 160, 600), "off-image"),
        ((-50, 100, 30, 300), "truncated"),
        ((100, 380, 180, 600), "truncated"),
        ((100, 100, 110, 122), "small"),
        ((100, 100, 107, 260), "small"),
        ((100, 100, 400, 200), "aspect"),
        ((100, 50, 120, 250), "aspect"),
        ((100.2, 100.2, 100.4, 260), "off-image"),
    ],
)
def test_refusals(box, reason):
    quality, reasons = assess(box)
    assert reasons == (reason,)
    assert (quality[0] > 0) == (reason == "")


def test_uniform_crop_is_blurred():
    flat = np.full((480, 640, 3), 90, np.uint8)
    assert assess((100, 100, 160, 260), image=flat)[1] == ("blurred",)


def test_the_nearer_person_covers_the_farther_one():
    near, far = (100, 120, 160, 300), (104, 100, 164, 260)
    quality, reasons = assess(near, far)
    assert reasons == ("", "covered")
    assert quality[0] > 0
    assert assess(far, near)[1] == ("covered", "")


def test_a_weak_box_covers_no_person():
    near, far = (100, 120, 160, 300), (104, 100, 164, 260)
    assert assess(near, far, scores=[0.2, 0.9])[1] == ("", "")


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ([(100, 100, 130, 170)], [(100, 100, 160, 300)]),  # size
        ([(100, 100, 160, 260), (130, 110, 190, 290)], [(100, 100, 160, 260), (150, 110, 210, 290)]),  # cover
        ([(-20, 100, 60, 300)], [(20, 100, 100, 300)]),  # truncation
        ([(0, 100, 80, 300)], [(20, 100, 100, 300)]),  # border
    ],
    ids=["size", "cover", "truncation", "border"],
)
def test_grade_grows_with_what_is_good(worse, better):
    assert 0 < assess(*worse)[0][0] < assess(*better)[0][0] <= 1


def test_grade_falls_with_blur():
    box = (100, 100, 180, 300)
    grades = [
        assess(
            box,
            image=cv2.GaussianBlur(TEXTURE, (0, 0), sigma) if sigma else TEXTURE,
            gate=QualityGate(QualitySettings(min_sharpness=0)),
        )[0][0]
        for sigma in (0, 3, 6, 12)
    ]
    assert grades == sorted(grades, reverse=True)
    assert grades[0] > 2 * grades[-1]


def test_sharpness_does_not_depend_on_contrast_or_size():
    small = cv2.GaussianBlur(TEXTURE[:96, :40], (0, 0), 1.5)
    dim = (small.astype(np.float32) * 0.4 + 60).astype(np.uint8)
    large = np.asarray(cv2.resize(small, (160, 384), interpolation=cv2.INTER_CUBIC))
    base, of_dim, of_large = map(sharpness, [small, dim, large])
    assert of_dim == pytest.approx(base, rel=0.2)
    assert of_large == pytest.approx(base, rel=0.35)


@pytest.mark.parametrize("crop", [TEXTURE[:60, :30], TEXTURE[100:190, 200:240], TEXTURE[5:15, 7:95]])
def test_sharpness_by_hand(crop):
    grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY).astype(np.float64)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    assert sharpness(crop) == pytest.approx(laplacian.std() / (grey.std() + 5.0), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 2), (3, 1)])
def test_a_crop_without_inner_pixels_is_not_sharp(shape):
    assert sharpness(TEXTURE[: shape[0], : shape[1]]) == 0.0


SCENE = sum(cv2.GaussianBlur(TEXTURE, (0, 0), sigma).astype(np.float32) - 127 for sigma in (1, 3, 12, 40))
SCENE = np.clip(127 + 1.5 * SCENE, 0, 255).astype(np.uint8)
"""Detail of all sizes, as a picture of a camera has."""


def as_jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def grey_of(image):
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


@pytest.mark.parametrize("corner", [(0, 0), (8, 8), (3, 5), (101, 64), (7, 1)])
@pytest.mark.parametrize("size", [(60, 24), (90, 40), (200, 80)])
def test_blocks_are_found_wherever_the_grid_begins(corner, size):
    (y, x), (h, w) = corner, size
    images = (SCENE, as_jpeg(SCENE, 6), as_jpeg(SCENE, 2))
    blocks = [blocking(grey_of(image[y : y + h, x : x + w])) for image in images]
    assert blocks[0] < 0.36 < blocks[1] < blocks[2]


def test_the_grade_falls_with_compression_and_refuses_nothing():
    pictures = [SCENE, *(as_jpeg(SCENE, quality) for quality in (60, 6, 1))]
    box = (101, 103, 141, 193)
    graded = [assess(box, image=image) for image in pictures]
    grades = [float(quality[0]) for quality, _ in graded]
    assert all(reasons == ("",) for _, reasons in graded)
    assert grades[0] == grades[1] > 1.5 * grades[2] > grades[3] > 0


@pytest.mark.parametrize("way", [0, 1])
def test_stripes_count_little(way):
    stripes = np.where(np.arange(640) % 16 < 8, 60, 0)[: SCENE.shape[way]].astype(np.uint8)
    striped = cv2.add(SCENE // 2, np.broadcast_to(np.expand_dims(stripes, (1 - way, 2)), SCENE.shape).copy())
    assert blocking(grey_of(striped[10:100, 10:50])) < 0.45


@pytest.mark.parametrize("image", [np.zeros((90, 40), np.uint8), TEXTURE[:90, :40, 0], TEXTURE[:17, :17, 0]])
def test_neither_nothing_nor_noise_has_blocks(image):
    assert blocking(image) < 0.36


@pytest.mark.parametrize("shape", [(1, 1), (16, 90), (90, 16), (3, 200)])
def test_a_crop_of_one_block_shows_no_grid(shape):
    assert blocking(grey_of(as_jpeg(SCENE, 1)[: shape[0], : shape[1]])) == 0.0


def test_boxes_are_cut_to_whole_pixels_inside_the_picture():
    boxes = np.asarray([[-5, -5, 10.4, 10.6], [600, 400, 900, 900], [np.nan, 0, 5, 5]], np.float32)
    inside = assess_crops(GATE, TEXTURE, boxes, np.ones(3, np.float32))[2]
    assert inside.tolist() == [[0, 0, 10, 11], [600, 400, 640, 480], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_height": 0}, "min_height: Input should be greater than 0"),
        ({"min_aspect": 6.0}, "min_aspect must be below max_aspect"),
        ({"max_overlap": 1.5}, "max_overlap: Input should be less than or equal to 1"),
        ({"max_truncation": -0.1}, "max_truncation: Input should be greater than or equal to 0"),
        ({"min_sharpness": -1.0}, "min_sharpness: Input should be greater than or equal to 0"),
    ],
)
def test_impossible_limits(limits, message):
    with pytest.raises(ConfigError, match=message):
        load(Path(os.devnull), {"quality": limits})


def test_boxes_alone_give_the_grade_of_sharp_crops_and_the_refusals_by_geometry() -> None:
    random = np.random.default_rng(8)
    for _ in range(20):
        corner = random.uniform(-60, 600, (12, 2))
        boxes = np.concatenate([corner, corner + random.uniform(5, 260, (12, 2))], axis=1).astype(np.float32)
        scores = random.uniform(0.1, 1.0, 12).astype(np.float32)
        sharp = QualityGate(QualitySettings(min_sharpness=0.0))
        quality, reasons, _ = assess_crops(sharp, TEXTURE, boxes, scores)
        nobody, (somebody, *_) = sharp.grade([(boxes[:0], scores[:0], (64, 48)), (boxes, scores, (640, 480))])
        assert not len(nobody.quality)
        np.testing.assert_array_equal(somebody == 0, [bool(reason) for reason in reasons])
        np.testing.assert_allclose(somebody, quality, rtol=1e-5)  # noise is as sharp as can be


def test_several_pictures_at_once_are_graded_as_each_alone() -> None:
    """To the last bit."""
    random, gate = np.random.default_rng(9), QualityGate(QualitySettings())
    pictures, words = [], set()
    for count in [*range(9)] * 15:
        corner = random.uniform(-60, 600, (count, 2))
        boxes = np.concatenate(
            [corner, corner + random.uniform(-9, 1, (count, 1)) + random.uniform(5, 260, (count, 2))], axis=1
        )
        boxes[random.random(count) < 0.03, 2] = random.choice([np.nan, np.inf, -np.inf])
        size = [(640, 480), (320, 240), (601, 333)][count % 3]
        pictures.append((boxes.astype(np.float32), random.uniform(0.1, 1.0, count).astype(np.float32), size))
    alone = [gate.grade([picture])[0] for picture in pictures]
    for one, other in zip(alone, gate.grade(pictures), strict=True):
        assert one.reasons == other.reasons
        assert one.quality.dtype == other.quality.dtype == np.float32
        np.testing.assert_array_equal(one.quality, other.quality)
        np.testing.assert_array_equal(one.inside, other.inside)
        words.update(one.reasons)
    assert words == {"", "invalid", "off-image", "truncated", "small", "aspect", "covered"}
