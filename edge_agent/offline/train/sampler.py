"""Batches of pictures: P identities with K pictures each, or plain shuffling.

Everything is drawn from `(seed, epoch)`, so a resumed run has the same batches without stored sampler state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def identity_batches(
    labels: NDArray[np.int64], *, batch_size: int, instances: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return batches of `batch_size / instances` different identities with `instances` pictures each.

    Each identity's pictures are shuffled and divided into groups of `instances` (an identity with fewer
    pictures repeats some). Each batch takes a group of random different identities, with probabilities in
    proportion to their remaining groups, until too few identities have groups left. In an epoch a picture
    appears at most once, except for the repeats.

    Args:
        labels: `(N,)` identity of every picture.
        batch_size: pictures a batch, a multiple of `instances`.
        instances: pictures of one identity in a batch, TAO's `num_instances`.
        seed: of the run.
        epoch: from 0.

    Returns:
        Batches as `(batch_size,)` int64 picture numbers.
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
