"""Data sets of rendered people in Market-1501 layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.manifest import write_atomic
from edge_agent.offline.dataset import Split
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import FIRST_PASSER_BY, GENERATOR_VERSION, render_crop
from edge_agent.offline.synthetic.identity import identity

__all__ = ["DatasetCounts", "write_dataset"]


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


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, *key])


def _camera_seed(seed: int, number: int) -> int:
    return int(_rng(seed, 0xCA3E, number).integers(2**31))


def _person_seed(seed: int, number: int) -> int:
    return int(_rng(seed, 0x9E50, number).integers(FIRST_PASSER_BY))


def _render_identity(job: _Job) -> tuple[int, int]:
    """Write all crops of one identity; return the numbers of images in its main split and in `query`."""
    rng = _rng(job.seed, 0x10B, job.person)
    person = identity(_person_seed(job.seed, job.person))
    count = min(job.cameras, max(2, int(rng.integers(2, 7))), job.crops)
    places = sorted(int(place) + 1 for place in rng.choice(job.cameras, count, replace=False))
    hours = {place: float(rng.uniform(8, 18)) for place in places}
    first = {place: int(rng.integers(1, 90_000)) for place in places}
    main = Split.GALLERY if job.test else Split.TRAIN
    images = queries = 0
    seen: set[int] = set()
    for number in range(job.crops):
        place = places[number % count]
        crop = render_crop(person, camera(_camera_seed(job.seed, place)), rng, job.size, hours[place])
        frame = first[place] + 5 * (number // count)
        query = job.test and count > 1 and place not in seen and job.crops >= 2 * count
        seen.add(place)
        split = Split.QUERY if query else main
        path = job.folder / split.folder / f"{job.person:04d}_c{place}s1_{frame:06d}_{number:02d}.jpg"
        if not cv2.imwrite(str(path), crop, [cv2.IMWRITE_JPEG_QUALITY, 94]):
            raise StorageError(f"{path}: cannot be written; check free space and permissions")
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
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetCounts:
    """Write a data set of rendered people in Market-1501 layout.

    Identities 1.. are for training, the last `test_share` of them for the gallery; one crop of every test
    identity and camera goes to `query`. The same arguments give the same files, for any number of workers.

    Args:
        folder: receives `bounding_box_train`, `bounding_box_test`, `query` and `manifest.json`.
        identities: number of people.
        cameras: number of cameras; each person passes 2 to 6 of them.
        per_identity: crops of each person.
        seed: determines everything.
        test_share: share of the people for the test splits; at least one person on either side.
        size: `(rows, columns)` of the crops; None keeps the resolution of the camera.
        workers: processes; one per processor when None.
        progress: called with `(people done, people in all)`.

    Raises:
        InputError: a number is too small, or the folder contains a data set already.
        StorageError: a file cannot be written.
    """
    _check(folder, identities, cameras, per_identity)
    tests = min(identities - 1, max(1, round(identities * test_share)))
    jobs = [
        _Job(folder, seed, person, cameras, per_identity, person > identities - tests, size)
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
        "counts": asdict(counts),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2).encode())
    return counts
