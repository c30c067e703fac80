"""Augmentation of training pictures.

TAO's part is mirror, pad, crop and random erasing (Zhong et al. 2020). The photometric part is configured in
the spec's `edge_agent` section: it simulates cameras, and matters most for rendered pictures. All functions
work on one `(h, w, 3)` uint8 BGR picture with its own random generator, so that a picture's augmentation
depends only on `(seed, epoch, batch, place)`. With `edge_agent.batch_cameras`, colours and faults are those
of a camera that several pictures of the batch share; each picture varies a little around them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.train.spec import DatasetSection, ExtensionSection

Image = NDArray[np.uint8]
_WITHIN_CAMERA = 0.06  # spread of the logarithm of a picture's brightness around its camera's
_WITHIN_SIZE = 0.4  # largest change of the logarithm of a person's size around that of the camera
_LUMA = np.array([0.114, 0.587, 0.299], np.float32)  # ITU-R BT.601, BGR order


class Augmentation:
    """The augmentation of one spec, at the resolution of the network."""

    def __init__(self, data: DatasetSection, own: ExtensionSection) -> None:
        self._data = data
        self._own = own
        self._padding = data.padding // own.input_pool
        self._mean = tuple(255 * value for value in reversed(data.pixel_mean))

    def __call__(
        self, image: Image, other: Image, rng: np.random.Generator, view: np.random.Generator | None = None
    ) -> Image:
        """Return an augmented copy of `image`; `other` is another picture, for occlusions.

        `view` is a fresh generator of the picture's camera; without one, each picture has its own camera.
        """
        if rng.random() < self._data.prob:
            image = image[:, ::-1]
        if self._own.zoom:
            image = _zoomed(image, self._own.zoom, rng)
        if rng.random() < self._own.occlusion_prob:
            image = _occluded(image, other, rng)
        image = self._exposed(image, rng, view)
        image = self._transmitted(image, rng, view)
        if self._padding:
            image = _padded_crop(image, self._padding, rng)
        if rng.random() < self._data.re_prob:
            image = _erased(image, self._mean, rng)
        return np.ascontiguousarray(image)

    def _exposed(self, image: Image, rng: np.random.Generator, view: np.random.Generator | None) -> Image:
        """Light and colour: slope, gain and cast per channel, contrast, saturation, gamma, grey."""
        own, draw = self._own, view or rng
        gain = np.exp(draw.uniform(-1, 1) * np.log1p(own.brightness))
        cast = np.exp(draw.uniform(-1, 1, 3) * np.log1p(own.colour_cast))
        contrast = 1 + draw.uniform(-1, 1) * own.contrast
        saturation = max(0.0, 1 + draw.uniform(-1, 1) * own.saturation)
        gamma = np.exp(draw.uniform(-1, 1) * np.log1p(own.gamma))
        if draw.random() < own.grey_prob:
            saturation = 0.0
        if view is not None:
            gain *= np.exp(rng.normal(0, _WITHIN_CAMERA))
        # one 3 x 3 matrix and one table for everything but the slope
        mix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.tile(_LUMA, (3, 1))
        matrix = (np.diag(gain * cast * contrast) @ mix).astype(np.float32)
        offset = np.full((3, 1), np.float32(image.mean()) * gain * (1 - contrast), np.float32)
        image = cv2.transform(image, np.hstack([matrix, offset]))
        if gamma != 1:
            table = (255 * (np.arange(256) / 255) ** gamma + 0.5).astype(np.uint8)
            image = cv2.LUT(image, table)
        if rng.random() < own.lighting_prob:
            image = _sloped(image, rng)
        return image

    def _transmitted(self, image: Image, rng: np.random.Generator, view: np.random.Generator | None) -> Image:
        """Faults of optics, sensor and coding: resolution, blur, noise, JPEG."""
        own, draw = self._own, view or rng
        height, width = image.shape[:2]
        if draw.random() < own.lowres_prob:
            factor = np.exp(draw.uniform(-np.log(own.lowres_factor), 0))
            if view is not None:  # near and far people of one camera
                factor = min(1.0, factor * np.exp(rng.uniform(-_WITHIN_SIZE, _WITHIN_SIZE)))
            small = (max(8, round(width * factor)), max(16, round(height * factor)))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        if draw.random() < own.blur_prob:
            image = cv2.GaussianBlur(image, (0, 0), draw.uniform(0.3, 1.5))
        if draw.random() < own.noise_prob:
            noise = rng.standard_normal(image.shape, np.float32) * np.float32(draw.uniform(1, 14))
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
        if draw.random() < own.jpeg_prob:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(draw.integers(25, 95))]
            coded = cv2.imencode(".jpg", np.ascontiguousarray(image), quality)[1]
            image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
        return image


def _zoomed(image: Image, zoom: float, rng: np.random.Generator) -> Image:
    """Move each side of the box by up to `zoom` of its length, as a detector does; replicate the border."""
    height, width = image.shape[:2]
    left, right, top, bottom = rng.uniform(-zoom, zoom, 4) * rng.random() * (width, width, height, height)
    across, down = width / (width - left - right), height / (height - top - bottom)
    move = np.array([[across, 0, -left * across], [0, down, -top * down]], np.float32)
    size, method, border = (width, height), cv2.INTER_LINEAR, cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(image, move, size, flags=method, borderMode=border), np.uint8)


def _occluded(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Cover one side or the lower part with a piece of another picture, like a person in front."""
    height, width = image.shape[:2]
    image = image.copy()
    side = rng.integers(3)
    if side == 2:
        rows = int(height * rng.uniform(0.1, 0.45))
        image[height - rows :] = other[:rows]
        return image
    columns = int(width * rng.uniform(0.1, 0.4))
    first = int(height * rng.uniform(0, 0.5))
    if side == 0:
        image[first:, :columns] = other[: height - first, width - columns :]
    else:
        image[first:, width - columns :] = other[: height - first, :columns]
    return image


def _sloped(image: Image, rng: np.random.Generator) -> Image:
    """Change the brightness linearly across the picture, or at the edge of a shadow."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if rng.random() < 0.4:
        along = np.tanh((along - np.float32(rng.uniform(-0.6, 0.6))) * np.float32(rng.uniform(3, 15)))
    slope = 1 + np.float32(rng.uniform(0.1, 0.5)) * along
    return np.asarray(np.clip(image * slope[..., None], 0, 255), np.uint8)


def _padded_crop(image: Image, padding: int, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    padded: Image = cv2.copyMakeBorder(image, *(padding,) * 4, cv2.BORDER_CONSTANT)
    top, left = rng.integers(0, 2 * padding + 1, 2)
    return padded[top : top + height, left : left + width]


def _erased(image: Image, mean: tuple[float, ...], rng: np.random.Generator) -> Image:
    """Fill a rectangle of 2..40 % of the area and sides 0.3..3.33 : 1 with the mean colour."""
    height, width = image.shape[:2]
    for _ in range(100):
        area = rng.uniform(0.02, 0.4) * height * width
        aspect = rng.uniform(0.3, 1 / 0.3)
        rows, columns = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if rows < height and columns < width:
            top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
            image = image.copy()
            image[top : top + rows, left : left + columns] = mean
            return image
    return image
