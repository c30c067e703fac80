"""Pictures of identities in the gallery file: SQL statements, and the rule for those that are kept.

Two roles: `kept` are the best, diverse crops of an identity; `evidence` are crops of the latest tracks that
were decided, for the operator who asks why. Both are deleted with the identity, by its foreign key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_agent.core.errors import InputError
from edge_agent.core.pictures import LARGEST_KEPT
from edge_agent.gallery.exemplars import diverse_rows, grades
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.store import Store

Role = Literal["kept", "evidence"]

EVIDENCE_PER_TRACK = 4
"""Crops of one decided track."""
EVER = -math.inf
MOST_EVIDENCE = 2000
"""Crops of decided tracks in all; the oldest make room."""

_MANY = "SELECT number FROM crop WHERE role = 'kept' GROUP BY number HAVING count(*) > ?"


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture of one person that may be kept.

    Attributes:
        origin: the track or file that it is of, as of the exemplars.
        camera, time: where and when it was taken, Unix seconds; "" for pictures without a camera.
        quality: 0..1, how well it shows the person.
        vector: `(D,)` float32 of unit length, its raw embedding; empty where there is none.
        jpeg: as of `core.pictures.encode_kept`.
    """

    origin: str
    camera: str
    time: float
    quality: float
    vector: Vectors
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Crop:
    """A stored picture of an identity; see `Shot`. `row` names it within this gallery."""

    row: int
    number: int
    origin: str
    camera: str
    time: float
    quality: float
    jpeg: bytes


class CropRows:
    """The pictures of an open gallery file; methods that write belong inside `Store.change`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, number: int, shots: Sequence[Shot], role: Role, most: int) -> int:
        """Insert pictures of an identity, if it exists, and keep the `most`; return the bytes added.

        Of `kept` ones the best and most diverse are; of `evidence`, the best of each origin.
        """
        for shot in shots:
            if len(shot.jpeg) > LARGEST_KEPT:
                raise InputError(f"a picture has {len(shot.jpeg)} bytes; at most {LARGEST_KEPT} are kept")
        before = int(self._store.value("SELECT coalesce(max(row), 0) FROM crop"))
        self._store.run_many(
            "INSERT INTO crop (number, role, origin, camera, time, quality, vector, jpeg, bytes)"
            " SELECT number, ?, ?, ?, ?, ?, ?, ?, ? FROM identity WHERE number = ?",
            [
                (role, one.origin, one.camera, float(one.time), float(one.quality),
                 one.vector.astype("<f4").tobytes() if role == "kept" else b"",
                 one.jpeg, len(one.jpeg), number)
                for one in shots
            ],
        )  # fmt: skip
        if role == "kept":
            self.prune(number, most)
        else:
            for origin in {one.origin for one in shots}:
                self._prune_evidence(origin)
        return int(self._store.value("SELECT coalesce(sum(bytes), 0) FROM crop WHERE row > ?", (before,)))

    def prune(self, number: int, most: int) -> None:
        """Delete the kept pictures of an identity beyond the `most` by the rule of `diverse_rows`."""
        if not most:
            self._store.run("DELETE FROM crop WHERE number = ?", (number,))
            return
        rows = self._store.rows(
            "SELECT row, quality, vector FROM crop WHERE number = ? AND role = 'kept' ORDER BY row", (number,)
        )
        if len(rows) <= most:
            return
        qualities = grades([row[1] for row in rows])
        kept = diverse_rows(_vectors([row[2] for row in rows]), qualities, most)
        gone = set(range(len(rows))) - set(kept.tolist())
        self._store.run_many("DELETE FROM crop WHERE row = ?", [(rows[place][0],) for place in gone])

    def prune_all(self, most: int) -> int:
        """Bound the kept pictures of every identity to `most`, 0 deletes all; return the number deleted."""
        before = self.count()
        if not most:
            self._store.run("DELETE FROM crop")
            return before
        for (number,) in self._store.rows(_MANY, (most,)):
            self.prune(number, most)
        return before - self.count()

    def exceeds(self, most: int) -> bool:
        """Return whether `prune_all` would delete pictures."""
        query = f"SELECT EXISTS ({_MANY})" if most else "SELECT EXISTS (SELECT 1 FROM crop WHERE ? = 0)"
        return bool(self._store.value(query, (most,)))

    def _prune_evidence(self, origin: str) -> None:
        self._store.run(
            "DELETE FROM crop WHERE role = 'evidence' AND origin = ? AND row NOT IN (SELECT row FROM crop"
            " WHERE role = 'evidence' AND origin = ? ORDER BY quality DESC, row DESC LIMIT ?)",
            (origin, origin, EVIDENCE_PER_TRACK),
        )
        oldest = "SELECT row FROM crop WHERE role = 'evidence' ORDER BY row DESC LIMIT 1 OFFSET ?"
        last = self._store.value(oldest, (MOST_EVIDENCE,))
        if last is not None:
            self._store.run("DELETE FROM crop WHERE role = 'evidence' AND row <= ?", (last,))

    def move(self, origin: str, number: int | None, since: float, most: int) -> None:
        """Give the pictures of an origin from a time on to another identity; None deletes them."""
        theirs = "origin = ? AND time >= ?"
        if number is None:
            self._store.run(f"DELETE FROM crop WHERE {theirs}", (origin, since))  # noqa: S608 - constants
            return
        moved = self._store.run(
            f"UPDATE crop SET number = ? WHERE {theirs} AND number != ?"  # noqa: S608 - constants
            " AND EXISTS (SELECT 1 FROM identity WHERE number = ?)",
            (number, origin, since, number, number),
        ).rowcount
        if moved:
            self.prune(number, most)

    def remove_origin(self, number: int, origin: str) -> None:
        """Delete what one origin contributed to an identity."""
        self._store.run("DELETE FROM crop WHERE number = ? AND origin = ?", (number, origin))

    def of(self, number: int, role: Role = "kept") -> list[Crop]:
        """Return the pictures of an identity, best first."""
        return self._select("number = ? AND role = ? ORDER BY quality DESC, row", number, role)

    def evidence(self, origin: str) -> list[Crop]:
        """Return the pictures of a decided track, oldest first."""
        return self._select("origin = ? AND role = 'evidence' ORDER BY time, row", origin)

    def _select(self, condition: str, *values: object) -> list[Crop]:
        columns = "row, number, origin, camera, time, quality, jpeg"
        found = self._store.rows(f"SELECT {columns} FROM crop WHERE {condition}", values)  # noqa: S608
        return [Crop(*row) for row in found]

    def get(self, row: int) -> Crop | None:
        """Return one picture; None where it is gone."""
        return next(iter(self._select("row = ?", row)), None)

    def listed(self, numbers: Sequence[int] | None = None) -> dict[int, list[int]]:
        """Return the rows of the kept pictures by identity, best first; of all, or of some identities."""
        some = "" if numbers is None else f" AND number IN ({','.join('?' * len(numbers))})"
        query = f"SELECT number, row FROM crop WHERE role = 'kept'{some} ORDER BY number, quality DESC, row"  # noqa: S608
        found: dict[int, list[int]] = {}
        for number, row in self._store.rows(query, numbers or ()):
            found.setdefault(number, []).append(row)
        return found

    def count(self) -> int:
        """Return the number of pictures, of both roles."""
        return int(self._store.value("SELECT count(*) FROM crop"))

    def nbytes(self) -> int:
        """Return the bytes of all pictures."""
        return int(self._store.value("SELECT coalesce(sum(bytes), 0) FROM crop"))

    def bound(self, limit: int) -> int:
        """Delete pictures until all have at most `limit` bytes; return what is left.

        Evidence goes first, then the pictures of the longest unseen identities, unnamed before enrolled.
        """
        left = self.nbytes()
        if left > limit:
            self._store.run("DELETE FROM crop WHERE role = 'evidence'")
            left = self.nbytes()
        for number, size in (
            self._store.rows(
                "SELECT number, sum(bytes) FROM crop JOIN identity USING (number) GROUP BY number"
                " ORDER BY kind = 'enrolled', seen, last_seen, number"
            )
            if left > limit
            else ()
        ):
            self._store.run("DELETE FROM crop WHERE number = ?", (number,))
            left -= int(size)
            if left <= limit:
                break
        return left


def _vectors(blobs: Sequence[bytes]) -> Vectors:
    """Return stored embeddings `(N, D)`; those of another length than most are zero: like no other."""
    size = max((len(blob) for blob in blobs), default=0) // 4 * 4
    rows = np.zeros((len(blobs), size // 4), np.float32)
    for row, blob in zip(rows, blobs, strict=True):
        if len(blob) == size and size:
            row[:] = np.frombuffer(blob, "<f4")
    rows[~np.isfinite(rows).all(axis=1)] = 0.0
    return rows
