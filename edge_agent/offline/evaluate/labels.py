"""Labels of both sides of an evaluation, after the rule for junk and distractors.

Later steps only compare labels: junk is removed here, and each distractor gets a label of its own, since
each is a different stranger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError, NonFiniteEmbedding
from edge_agent.offline.dataset import DISTRACTOR, JUNK, Crop, JunkRule, Split, numbering_notes

_TAO_JUNK_READS_AS = 1


@dataclass(frozen=True, slots=True)
class EmbeddedCrops:
    """Embeddings of one side (query or gallery) with the labels of the file names.

    Attributes:
        vectors: `(N, D)` float32, rows of unit length.
        pids: `(N,)` int64 person numbers.
        camids: `(N,)` int64 camera numbers.
        names: N paths or names of the crops, for reports.
    """

    vectors: NDArray[np.float32]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        rows = len(self.names)
        if self.vectors.ndim != 2 or len(self.vectors) != rows:
            raise ValueError(f"vectors: expected ({rows}, D), got {self.vectors.shape}")
        for name, array in (("pids", self.pids), ("camids", self.camids)):
            if array.shape != (rows,):
                raise ValueError(f"{name}: expected ({rows},), got {array.shape}")

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def of(
        vectors: NDArray[Any], pids: Sequence[int], camids: Sequence[int], names: Sequence[str]
    ) -> EmbeddedCrops:
        """Normalise `vectors` and attach the labels; errors as in `unit_rows`."""
        return EmbeddedCrops(
            unit_rows(vectors, names), np.asarray(pids, np.int64), np.asarray(camids, np.int64), tuple(names)
        )

    @staticmethod
    def of_crops(vectors: NDArray[Any], crops: Sequence[Crop]) -> EmbeddedCrops:
        """Normalise `vectors` and attach the labels and paths of their crops; errors as in `unit_rows`."""
        pids, camids = [crop.pid for crop in crops], [crop.camid for crop in crops]
        return EmbeddedCrops.of(vectors, pids, camids, [str(crop.path) for crop in crops])

    def take(self, rows: NDArray[Any]) -> EmbeddedCrops:
        """Return the given rows (indices or a mask)."""
        picked = np.arange(len(self))[rows]
        names = tuple(self.names[row] for row in picked)
        return EmbeddedCrops(self.vectors[picked], self.pids[picked], self.camids[picked], names)


def unit_rows(vectors: NDArray[Any], names: Sequence[str]) -> NDArray[np.float32]:
    """Scale each row to unit length: `(N, D)` of any float type -> `(N, D)` float32.

    Raises:
        NonFiniteEmbedding: a row contains NaN or infinity (named).
        InputError: a row is all zero and has no direction (named).
    """
    wide = np.asarray(vectors, np.float64)
    broken = np.flatnonzero(~np.isfinite(wide).all(axis=1))
    if len(broken):
        raise NonFiniteEmbedding(
            f"{len(broken)} of {len(wide)} embeddings contain NaN or infinity, the first that of "
            f"{names[broken[0]]}; their network cannot be used"
        )
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    empty = np.flatnonzero(lengths[:, 0] == 0)
    if len(empty):
        raise InputError(f"the embedding of {names[empty[0]]} is all zero ({len(empty)} of {len(wide)} are)")
    return np.asarray(wide / lengths, np.float32)


@dataclass(frozen=True, slots=True)
class Sides:
    """Query and gallery after the junk rule, with crops dropped; equal `pids` mean the same person."""

    query: EmbeddedCrops
    gallery: EmbeddedCrops
    distractor_queries: int = 0
    junk_queries: int = 0
    dropped_gallery: int = 0
    notes: tuple[str, ...] = ()
    """See `edge_agent.offline.dataset.numbering_notes`."""

    @property
    def dropped_queries(self) -> int:
        """Queries that are not ranked for their person number."""
        return self.distractor_queries + self.junk_queries


def apply_junk_rule(query: EmbeddedCrops, gallery: EmbeddedCrops, rule: JunkRule) -> Sides:
    """Apply the junk rule, see `JunkRule`, so that labels can be compared.

    Raises:
        InputError: nothing is left on one side, or the two have embeddings of different size.
    """
    if query.vectors.shape[1] != gallery.vectors.shape[1]:
        raise InputError(
            f"query embeddings have {query.vectors.shape[1]} numbers, gallery embeddings "
            f"{gallery.vectors.shape[1]}; both must come from one network"
        )
    if rule is JunkRule.TAO_COMPAT:
        sides = Sides(_junk_as_person(query), _junk_as_person(gallery))
    else:
        named = query.take(query.pids > DISTRACTOR)
        kept = _strangers_apart(gallery.take(gallery.pids != JUNK))
        strangers, bad = (int((query.pids == number).sum()) for number in (DISTRACTOR, JUNK))
        notes = tuple(numbering_notes(Split.QUERY, query.pids.tolist()))
        sides = Sides(named, kept, strangers, bad, len(gallery) - len(kept), notes)
    for side, name in ((sides.query, "query"), (sides.gallery, "gallery")):
        if not len(side):
            why = "; ".join(sides.notes) or "all are junk or distractors"
            raise InputError(f"the {name} side contains no usable crop: {why}")
    return sides


def _junk_as_person(crops: EmbeddedCrops) -> EmbeddedCrops:
    return replace(crops, pids=np.where(crops.pids == JUNK, _TAO_JUNK_READS_AS, crops.pids))


def _strangers_apart(crops: EmbeddedCrops) -> EmbeddedCrops:
    """Give each distractor a label of its own: -2, -3, ..."""
    own = -2 - np.arange(len(crops), dtype=np.int64)
    return replace(crops, pids=np.where(crops.pids == DISTRACTOR, own, crops.pids))
