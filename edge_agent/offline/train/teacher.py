"""Targets from a teacher: embeddings of the training pictures by another network, computed once.

The teacher sees the pictures as they are, the trained network their augmented copies, so that it learns to
give the teacher's answer in spite of camera, box and occlusion. As a teacher has a camera bias of its own,
the means of the cameras are removed; a part of each target is the mean of its person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.arrays import map_array
from edge_agent.core.errors import InputError
from edge_agent.core.files import sha256_file
from edge_agent.offline.evaluate.cameras import without_camera_means
from edge_agent.offline.evaluate.embedding import Network, embed_paths
from edge_agent.offline.train.data import PictureSet, fingerprint

_MEAN_OF_PERSON = 0.5  # share of the person's mean in a target


def teacher_embeddings(
    teacher: Path, pictures: PictureSet, *, cache: Path, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Embed all pictures with the network `teacher`, or map the file of an earlier run: `(N, D)`, unit rows.

    `progress` is called with (done, total).

    Raises:
        ConfigError: the preprocess profile of the teacher is not known.
        InputError: a picture cannot be read.
        ModelError, NonFiniteEmbedding: the teacher cannot be used.
    """
    digest = hashlib.sha256(f"{sha256_file(teacher)} {fingerprint(pictures, (0, 0))}".encode()).hexdigest()
    target = cache / f"teacher-{digest[:16]}.npy"
    try:
        return np.asarray(map_array(target, kinds="f", shape=(len(pictures.paths), None)), np.float32)
    except InputError:  # missing, or not whole
        pass
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(pictures.paths))

    with Network(model=teacher).open() as (embedder, _):
        embedded = embed_paths(embedder, pictures.paths, advance=advance)
    if embedded.problems:
        first = embedded.problems[0]
        raise InputError(f"{first.path} {first.reason}; remove it from the training pictures")
    cache.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, embedded.vectors.astype(np.float32))
    partial.replace(target)
    return embedded.vectors


def teaching_targets(
    vectors: NDArray[np.float32], people: NDArray[np.int64], cameras: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the targets `(N, D)`, unit rows, of the teacher's embeddings of all training pictures."""
    own = without_camera_means(vectors - vectors.mean(0), people, cameras)
    _, owner = np.unique(people, return_inverse=True)
    means = np.zeros((int(owner.max()) + 1, own.shape[1]), np.float32)
    np.add.at(means, owner, own)
    means /= np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    mixed = (1 - _MEAN_OF_PERSON) * own + _MEAN_OF_PERSON * means[owner]
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True).clip(1e-12), np.float32)
