"""Training pictures: decoded once into a file, augmented by threads ahead of the network.

On a small machine decoding JPEG again every epoch costs more than a light network's step. The pictures are
therefore kept as one uint8 array at the size that the network computes on, and mapped into memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.pictures import list_pictures, parse_crop_name, read_picture
from edge_agent.offline.dataset import DISTRACTOR, JUNK
from edge_agent.offline.train.augment import Augmentation
from edge_agent.offline.train.sampler import identity_batches, shuffled_batches
from edge_agent.offline.train.spec import Spec

__all__ = ["Batch", "PictureSet", "Pictures", "TrainingBatches", "decode", "normalise", "read_folder"]


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Files of one split, as the data set reader gives them.

    Attributes:
        paths: N picture files.
        identities: `(N,)` int64 person numbers as the file names have them.
        cameras: `(N,)` int64 camera numbers.
    """

    paths: tuple[Path, ...]
    identities: NDArray[np.int64]
    cameras: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.paths) == len(self.identities) == len(self.cameras):
            raise ValueError("paths, identities and cameras differ in length")


@dataclass(frozen=True, slots=True)
class Pictures:
    """A decoded split.

    Attributes:
        images: `(N, h, w, 3)` uint8 BGR, mapped from a file.
        labels: `(N,)` int64 in `0..classes-1`, in rising order of the person numbers.
        cameras: `(N,)` int64.
        people: person number of each label.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cameras: NDArray[np.int64]
    people: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures `(B, h, w, 3)` uint8 BGR, augmented, and their labels `(B,)` int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_folder(folder: Path, *, people_only: bool) -> PictureSet:
    """The pictures of one split folder, wherever it lies and whatever it is called.

    Args:
        folder: holds `PPPP_cCsS_FFFFFF_NN.jpg` and the like.
        people_only: leave out junk (`-1`) and distractors (`0000`), which no classifier can learn.

    Raises:
        DatasetError: no such folder, or no usable picture in it.
    """
    try:
        named = [(path, parse_crop_name(path.name)) for path in list_pictures(folder)]
    except InputError as error:
        raise DatasetError(str(error)) from error
    lowest = DISTRACTOR + 1 if people_only else JUNK
    kept = [(path, name) for path, name in named if name is not None and name.pid >= lowest]
    if not kept:
        raise DatasetError(f"{folder} holds no picture of a person named like 0002_c1s1_000451_03.jpg")
    return PictureSet(
        tuple(path for path, _ in kept),
        np.array([name.pid for _, name in kept], np.int64),
        np.array([name.camid for _, name in kept], np.int64),
    )


def decode(
    pictures: PictureSet,
    *,
    size: tuple[int, int],
    cache: Path,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Decode a split, or map it from the cache file that an earlier run left.

    The cache's name holds a hash of the file names, sizes and times, so that a changed data set is decoded
    anew. Pictures are scaled like TAO's loader does it (bilinear; by area where they shrink, which is what
    PIL's antialiasing amounts to).

    Args:
        pictures: the files.
        size: `(height, width)` to store.
        cache: folder for the array, made if missing.
        threads: that decode at the same time, at least 1.
        progress: called with (done, total).

    Raises:
        InputError: a file cannot be decoded (named).
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"pictures-{_fingerprint(pictures, size)}.npy"
    if not target.exists():
        _write_cache(pictures, size, target, threads, progress)
    people, labels = np.unique(pictures.identities, return_inverse=True)
    images = np.load(target, mmap_mode="r")
    return Pictures(images, labels.astype(np.int64), pictures.cameras, people)


def _fingerprint(pictures: PictureSet, size: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr(size).encode())
    for path in pictures.paths:
        status = path.stat()
        digest.update(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
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
    with ThreadPoolExecutor(threads) as pool:
        for index, image in enumerate(pool.map(lambda path: _scaled_picture(path, size), pictures.paths)):
            array[index] = image
            if progress is not None and (index % 500 == 0 or index + 1 == shape[0]):
                progress(index + 1, shape[0])
    array.flush()
    del array
    os.replace(partial, target)  # noqa: PTH105  # the one atomic call that names both paths plainly


def _scaled_picture(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One file as `(height, width, 3)` uint8 BGR; InputError where it is no picture."""
    image = read_picture(path)
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    scaled: NDArray[np.uint8] = cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return scaled


class TrainingBatches:
    """The augmented batches of any epoch, prepared by threads while the network works."""

    def __init__(self, pictures: Pictures, spec: Spec) -> None:
        self._pictures = pictures
        self._spec = spec
        self._augment = Augmentation(spec.dataset, spec.edge_agent)
        self._known: tuple[int, list[NDArray[np.int64]]] = (-1, [])

    def of_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """The picture numbers of each batch, the same for the same spec, data set and epoch."""
        if self._known[0] != epoch:
            self._known = (epoch, self._drawn(epoch))
        return self._known[1]

    def _drawn(self, epoch: int) -> list[NDArray[np.int64]]:
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
        """The batches of an epoch in order, from number `first`; with workers, a few are prepared ahead."""
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
        images, labels = self._pictures.images, self._pictures.labels[chosen]
        out = np.empty((len(chosen), *images.shape[1:]), np.uint8)
        for place, number in enumerate(chosen):
            rng = np.random.default_rng((self._spec.train.seed, 2, epoch, step, place))
            other = images[chosen[rng.integers(len(chosen))]]
            out[place] = self._augment(images[number], other, rng)
        return Batch(out, labels)


def normalise(images: NDArray[np.uint8], spec: Spec, device: torch.device) -> Tensor:
    """`(N, h, w, 3)` uint8 BGR -> `(N, 3, h, w)` float32 RGB on `device`, minus mean, by deviation.

    This is the agent's preprocess profile of the same numbers (`tao` with the defaults).
    """
    writable = images if images.flags.writeable else images.copy()  # torch takes no read-only memory
    batch = torch.from_numpy(writable).to(device).flip(3).permute(0, 3, 1, 2).float()
    mean = torch.tensor(spec.dataset.pixel_mean, device=device).view(1, 3, 1, 1) * 255
    scale = torch.tensor(spec.dataset.pixel_std, device=device).view(1, 3, 1, 1) * 255
    return ((batch - mean) / scale).contiguous(memory_format=torch.channels_last)


def chunks(count: int, size: int) -> Sequence[slice]:
    """Slices of at most `size` that cover `count` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
