"""Entries of a recording: what the decision got, in the order in which it got it, and what it decided.

A frame is packed into two blobs: numbers of the tracks, and their embeddings. All numbers are stored as they
are, so that the same decisions can be made from them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Decision, TrackObservation, TrackUpdate

Vectors = NDArray[np.float32]
Kind = Literal["frame", "call", "change"]

_HEAD = struct.Struct("<qdiiII")
_SEEN = np.dtype(
    [
        ("track", "<i8"),
        ("frame", "<i8"),
        ("time", "<f8"),
        ("box", "<f4", (4,)),
        ("score", "<f8"),
        ("quality", "<f8"),
        ("flags", "u1"),
    ]
)
_EMBEDDED, _SURE, _PLACED = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Entry:
    """What is recorded at once.

    Attributes:
        at: instant, see `core.clock`.
        update: the tracks of a frame; None for the other kinds.
        decisions: those that the frame led to.
        body: of a call of the decision (`call`, `arguments`), or a change of the gallery by others.
        vectors: `(N, D)` embeddings of a change.
        crops: pictures `(h, w, 3)` uint8 BGR by track, where they are kept.
    """

    kind: Kind
    at: float
    update: TrackUpdate | None = None
    decisions: tuple[Decision, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    vectors: Vectors | None = None
    crops: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size in memory, about."""
        seen = () if self.update is None else self.update.seen
        size = 400 + sum(300 + (0 if one.vector is None else one.vector.nbytes) for one in seen)
        size += 0 if self.vectors is None else self.vectors.nbytes
        return size + sum(crop.nbytes for crop in self.crops.values())


def pack_frame(update: TrackUpdate) -> tuple[bytes, bytes]:
    """Return the numbers of a frame's tracks, and their embeddings."""
    seen, ended = update.seen, update.ended
    rows = np.zeros(len(seen), _SEEN)
    for row, one in zip(rows, seen, strict=True):
        flags = _EMBEDDED * (one.vector is not None) | _SURE * one.sure | _PLACED * one.placed
        row["track"], row["frame"], row["time"], row["box"] = one.track_id, one.frame, one.time, one.box
        row["score"], row["quality"], row["flags"] = one.score, one.quality, flags
    head = _HEAD.pack(update.frame, update.time, *update.size, len(seen), len(ended))
    vectors = b"".join(one.vector.astype("<f4").tobytes() for one in seen if one.vector is not None)
    return head + np.array(ended, "<i8").tobytes() + rows.tobytes(), vectors


def unpack_frame(camera: str, body: bytes, vectors: bytes, dimension: int) -> TrackUpdate:
    """Return the tracks of a frame; ValueError where the blobs are none of a frame."""
    if len(body) < _HEAD.size:
        raise ValueError("a frame is cut off")
    number, time, width, height, seen, ended = _HEAD.unpack_from(body)
    if len(body) != _HEAD.size + 8 * ended + _SEEN.itemsize * seen:
        raise ValueError("a frame has a wrong size")
    gone = np.frombuffer(body, "<i8", ended, _HEAD.size)
    rows = np.frombuffer(body, _SEEN, seen, _HEAD.size + 8 * ended)
    present = (rows["flags"] & _EMBEDDED).astype(bool)
    pool = unpack_vectors(vectors, dimension)
    if len(pool) != np.count_nonzero(present):
        raise ValueError("the embeddings of a frame do not belong to its tracks")
    places = np.cumsum(present) - 1
    observations = tuple(
        TrackObservation(
            camera,
            int(row["track"]),
            int(row["frame"]),
            float(row["time"]),
            row["box"].astype(np.float32),
            float(row["score"]),
            pool[place] if there and pool[place].any() else None,  # zeroed: of a person who was forgotten
            float(row["quality"]),
            sure=bool(row["flags"] & _SURE),
            placed=bool(row["flags"] & _PLACED),
        )
        for row, there, place in zip(rows, present.tolist(), places.tolist(), strict=True)
    )
    return TrackUpdate(camera, number, time, (width, height), observations, tuple(gone.tolist()))


def without_tracks(body: bytes, vectors: bytes, tracks: set[int], dimension: int) -> bytes | None:
    """Return the embeddings of a frame with those of some tracks zeroed; None where there are none."""
    *_, seen, ended = _HEAD.unpack_from(body)
    rows = np.frombuffer(body, _SEEN, seen, _HEAD.size + 8 * ended)
    owners = rows["track"][(rows["flags"] & _EMBEDDED).astype(bool)]
    gone = np.isin(owners, list(tracks))
    if not gone.any():
        return None
    pool = unpack_vectors(vectors, dimension).copy()
    pool[gone] = 0
    return pack_vectors(pool)


def pack_vectors(vectors: Vectors | None) -> bytes:
    """Return embeddings `(N, D)` as bytes."""
    return b"" if vectors is None else vectors.astype("<f4").tobytes()


def unpack_vectors(blob: bytes, dimension: int) -> Vectors:
    """Return embeddings `(N, D)`; ValueError where they are none, or not finite."""
    if len(blob) % (4 * dimension):
        raise ValueError(f"an embedding does not have {dimension} numbers")
    vectors = np.frombuffer(blob, "<f4").reshape(-1, dimension)
    if not np.isfinite(vectors).all():
        raise ValueError("an embedding contains NaN or infinity")
    return vectors.astype(np.float32)


class Decisions:
    """Turns decisions into JSON values that contain no random id.

    An id of a decision becomes its place among all decisions, that of an identity its number, so that the
    decisions of two runs can be compared. `numbers` are those of the identities that are known at the start.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = dict(numbers)
        self._places: dict[str, int] = {}

    def know(self, identity: str, number: int) -> None:
        """Add an identity."""
        self._numbers[identity] = number

    def plain(self, decision: Decision) -> dict[str, Any]:
        """Return a decision as JSON values; all of them, in their order, must pass here."""
        if decision.identity is not None and decision.number is not None:
            self._numbers[decision.identity] = decision.number
        self._places[decision.id] = len(self._places)
        return {
            "kind": decision.kind.value,
            "camera": decision.camera,
            "track": decision.track_id,
            "number": decision.number,
            "score": decision.score,
            "runner_up": decision.runner_up,
            "threshold": decision.threshold,
            "rule": decision.rule,
            "identities": decision.identities,
            "pair_rate": decision.pair_rate,
            "search_rate": decision.search_rate,
            "evidence": decision.evidence,
            "quality": decision.quality,
            "box": decision.box.tolist(),
            "size": list(decision.size),
            "frame": decision.frame,
            "time": decision.time,
            "first_seen": decision.first_seen,
            "last_seen": decision.last_seen,
            "corrects": None if decision.corrects is None else self._places.get(decision.corrects),
            "previous": None if decision.previous is None else self._numbers.get(decision.previous),
            "reason": decision.reason,
            "ended": decision.ended,
            "since": decision.since,
        }


def to_json(body: Mapping[str, Any] | Sequence[Any]) -> str:
    """Return JSON from which every number is read back as it was."""
    return json.dumps(body, separators=(",", ":"), default=_number)


def _number(value: Any) -> Any:  # noqa: ANN401 - a number of NumPy
    return value.item()
