"""Rendered person crops with the boxes of a detector, and data sets of them in Market-1501 layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import pi
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.manifest import write_atomic, write_error
from edge_agent.offline.dataset import Split
from edge_agent.offline.synthetic.camera import (
    USUAL,
    Camera,
    Spread,
    backdrop,
    camera,
    daylight,
    expose,
    transmit,
)
from edge_agent.offline.synthetic.identity import Identity, identity
from edge_agent.offline.synthetic.person import Sprite, overlap, render_person
from edge_agent.offline.synthetic.pose import random_pose
from edge_agent.offline.synthetic.tubes import Light

GENERATOR_VERSION = "4"
"""Raised whenever the same seed gives other pictures."""

_FIRST_PASSER_BY = 1_000_000_000  # first seed of people who only hide others; data sets use lower seeds

_Scene = NDArray[np.float32]
_Box = tuple[float, float, float, float]


def _turn(view: Camera, rng: np.random.Generator) -> float:
    if rng.random() < 0.35:
        return float(rng.uniform(-pi, pi))
    return float(rng.choice(view.headings) + rng.normal(0, 0.35))


def _paste(scene: _Scene, sprite: Sprite, x: float, y: float, shade: float = 1.0) -> None:
    """Blend `sprite` into `scene` with its upper left corner at `(x, y)`."""
    if (parts := overlap(scene.shape, (round(x), round(y)), sprite.image.shape)) is not None:
        area, piece = scene[parts[0]], sprite.image[parts[1]].astype(np.float32)
        alpha = piece[..., 3:] / 255
        area *= 1 - alpha
        area += piece[..., :3] * (alpha * np.float32(shade))


def _shadow(scene: _Scene, light: Light, foot: tuple[float, float], person: float) -> None:
    """Draw the shadow of a person at `foot` on the ground."""
    strength = 0.75 * (1 - light.ambient)
    mask = np.zeros(scene.shape[:2], np.float32)
    reach = min(1.2, 0.6 / max(light.up, 0.3)) * person
    tip = (
        int(foot[0] - np.sign(light.right) * min(1.0, abs(light.right)) * reach),
        int(foot[1] + light.near * 0.25 * reach),
    )
    cv2.line(mask, (int(foot[0]), int(foot[1] - 0.01 * person)), tip, strength, max(1, int(0.17 * person)))
    cv2.ellipse(
        mask, (int(foot[0]), int(foot[1])), (int(0.16 * person), int(0.035 * person) + 1), 0, 0, 360, 0.4, -1
    )
    size = max(3, int(0.03 * person) * 2 + 1)
    scene *= 1 - cv2.blur(mask, (size, size))[..., None]


_stranger = lru_cache(maxsize=400)(identity)


def _passer_by(view: Camera, light: Light, rng: np.random.Generator, height: float) -> Sprite:
    person = _stranger(_FIRST_PASSER_BY + int(rng.integers(400)))
    return render_person(person, random_pose(rng, _turn(view, rng), view.elevation), height, light)


def _object_colour(rng: np.random.Generator) -> list[float]:
    colour: list[float] = np.clip(rng.uniform(20, 220) + rng.normal(0, 25, 3), 5, 250).tolist()
    return colour


def _clutter(scene: _Scene, rng: np.random.Generator) -> None:
    """Draw a post, sign, bench or car behind the person."""
    rows, columns = scene.shape[:2]
    x, y = int(rng.integers(-columns // 3, columns)), int(rng.integers(0, rows))
    shape = int(rng.integers(3))
    colour = _object_colour(rng)
    if shape == 0:
        end = x + int(rng.normal(0, 6)), rows
        cv2.line(scene, (x, 0), end, colour, max(2, int(columns * rng.uniform(0.03, 0.12))))
    elif shape == 1:
        corner = x + int(columns * rng.uniform(0.2, 0.6)), y + int(rows * rng.uniform(0.1, 0.5))
        cv2.rectangle(scene, (x, y), corner, colour, -1)
    else:
        axes = int(columns * rng.uniform(0.2, 0.6)), int(rows * rng.uniform(0.05, 0.2))
        cv2.ellipse(scene, (x, y), axes, 0, 0, 360, colour, -1)


def _cover(scene: _Scene, rng: np.random.Generator) -> None:
    """Draw an object in front of the person: a post, a low wall or car, or a sign at one side."""
    rows, columns = scene.shape[:2]
    colour = _object_colour(rng)
    shape = int(rng.integers(3))
    if shape == 0:
        x = int(rng.uniform(0.1, 0.9) * columns)
        cv2.line(scene, (x, 0), (x, rows), colour, max(2, int(columns * rng.uniform(0.06, 0.16))))
    elif shape == 1:
        cv2.rectangle(scene, (0, int(rows * rng.uniform(0.6, 0.92))), (columns, rows), colour, -1)
    else:
        at_left = rng.random() < 0.5
        wide = int(columns * rng.uniform(0.12, 0.4))
        y = int(rows * rng.uniform(0.1, 0.6))
        corner = wide if at_left else columns, y + int(rows * rng.uniform(0.2, 0.6))
        cv2.rectangle(scene, (0 if at_left else columns - wide, y), corner, colour, -1)


def _cut_box(sprite: Sprite, rng: np.random.Generator) -> _Box:
    """A detector's box, xyxy in pixels of the sprite: tight or of fixed aspect, jittered, sometimes cut."""
    high, wide = sprite.image.shape[:2]
    x0, y0, x1, y1 = 0.0, 0.0, float(wide), float(high)
    if rng.random() < 0.5:
        half = 0.5 * high * float(rng.uniform(0.34, 0.52))
        middle = 0.5 * (sprite.foot[0] + wide / 2)
        x0, x1 = middle - half, middle + half
    grow = rng.normal(0.03, 0.05, 4) * high * np.array([0.7, 1, 0.7, 1])
    x0, y0, x1, y1 = x0 - grow[0], y0 - grow[1], x1 + grow[2], y1 + grow[3]
    if rng.random() < 0.1:
        y1 -= float(rng.uniform(0.08, 0.4)) * high
    elif rng.random() < 0.04:
        y0 += float(rng.uniform(0.05, 0.18)) * high
    return x0, y0, max(x1, x0 + 0.2 * high), max(y1, y0 + 0.4 * high)


def _compose(person: Identity, view: Camera, light: Light, rng: np.random.Generator, height: float) -> _Scene:
    """The scene in the box at drawing resolution, float32 BGR under neutral light."""
    sprite = render_person(person, random_pose(rng, _turn(view, rng), view.elevation), height, light)
    x0, y0, x1, y1 = _cut_box(sprite, rng)
    scene = backdrop(view, rng, max(8, round(y1 - y0)), max(4, round(x1 - x0)), height)
    if rng.random() < 0.3:
        _clutter(scene, rng)
    if rng.random() < 0.25:
        other = _passer_by(view, light, rng, height * float(rng.uniform(0.55, 1.0)))
        x = float(rng.uniform(-0.6, 0.8)) * scene.shape[1]
        _paste(scene, other, x, sprite.foot[1] - y0 - len(other.image) - 0.1 * height, 0.9)
    _shadow(scene, light, (sprite.foot[0] - x0, sprite.foot[1] - y0), height)
    _paste(scene, sprite, -x0, -y0)
    if rng.random() < 0.12:
        other = _passer_by(view, light, rng, height * float(rng.uniform(1.0, 1.3)))
        side = -0.75 if rng.random() < 0.5 else 0.55
        x = (side + float(rng.uniform(-0.2, 0.2))) * scene.shape[1]
        _paste(scene, other, x, float(rng.uniform(0.0, 0.35)) * height)
    elif rng.random() < 0.1:
        _cover(scene, rng)
    return scene


def _uneven(scene: _Scene, rng: np.random.Generator) -> None:
    """Vary the light over the picture: a slope, and sometimes the edge of a shadow."""
    rows, columns = scene.shape[:2]
    across = np.linspace(-1, 1, columns, dtype=np.float32)[None]
    down = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    factor = 1 + across * np.float32(rng.normal(0, 0.07)) + down * np.float32(rng.normal(0, 0.07))
    if rng.random() < 0.12:
        edge = down + across * np.float32(rng.normal(0, 0.8))
        factor *= 1 - np.float32(rng.uniform(0.15, 0.5)) / (
            1 + np.exp(np.clip(-(edge - np.float32(rng.normal(0, 0.6))) * 12, -30, 30))
        )
    scene *= factor[..., None]


def render_crop(
    person: Identity,
    view: Camera,
    rng: np.random.Generator,
    size: tuple[int, int] | None = (256, 128),
    hour: float | None = None,
) -> NDArray[np.uint8]:
    """Return one crop of `person` from camera `view`, `(rows, columns, 3)` uint8 BGR.

    `rng` determines pose, box, occlusion and all other differences between crops, and the `hour` (8..18) when
    that is None. `size` is `(rows, columns)`; None keeps the resolution of the camera.
    """
    light = daylight(view, float(rng.uniform(8, 18)) if hour is None else hour)
    seen = float(np.exp(rng.uniform(np.log(view.heights[0]), np.log(view.heights[1]))))
    drawn = float(np.clip(1.5 * seen, 96, 256))
    scene = _compose(person, view, light.light, rng, drawn)
    _uneven(scene, rng)
    picture = expose(scene, view, light.tint, float(np.exp(rng.normal(0, 0.08))))
    scale = seen / drawn
    native = (max(6, round(scene.shape[1] * scale)), max(12, round(scene.shape[0] * scale)))
    picture = cv2.resize(picture, native, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    crop = transmit(picture, view, rng)
    if size is None:
        return crop
    return np.asarray(cv2.resize(crop, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


@dataclass(frozen=True, slots=True)
class DatasetCounts:
    """Identities and images per split of a data set."""

    train_identities: int
    test_identities: int
    train_images: int
    gallery_images: int
    query_images: int


@dataclass(frozen=True, slots=True)
class _Job:
    """One identity to render, for a worker process."""

    folder: Path
    seed: int
    person: int
    cameras: int
    crops: int
    test: bool
    size: tuple[int, int] | None
    spread: Spread


def _render_identity(job: _Job) -> tuple[int, int]:
    """Write all crops of one identity; return the numbers of images in its main split and in `query`."""
    rng = np.random.default_rng([job.seed, 0x10B, job.person])
    person_rng = np.random.default_rng([job.seed, 0x9E50, job.person])
    person = identity(int(person_rng.integers(_FIRST_PASSER_BY)))
    count = min(job.cameras, max(2, int(rng.integers(2, 7))), job.crops)
    places = sorted(int(place) + 1 for place in rng.choice(job.cameras, count, replace=False))
    hours = {place: float(rng.uniform(8, 18)) for place in places}
    first = {place: int(rng.integers(1, 90_000)) for place in places}
    main = Split.GALLERY if job.test else Split.TRAIN
    images = queries = 0
    seen: set[int] = set()
    for number in range(job.crops):
        place = places[number % count]
        view = camera(int(np.random.default_rng([job.seed, 0xCA3E, place]).integers(2**31)), job.spread)
        crop = render_crop(person, view, rng, job.size, hours[place])
        frame = first[place] + 5 * (number // count)
        query = job.test and count > 1 and place not in seen and job.crops >= 2 * count
        seen.add(place)
        split = Split.QUERY if query else main
        path = job.folder / split.folder / f"{job.person:04d}_c{place}s1_{frame:06d}_{number:02d}.jpg"
        _, encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 94])
        try:
            path.write_bytes(encoded.tobytes())
        except OSError as problem:
            raise write_error(path, problem) from problem
        queries += query
        images += not query
    return images, queries


def _check(folder: Path, identities: int, cameras: int, per_identity: int) -> None:
    if identities < 2 or cameras < 2 or per_identity < 4:
        raise InputError(
            "a data set needs at least 2 identities, 2 cameras and 4 crops per identity, "
            f"not {identities}, {cameras} and {per_identity}"
        )
    for split in Split:
        place = folder / split.folder
        if place.is_dir() and any(place.iterdir()):
            raise InputError(f"{place} is not empty: name another folder, or remove the old data set first")
        place.mkdir(parents=True, exist_ok=True)


def _run(jobs: list[_Job], workers: int) -> Iterable[tuple[int, int]]:
    if workers <= 1:
        yield from map(_render_identity, jobs)
        return
    # one OpenCV thread per worker: there is a worker for each processor
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from pool.map(_render_identity, jobs, chunksize=4)


def write_dataset(
    folder: Path,
    *,
    identities: int,
    cameras: int = 12,
    per_identity: int = 20,
    seed: int = 0,
    test_share: float = 0.2,
    size: tuple[int, int] | None = None,
    spread: Spread = USUAL,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetCounts:
    """Write a data set of rendered people in Market-1501 layout.

    Identities 1.. are for training, the last `test_share` of them for the gallery; one crop of every test
    identity and camera goes to `query`; `manifest.json` holds the arguments and counts. Each person passes 2
    to 6 of the cameras. The same arguments give the same files, for any number of workers (processes; one per
    processor when None). `size` is `(rows, columns)` of the crops; None keeps the resolution of the camera.
    `spread` says how much the cameras differ. `progress` is called with `(people done, people in all)`.

    Raises:
        InputError: a number is too small, or the folder contains a data set already.
        StorageError: a file cannot be written.
    """
    _check(folder, identities, cameras, per_identity)
    tests = min(identities - 1, max(1, round(identities * test_share)))
    jobs = [
        _Job(folder, seed, person, cameras, per_identity, person > identities - tests, size, spread)
        for person in range(1, identities + 1)
    ]
    train = gallery = query = 0
    written = _run(jobs, workers or os.cpu_count() or 1)
    for done, (job, (images, queries)) in enumerate(zip(jobs, written, strict=True), 1):
        train, gallery = (train, gallery + images) if job.test else (train + images, gallery)
        query += queries
        if progress:
            progress(done, identities)
    counts = DatasetCounts(identities - tests, tests, train, gallery, query)
    manifest = {
        "generator": "edge_agent.synthetic",
        "generator_version": GENERATOR_VERSION,
        "synthetic": True,
        "seed": seed,
        "cameras": cameras,
        "per_identity": per_identity,
        "size": size,
        "spread": asdict(spread),
        "counts": asdict(counts),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2).encode())
    return counts
