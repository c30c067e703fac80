"""Exemplars in the gallery file: SQL statements, the rule for those that are kept, and checks of vectors."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import NonFiniteEmbedding
from edge_agent.gallery.fleet_rows import FOREIGN, owned_by
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.store import Store

Source = tuple[float, str, str, float, int]
"""Quality, origin, camera, time and epoch of the camera of one exemplar."""
View = tuple[str, int]
"""Camera and epoch, see `gallery.means`."""

_UNIT_TOLERANCE = 0.02  # half precision normalises to about 0.001; a forgotten normalisation is far off
MOST_FOREIGN = 64
"""Exemplars of one person that other devices of a fleet contributed."""
_BATCH = 4096
"""Exemplars read at a time when the file is loaded."""


@dataclass(frozen=True, slots=True)
class State:
    """What the file has of an identity: its revision, None if there is no such identity, and its exemplars.

    These are `(M, D)` in order of insertion, with M views; `origins` may be unknown.
    """

    revision: int | None
    vectors: Vectors
    views: list[View]
    origins: tuple[str, ...] | None = None


class Exemplars:
    """The exemplars of an open gallery file, of `dimension` numbers each; changes as in `Rows`.

    `changed` are the identities whose exemplars the current transaction has changed or removed.
    """

    def __init__(self, store: Store, dimension: int) -> None:
        self.changed: set[int] = set()
        self._revisions: dict[int, int] = {}
        """Of the identities that the current transaction has changed."""
        self._read: dict[int, list[tuple[bytes, str, int, str]]] = {}
        """Vector, camera, epoch and origin of the exemplars of those that it has read since."""
        self._store = store
        self._dimension = dimension

    def __enter__(self) -> None:
        """Note what a transaction changes and reads, until the end of the block."""

    def __exit__(self, *problem: object) -> None:
        """Forget that."""
        self.changed.clear()
        self._revisions.clear()
        self._read.clear()

    def state(self, number: int) -> State:
        """Return the present state of an identity, without a query where the transaction knows it."""
        revision: int | None = self._revisions.get(number)
        if revision is None:
            revision = self._store.value("SELECT revision FROM identity WHERE number = ?", (number,))
        if (rows := self._read.get(number)) is None:
            return State(revision, *self.of(number))
        vectors = self.unpacked([row[0] for row in rows])
        return State(revision, vectors, [row[1:3] for row in rows], tuple([row[3] for row in rows]))

    def add(self, number: int, vectors: Vectors, sources: Sequence[Source], most: int) -> int:
        """Insert exemplars `(M, D)` and prune to the `most` diverse; return how many of these are kept."""
        new = [
            (vector.astype("<f4").tobytes(), *source) for vector, source in zip(vectors, sources, strict=True)
        ]
        return len(self._insert(number, new) - self.prune(number, most))

    def remove_origin(self, number: int, origin: str, since: float | None) -> int:
        """Delete the exemplars of one origin, those from a time on if it is given; return their number."""
        statement = "DELETE FROM exemplar WHERE number = ? AND origin = ? AND time >= ?"
        first = -math.inf if since is None else since
        if gone := self._store.run(statement, (number, origin, first)).rowcount:
            self.mark(number)
        return gone

    def of(self, number: int) -> tuple[Vectors, list[View]]:
        """Return the exemplars of an identity in order of insertion, `(M, D)` float32, and their views."""
        rows = self._store.rows(
            "SELECT vector, camera, epoch FROM exemplar WHERE number = ? ORDER BY row", (number,)
        )
        return self.unpacked([row[0] for row in rows]), [row[1:] for row in rows]

    def origins(self, number: int) -> tuple[str, ...]:
        """Return the origins of the exemplars of an identity in order of insertion."""
        statement = "SELECT origin FROM exemplar WHERE number = ? ORDER BY row"
        return tuple(origin for (origin,) in self._store.rows(statement, (number,)))

    def batches(self) -> Iterator[tuple[NDArray[np.int64], Vectors, list[View]]]:
        """Yield all exemplars in order of insertion: `(N,)` identities, `(N, D)` vectors, N views."""
        statement = "SELECT number, vector, camera, epoch FROM exemplar ORDER BY row"
        for rows in self._store.batches(statement, _BATCH):
            owners = np.array([row[0] for row in rows], np.int64)
            yield owners, self.unpacked([row[1] for row in rows]), [row[2:] for row in rows]

    def move(self, origins: Sequence[str], epoch: int) -> None:
        """Put the exemplars of some origins into another epoch of their camera."""
        marks = ",".join("?" * len(origins))
        moved = f"FROM exemplar WHERE origin IN ({marks})"
        for (number,) in self._store.rows(f"SELECT DISTINCT number {moved}", origins):
            self.mark(number)
        self._store.run(f"UPDATE exemplar SET epoch = ? WHERE origin IN ({marks})", (epoch, *origins))  # noqa: S608

    def unpacked(self, blobs: Sequence[bytes]) -> Vectors:
        """Return `(N, D)` float32 from stored vectors."""
        if any(len(blob) != 4 * self._dimension for blob in blobs):
            raise self._store.damage(f"an embedding does not have {self._dimension} numbers")
        vectors = np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self._dimension).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise self._store.damage("an embedding contains NaN or infinity")
        return vectors

    def mark(self, number: int) -> None:
        """Note that the exemplars of an identity change, for this process and the others."""
        revision = secrets.randbits(63)
        self.gone(number)
        if self._store.run("UPDATE identity SET revision = ? WHERE number = ?", (revision, number)).rowcount:
            self._revisions[number] = revision

    def gone(self, number: int) -> None:
        """Note that an identity is removed."""
        self.changed.add(number)
        self._revisions.pop(number, None)
        self._read.pop(number, None)

    def prune(self, number: int, most: int) -> set[int]:
        """Delete own exemplars beyond the `most` by the rule of `diverse_rows`, in order of storage.

        Of those that other devices contributed, `MOST_FOREIGN` stay. Returns the deleted rows.
        """
        self.mark(number)
        rows = self._store.rows(
            f"SELECT {FOREIGN}, row, vector, quality, camera, epoch, origin FROM exemplar"  # noqa: S608
            " WHERE number = ? ORDER BY row",
            (number,),
        )
        gone: set[int] = set()
        for foreign, limit in ((0, most), (1, MOST_FOREIGN)):
            theirs = [row[1:4] for row in rows if row[0] == foreign]
            if len(theirs) > limit:
                gone |= self._drop(theirs, limit)
        self._read[number] = [(row[2], *row[4:]) for row in rows if row[1] not in gone]
        return gone

    def _drop(self, rows: Sequence[tuple[int, bytes, float]], most: int) -> set[int]:
        kept = diverse_rows(self.unpacked([row[1] for row in rows]), grades([row[2] for row in rows]), most)
        gone = {row[0] for row in rows} - {rows[place][0] for place in kept.tolist()}
        self._store.run_many("DELETE FROM exemplar WHERE row = ?", [(row,) for row in gone])
        return gone

    def own(self, number: int) -> list[tuple[bytes, float, str, int]]:
        """Return vector, quality, camera and epoch of the exemplars of this device, oldest first."""
        return [row[1:] for row in self.own_of([number])]

    def own_of(self, numbers: Sequence[int]) -> list[tuple[int, bytes, float, str, int]]:
        """Return the same of some people, each with the number of its person first, by number."""
        marks = ",".join("?" * len(numbers))
        return self._store.rows(
            "SELECT number, vector, quality, camera, epoch FROM exemplar"  # noqa: S608 - constants
            f" WHERE number IN ({marks}) AND NOT {FOREIGN} ORDER BY number, row",
            numbers,
        )

    def has_seen(self, number: int) -> bool:
        """Whether there are exemplars of this device that did not come back from the site."""
        query = (
            f"SELECT EXISTS (SELECT 1 FROM exemplar WHERE number = ? AND NOT {FOREIGN}"  # noqa: S608
            " AND substr(origin, 1, 6) != 'fleet/')"
        )
        return bool(self._store.value(query, (number,)))

    def contributor(self, number: int, origin: str) -> str | None:
        """Return the device of the fleet that contributed an origin; None: this one."""
        query = "SELECT camera FROM exemplar WHERE number = ? AND origin = ? LIMIT 1"
        return owned_by(self._store.value(query, (number, origin)) or "")

    def latest_cameras(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return the camera of the latest exemplar of this device, of those people who have one."""
        marks = ",".join("?" * len(numbers))
        query = (
            f"SELECT number, camera FROM exemplar WHERE number IN ({marks}) AND NOT {FOREIGN}"  # noqa: S608
            " ORDER BY time, row"
        )
        return dict(self._store.rows(query, numbers))

    def replace_origin(self, number: int, origin: str, vectors: Vectors, sources: Sequence[Source]) -> bool:
        """Put these exemplars in the place of those of one origin; False: they are the same.

        `sources` has origin, too.
        """
        new = [
            (vector.astype("<f4").tobytes(), *source) for vector, source in zip(vectors, sources, strict=True)
        ]
        old = self._store.rows(
            "SELECT vector, quality, origin, camera, epoch FROM exemplar WHERE number = ? AND origin = ?"
            " ORDER BY row",
            (number, origin),
        )
        if old == [(vector, quality, of, camera, epoch) for vector, quality, of, camera, _, epoch in new]:
            return False
        self._store.run("DELETE FROM exemplar WHERE number = ? AND origin = ?", (number, origin))
        self._insert(number, new)
        self.mark(number)
        return True

    def _insert(self, number: int, rows: Iterable[tuple[bytes, float, str, str, float, int]]) -> set[int]:
        """Insert rows; return their row numbers."""
        statement = (
            "INSERT INTO exemplar (number, vector, quality, origin, camera, time, epoch)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        inserted = {self._store.run(statement, (number, *row)).lastrowid for row in rows}
        return {row for row in inserted if row is not None}


def grades(stored: Sequence[float]) -> Vectors:
    """Return stored qualities as `(N,)` float32 in 0..1; earlier versions imported any number."""
    return np.clip(np.array(stored, np.float64), 0.0, 1.0).astype(np.float32)


def diverse_rows(vectors: Vectors, qualities: Vectors, most: int) -> NDArray[np.intp]:
    """Return the rising indices of at most `most` rows that differ from each other and are of good quality.

    The rows `(N, D)` of unit length are added in order, oldest first. Whenever there are more than `most`,
    the two most similar (highest cosine) are found, and the one of lower quality, 0..1, is dropped; of two
    equal ones, the later. So each view of a person is represented by its best picture, a new view displaces a
    redundant one, and the result depends only on the rows and their order.
    """
    kept = list(range(min(most, len(vectors))))
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    for newcomer in range(most, len(vectors)):
        kept.append(newcomer)
        among = cosines[np.ix_(kept, kept)]
        older, newer = sorted(divmod(int(among.argmax()), len(kept)))
        kept.pop(older if qualities[kept[older]] < qualities[kept[newer]] else newer)
    return np.asarray(kept, np.intp)


def checked_vectors(vectors: Vectors, dimension: int) -> Vectors:
    """Return vectors as contiguous float32 `(N, D)`.

    ValueError when they are of another shape, NonFiniteEmbedding when one contains NaN or infinity.
    """
    rows = np.ascontiguousarray(vectors, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise ValueError(f"vectors: expected (N, {dimension}), got {np.shape(vectors)}")
    if not np.isfinite(rows).all():
        raise NonFiniteEmbedding("an embedding contains NaN or infinity; it is not compared or stored")
    return rows


def checked_exemplars(vectors: Vectors, qualities: Vectors, dimension: int) -> tuple[Vectors, list[float]]:
    """Return vectors `(N, D)`, scaled to length 1 exactly, and their qualities.

    ValueError also when a vector is not of length 1, or a quality is not finite; as in `checked_vectors`.
    """
    rows = checked_vectors(vectors, dimension)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if (np.abs(lengths - 1) > _UNIT_TOLERANCE).any():
        raise ValueError(
            f"vectors: expected rows of length 1, got {lengths.min():.3g} to {lengths.max():.3g}"
        )
    checked = np.asarray(qualities, np.float32)
    if checked.shape != (len(rows),) or not np.isfinite(checked).all():
        raise ValueError(f"qualities: expected ({len(rows)},) finite numbers, got {checked.shape}")
    return np.asarray(rows / lengths, np.float32), checked.tolist()
