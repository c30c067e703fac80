"""Training pictures: decoded once into a file, and augmented by threads while the network trains.

On a small machine, decoding JPEG in every epoch costs more than a training step of a light network. The
pictures are therefore stored as one uint8 array at the resolution of the network, and mapped into memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_agent.core.arrays import map_array
from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.files import shown
from edge_agent.core.pictures import UnreadablePicture, read_picture
from edge_agent.offline.dataset import DISTRACTOR, JUNK, Problem, Split, list_crops, numbering_notes
from edge_agent.offline.train.augment import Augmentation
from edge_agent.offline.train.spec import Spec

_NAMED = 10
"""Unreadable pictures that an error names."""


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Files of one split."""

    paths: tuple[Path, ...]  # N picture files
    identities: NDArray[np.int64]  # `(N,)` int64 person numbers of the file names
    cameras: NDArray[np.int64]  # `(N,)` int64 camera numbers
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a folder contains beside the pictures that are used.

    Attributes:
        distractors, junk: pictures of person 0000 and -1, which are no classes.
        unusable: files that are misnamed, empty, or no pictures.
        notes: what to do about the numbers, see `edge_agent.offline.dataset.numbering_notes`.
    """

    distractors: int = 0
    junk: int = 0
    unusable: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pictures:
    """A decoded split."""

    images: NDArray[np.uint8]  # `(N, h, w, 3)` uint8 BGR, mapped from a file
    labels: NDArray[np.int64]  # `(N,)` int64 in `0..classes-1`, in ascending order of the person numbers
    cameras: NDArray[np.int64]  # `(N,)` int64
    people: NDArray[np.int64]  # person number of each label
    left_out: LeftOut
    targets: NDArray[np.float32] | None = None  # `(N, D)` unit rows of a teacher, see `teacher`


class Batch(NamedTuple):
    """Augmented pictures `(B, h, w, 3)` uint8 BGR, labels `(B,)` int64, targets of a teacher `(B, D)`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32] | None = None


def read_folder(folder: Path, split: Split) -> PictureSet:
    """List the pictures of one split folder, named like `PPPP_cCsS_FFFFFF_NN.jpg`.

    Junk (`-1`) and distractors (`0000`) are no classes, and left out for training. DatasetError if the folder
    is missing or contains no usable picture.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    found, unusable = list_crops(folder, split)
    crops = [crop for crop in found if split is not Split.TRAIN or crop.pid > DISTRACTOR]
    pids = [crop.pid for crop in found]
    notes = () if split is Split.GALLERY else tuple(numbering_notes(split, pids))
    if not crops:
        listed = [f"the first, {shown(one.path.name)}, {one.reason}" for one in unusable[:1]]
        why = "; ".join((*notes, *listed)) or "it is empty"
        raise DatasetError(
            f"{folder} contains no picture of a person named like 0002_c1s1_000451_03.jpg: {why}"
        )
    return PictureSet(
        tuple(crop.path for crop in crops),
        np.array([crop.pid for crop in crops], np.int64),
        np.array([crop.camid for crop in crops], np.int64),
        LeftOut(pids.count(DISTRACTOR), pids.count(JUNK), tuple(unusable), notes),
    )


def decode(
    pictures: PictureSet,
    *,
    size: tuple[int, int],
    cache: Path,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Decode a split, or map it from the cache file of an earlier run.

    The name of the cache file contains a hash of the names, sizes and times of the files, so a changed data
    set is decoded again. Pictures are scaled as in TAO's loader: bilinear, and by area where they shrink,
    which corresponds to PIL's antialiasing. `size` is `(height, width)`; the folder `cache` is created if
    missing; `progress` is called with (done, total). InputError names the files that cannot be decoded.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"pictures-{fingerprint(pictures, size)}.npy"
    shape = (len(pictures.paths), *size, 3)
    try:
        images = map_array(target, kinds="u", shape=shape)
    except InputError:  # missing, or not whole
        _write_cache(pictures, size, target, threads, progress)
        images = map_array(target, kinds="u", shape=shape)
    people, labels = np.unique(pictures.identities, return_inverse=True)
    return Pictures(images, labels.astype(np.int64), pictures.cameras, people, pictures.left_out)


def fingerprint(pictures: PictureSet, size: tuple[int, int]) -> str:
    """Return a short hash of a size and the names, sizes and times of the files."""
    digest = hashlib.sha256(repr(size).encode())
    for path in pictures.paths:
        status = path.stat()
        digest.update(os.fsencode(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]


def _write_cache(
    pictures: PictureSet,
    size: tuple[int, int],
    target: Path,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    partial = target.with_suffix(".partial")
    shape = (len(pictures.paths), *size, 3)
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    problems: list[UnreadablePicture] = []
    with ThreadPoolExecutor(threads) as pool:
        for index, image in enumerate(pool.map(lambda path: _scaled_picture(path, size), pictures.paths)):
            if isinstance(image, UnreadablePicture):
                problems.append(image)
            else:
                array[index] = image
            if progress is not None and (index % 500 == 0 or index + 1 == shape[0]):
                progress(index + 1, shape[0])
    array.flush()
    del array
    if problems:
        partial.unlink()
        raise InputError(_unreadable(problems))
    partial.replace(target)


def _unreadable(problems: Sequence[UnreadablePicture]) -> str:
    first = "; ".join(map(str, problems[:_NAMED]))
    if len(problems) == 1:
        return f"{first}; remove it from the training pictures, or copy it again"
    more = "; ..." if len(problems) > _NAMED else ""
    return (
        f"{len(problems)} training pictures cannot be read: {first}{more}; "
        "`edge-agent dataset` lists all; remove them, or copy them again"
    )


def _scaled_picture(path: Path, size: tuple[int, int]) -> NDArray[np.uint8] | UnreadablePicture:
    """One file as `(height, width, 3)` uint8 BGR, or why it cannot be read."""
    try:
        image = read_picture(path)
    except UnreadablePicture as problem:
        return problem
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=method), np.uint8)


def identity_batches(
    labels: NDArray[np.int64], *, batch_size: int, instances: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return `(batch_size,)` int64 picture numbers of batches with `instances` pictures of each identity.

    Each identity's pictures are shuffled and divided into groups of `instances` (an identity with fewer
    pictures repeats some). Each batch takes a group of random different identities, with probabilities in
    proportion to their remaining groups, until too few identities have groups left. In an epoch a picture
    appears at most once, except for the repeats. `labels` is the `(N,)` identity of every picture,
    `batch_size` a multiple of `instances`. Seed and epoch determine all: a resumed run has the same batches.
    """
    rng = np.random.default_rng((seed, 1, epoch))
    groups = {
        int(label): _dealt(np.flatnonzero(labels == label), instances, rng) for label in np.unique(labels)
    }
    people = batch_size // instances
    batches = []
    while len(groups) >= people:
        names = np.array(sorted(groups))
        left = np.array([len(groups[name]) for name in names], float)
        chosen = rng.choice(names, people, replace=False, p=left / left.sum())
        batches.append(np.concatenate([groups[int(name)].pop() for name in chosen]))
        for name in chosen:
            if not groups[int(name)]:
                del groups[int(name)]
    return batches


def _dealt(pictures: NDArray[np.int64], instances: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """An identity's pictures in groups; an incomplete group is dropped, too few pictures are repeated."""
    if len(pictures) < instances:
        pictures = np.concatenate([pictures, rng.choice(pictures, instances - len(pictures))])
    shuffled = rng.permutation(pictures)
    whole = len(shuffled) // instances * instances
    return list(shuffled[:whole].reshape(-1, instances))


def shuffled_batches(count: int, *, batch_size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Yield all pictures in random order; a short last batch is dropped, for batch normalisation."""
    order = np.random.default_rng((seed, 1, epoch)).permutation(count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


class TrainingBatches:
    """The augmented batches of any epoch, prepared by threads while the network trains."""

    def __init__(self, pictures: Pictures, spec: Spec) -> None:
        self._pictures = pictures
        self._spec = spec
        self._augment = Augmentation(spec.dataset, spec.edge_agent)
        self._drawn: tuple[int, list[NDArray[np.int64]]] = (-1, [])

    def of_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the picture numbers of each batch; they depend only on spec, data set and epoch."""
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    def _draw(self, epoch: int) -> list[NDArray[np.int64]]:
        data, seed = self._spec.dataset, self._spec.train.seed
        if data.sampler == "softmax":
            count = len(self._pictures.labels)
            return list(shuffled_batches(count, batch_size=data.batch_size, seed=seed, epoch=epoch))
        return identity_batches(
            self._pictures.labels,
            batch_size=data.batch_size,
            instances=data.num_instances,
            seed=seed,
            epoch=epoch,
        )

    def iterate(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch in order, from number `first`; workers prepare a few ahead."""
        numbers = list(enumerate(self.of_epoch(epoch)))[first:]
        workers = min(self._spec.dataset.num_workers, os.cpu_count() or 1)
        if workers == 0:
            for step, chosen in numbers:
                yield self._prepared(epoch, step, chosen)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="augment") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for step, chosen in numbers:
                    waiting.append(pool.submit(self._prepared, epoch, step, chosen))
                    if len(waiting) > workers + 1:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _prepared(self, epoch: int, step: int, chosen: NDArray[np.int64]) -> Batch:
        images, labels, seed = self._pictures.images, self._pictures.labels[chosen], self._spec.train.seed
        out = np.empty((len(chosen), *images.shape[1:]), np.uint8)
        for place, number in enumerate(chosen):
            rng = np.random.default_rng((seed, 2, epoch, step, place))
            other = images[chosen[rng.integers(len(chosen))]]
            view = None
            if self._spec.edge_agent.batch_cameras:
                view = np.random.default_rng((seed, 3, epoch, step, self._spec.camera_of(place)))
            out[place] = self._augment(images[number], other, rng, view)
        targets = self._pictures.targets
        return Batch(out, labels, None if targets is None else targets[chosen])


def normalise(images: NDArray[np.uint8], spec: Spec, device: torch.device) -> Tensor:
    """Normalise `(N, h, w, 3)` uint8 BGR to `(N, 3, h, w)` float32 RGB on `device`: (x - mean) / deviation.

    The same as the agent's preprocess profile with these numbers (`tao` with the defaults).
    """
    writable = images if images.flags.writeable else images.copy()  # torch refuses read-only memory
    batch = torch.from_numpy(writable).to(device).flip(3).permute(0, 3, 1, 2).float()
    mean = torch.tensor(spec.dataset.pixel_mean, device=device).view(1, 3, 1, 1) * 255
    scale = torch.tensor(spec.dataset.pixel_std, device=device).view(1, 3, 1, 1) * 255
    return ((batch - mean) / scale).contiguous(memory_format=torch.channels_last)
