"""Rendered people on a few cameras in Market-1501 layout, for the timetable.

Differs from a training set (`edge_agent.offline.synthetic.crops.write_dataset`): everybody passes every
camera, a visit has one hour and mostly one walking direction, and each camera has a colour response that the
generator does not have: a matrix that mixes the channels, and a tone curve for each of them. So nothing of
the project was fitted to these cameras.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.synthetic.camera import Camera, camera
from edge_agent.offline.synthetic.crops import GENERATOR_VERSION, render_crop
from edge_agent.offline.synthetic.identity import identity

__all__ = ["CameraResponse", "render_set"]

_FIRST_PERSON = 1_500_000_000
"""First seed of people: neither those of training sets nor those of streets."""
_LEAST_HEIGHT = 64.0
"""Pixels: the quality gate refuses people below 48."""
_MIX, _BEND = 0.07, 0.12


@dataclass(frozen=True, slots=True)
class CameraResponse:
    """What a camera makes of colours: `(3, 3)` matrix, rows sum to about 1, and exponents of the channels."""

    matrix: NDArray[np.float32]
    exponents: NDArray[np.float32]

    @staticmethod
    def drawn(seed: int) -> CameraResponse:
        """Return the response of this seed."""
        rng = np.random.default_rng([seed, 0xC0])
        mix = rng.normal(0, _MIX, (3, 3))
        mix -= mix.mean(axis=1, keepdims=True)
        gain = np.exp(rng.normal(0, 0.06, 3))
        matrix = (np.eye(3) + mix) * gain[:, None]
        return CameraResponse(matrix.astype(np.float32), np.exp(rng.normal(0, _BEND, 3)).astype(np.float32))

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the picture `(h, w, 3)` in the camera's colours."""
        mixed = np.clip(picture.astype(np.float32) / 255 @ self.matrix.T, 0, 1)
        return np.asarray(np.power(mixed, self.exponents) * 255 + 0.5, np.uint8)


@dataclass(frozen=True, slots=True)
class _Job:
    folder: Path
    seed: int
    person: int
    cameras: int
    crops: int


def _view(seed: int, place: int) -> Camera:
    view = camera(int(np.random.default_rng([seed, 0xCA11, place]).integers(2**31)))
    low = max(view.heights[0], _LEAST_HEIGHT)
    return replace(view, heights=(low, max(view.heights[1], 1.5 * low)))


def _render(job: _Job) -> None:
    who = identity(_FIRST_PERSON + 100_000 * job.seed + job.person)
    for place in range(1, job.cameras + 1):
        rng = np.random.default_rng([job.seed, job.person, place, 0x5E7])
        response, view = CameraResponse.drawn(1000 * job.seed + place), _view(job.seed, place)
        hour = float(rng.uniform(8, 18))
        heading = float(rng.choice(view.headings) + rng.normal(0, 0.3))
        towards = replace(view, headings=(heading, heading, heading + float(rng.normal(0, 0.5))))
        for number in range(job.crops):
            crop = response(render_crop(who, towards, rng, None, hour))
            name = f"{job.person:04d}_c{place}s1_{5 * number + 1:06d}_{number:02d}.jpg"
            _, packed = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 92])
            (job.folder / "bounding_box_test" / name).write_bytes(packed.tobytes())


def render_set(
    folder: Path, *, people: int, cameras: int = 3, crops: int = 10, seed: int = 0, workers: int | None = None
) -> Path:
    """Render a set into `folder` unless it is there; return the folder."""
    facts = {
        "people": people, "cameras": cameras, "crops": crops, "seed": seed, "generator": GENERATOR_VERSION,
    }  # fmt: skip
    done = folder / "rendered.json"
    if done.exists() and {**json.loads(done.read_bytes()), "generator": 0} == {**facts, "generator": 0}:
        return folder
    (folder / "bounding_box_test").mkdir(parents=True, exist_ok=True)
    jobs = [_Job(folder, seed, person, cameras, crops) for person in range(1, people + 1)]
    with ProcessPoolExecutor(
        workers or os.cpu_count(),
        mp_context=get_context("spawn"),
        initializer=cv2.setNumThreads,
        initargs=(1,),
    ) as pool:
        for _ in pool.map(_render, jobs, chunksize=2):
            pass
    done.write_text(json.dumps(facts))
    return folder
