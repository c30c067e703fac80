"""Embeddings without the mean of their camera, as the agent compares them at a site with several cameras.

Embeddings of one camera share an offset: its light, colours and background. The mean of a camera counts each
person once, and is shrunk by the number of people (`gallery.means.weight`), since a mean of few is mostly
these people.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.gallery.means import weight
from edge_agent.offline.evaluate.labels import EmbeddedCrops


def without_camera_means(
    vectors: NDArray[np.float32], people: NDArray[np.int64], cameras: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Remove from each unit row `(N, D)` the mean of the other people of its camera; unit rows again.

    `people` and `cameras` are `(N,)`. A person alone on a camera keeps the embeddings.
    """
    out = np.array(vectors, np.float32)
    for camera in np.unique(cameras):
        rows = np.flatnonzero(cameras == camera)
        _, owner = np.unique(people[rows], return_inverse=True)
        count = int(owner.max()) + 1
        votes = np.zeros((count, vectors.shape[1]), np.float64)
        np.add.at(votes, owner, vectors[rows])
        votes /= np.bincount(owner)[:, None]
        others = count - 1
        if others:
            mean = (votes.sum(0) - votes) / others
            out[rows] -= (weight(others) * mean[owner]).astype(np.float32)
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True).clip(1e-12), np.float32)


def sides_without_camera_means(
    query: EmbeddedCrops, gallery: EmbeddedCrops
) -> tuple[EmbeddedCrops, EmbeddedCrops]:
    """Remove the means of the cameras, which are those of the people of both sides."""
    vectors = without_camera_means(
        np.concatenate([query.vectors, gallery.vectors]),
        np.concatenate([query.pids, gallery.pids]),
        np.concatenate([query.camids, gallery.camids]),
    )
    count = len(query)
    return replace(query, vectors=vectors[:count]), replace(gallery, vectors=vectors[count:])
