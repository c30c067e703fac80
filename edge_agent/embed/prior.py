"""The prior of a network: which scores it gives for different people and for the same, on rendered people.

A threshold cannot be taken from another network, so each network is measured itself, on the people of
`embed.people`. Priors of known networks ship with their reference embeddings; those of others are measured at
the first start, and kept in the state folder.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError, EngineError, InputError, StorageError
from edge_agent.core.files import read_object
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.private import private_folder
from edge_agent.embed import people
from edge_agent.engine import is_simulated
from edge_agent.engine.golden import SHIPPED
from edge_agent.engine.upstream import UPSTREAM
from edge_agent.identify.prior import Prior, Scores, Spread
from edge_agent.track.crops import JoinLevels

if TYPE_CHECKING:
    from edge_agent.embed.embedder import Embedder

Vectors = NDArray[np.float32]
Rows = NDArray[np.intp]
_log = structlog.get_logger(__name__)

PRIORS = "priors"
"""Folder of measured priors, in the state folder."""
SOURCE = "rendered people"
LONGEST_S = 20.0
"""Time after which no further camera is measured."""
_FEWEST = 3
"""Cameras that are measured in any case."""
_TAKEN, _CONTINUED = 0.01, 0.9
"""Share of crops of others, and of the own, that join a group."""
_KEPT = 0.95
_MOST_WIDER = 1.5
_LEAST_SD = 1e-3


@dataclass(frozen=True, slots=True)
class NetworkPrior:
    """What a network is expected to give: scores of tracks, and levels that group crops without a track."""

    scores: Prior
    joins: JoinLevels

    def to_json(self) -> dict[str, Any]:
        """Return the argument of `from_json`."""
        return {"version": people.VERSION, "scores": self.scores.to_json(), "joins": asdict(self.joins)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> NetworkPrior:
        """Read a prior; ValueError when it is not one, or of other people."""
        try:
            joins = JoinLevels(float(stored["joins"]["live"]), float(stored["joins"]["lost"]))
            version, scores = stored["version"], Prior.from_json(stored["scores"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a prior: {error!r}") from error
        if version != people.VERSION or not -1 <= joins.live <= joins.lost <= 1:
            raise ValueError("not a prior of the people of this version")
        return cls(scores, joins)


def known_prior(space: str, state: Path) -> NetworkPrior | None:
    """Return the prior of an embedding space that ships, or is kept in `state`; None without one."""
    for path in (SHIPPED / f"{space}.json", state / PRIORS / f"{space}.json"):
        # One that is missing, damaged, or of other people is measured again.
        with contextlib.suppress(EdgeAgentError, KeyError, ValueError, OverflowError):
            return NetworkPrior.from_json(read_object(path)["prior"])
    return None


def load_or_measure(embedder: Embedder, state: Path, progress: Callable[[str], None]) -> NetworkPrior | None:
    """Return the prior of the entered embedder's network; `progress` gets the steps of a measurement.

    None where there is no network to measure, or it does not answer now.
    """
    info = embedder.info
    if is_simulated(info.backend):
        return None
    known = known_prior(info.space, state)
    if known is not None or info.backend == UPSTREAM or embedder.engine.away:
        return known
    began = time.perf_counter()
    try:
        prior = measure_prior(embedder.embed_images, progress)
    except (EngineError, InputError, ValueError) as problem:
        _log.warning("prior_not_measured", model=info.model, error=str(problem))
        return None
    _log.info("prior_measured", model=info.model, seconds=round(time.perf_counter() - began, 1))
    try:
        private_folder(state / PRIORS)
        document = {"kind": "prior", "model": info.model, "prior": prior.to_json()}
        write_json_atomic(state / PRIORS / f"{info.space}.json", document, mode=0o600)
    except (StorageError, OSError) as problem:
        _log.warning("prior_not_kept", error=str(problem))  # the next start measures again
    return prior


def measure_prior(
    embed: Callable[[Sequence[NDArray[np.uint8]]], Vectors],
    progress: Callable[[str], None] = lambda _: None,
    longest_s: float = LONGEST_S,
) -> NetworkPrior:
    """Measure a network by `embed`, which gives `(N, D)` unit rows for N crops.

    Raises:
        EngineError: the network failed.
        ValueError: its embeddings make no distribution.
    """
    crops, began, start = people.crops(), time.monotonic(), 0
    cameras: list[_Camera] = []
    for camera in range(people.CAMERAS):
        if camera >= _FEWEST and time.monotonic() - began > longest_s:
            break
        progress(f"measuring the network on rendered people, camera {camera + 1} of {people.CAMERAS}")
        visits = people.visits(camera)
        stop = start + len(visits) * people.CROPS
        rows = embed(crops[start:stop]).reshape(len(visits), people.CROPS, -1)
        cameras.append(_Camera(visits, rows))
        start = stop
    scores = Prior(_scores(cameras, centred=False), _scores(cameras, centred=True), SOURCE)
    return NetworkPrior(scores, _joins(cameras))


def _joins(cameras: Sequence[_Camera]) -> JoinLevels:
    """Return the levels between one crop and the mean of a few others.

    One in 100 crops of another person reaches the lower level, unless too many of the own would fail.
    """
    own, others = [], []
    for one in cameras:
        for crop in range(people.CROPS):
            rest = _unit(np.delete(one.rows, crop, axis=1).mean(axis=1))
            own.append(_dots(one.rows[:, crop], rest))
            cosines = one.rows[one.first, crop] @ rest[one.first].T
            others.append(cosines[~np.eye(len(cosines), dtype=np.bool_)])
    genuine, impostors = (Spread.of(np.concatenate(found), people.PEOPLE) for found in (own, others))
    live = min(impostors.reached_by(_TAKEN), genuine.reached_by(_CONTINUED))
    return JoinLevels(live, max(live, (live + math.sin(genuine.mean)) / 2))


class _Camera:
    """Embeddings of one camera: `tracks` `(V, D)` are the pooled crops of its visits, of length 1."""

    def __init__(self, visits: Sequence[people.Visit], rows: Vectors) -> None:
        self.rows = rows
        self.tracks = _unit(rows.mean(axis=1))
        self.people = np.array([visit.person for visit in visits])
        again = np.array([visit.again for visit in visits])
        self.first, self.back = np.flatnonzero(~again), np.flatnonzero(again)
        self.first_visits = {int(self.people[row]): int(row) for row in self.first}
        self._total = self.tracks[self.first].sum(axis=0)

    def of(self, rows: Rows, without: Rows | None) -> Vectors:
        """Return tracks `(N, D)`, minus the mean of all people but those of the tracks `without` `(N, K)`.

        None: the tracks as they are. A person's own share in the mean would make everybody unlike.
        """
        if without is None:
            return self.tracks[rows]
        others = (self._total - self.tracks[without].sum(axis=1)) / self.others(without)
        return _unit(self.tracks[rows] - others)

    def others(self, without: Rows) -> int:
        """Return the number of people in such a mean."""
        return len(self.first) - int(without.shape[1])


def _unit(vectors: Vectors) -> Vectors:
    rows: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return rows


def _scores(cameras: Sequence[_Camera], *, centred: bool) -> Scores:
    impostors, genuine, across, genuine_across = [], [], [], []
    for at, one in enumerate(cameras):
        both = one.first[np.stack(np.triu_indices(len(one.first), 1), axis=1)]
        impostors.append(_together(one, both[:, 0], both[:, 1], both if centred else None))
        before = np.array([one.first_visits[int(one.people[row])] for row in one.back])
        genuine.append(_together(one, before, one.back, before[:, None] if centred else None))
        for other in cameras[:at]:
            rows, columns = (found.ravel() for found in np.meshgrid(one.first, other.first, indexing="ij"))
            left = one.of(rows, rows[:, None] if centred else None)
            cosines = _dots(left, other.of(columns, columns[:, None] if centred else None))
            same = one.people[rows] == other.people[columns]
            across.append(cosines[~same])
            genuine_across.append(cosines[same])
    count = len(np.unique(np.concatenate([one.people for one in cameras])))
    return Scores(
        impostors=_at_a_place(impostors, count),
        impostors_across=_at_a_place(across, count),
        genuine=Spread.of(np.concatenate(genuine), count),
        genuine_across=Spread.of(np.concatenate(genuine_across), count),
    )


def _together(one: _Camera, rows: Rows, columns: Rows, without: Rows | None) -> Vectors:
    """Return the cosines `(N,)` of tracks of one camera."""
    cosines = _dots(one.of(rows, without), one.of(columns, without))
    if without is None:
        return cosines
    # Both sides share the error of the mean, which adds 1/n to the product, and to the squared lengths.
    error = np.float32(1 / one.others(without))
    return np.asarray(cosines * (1 + error) - error, np.float32)


def _dots(left: Vectors, right: Vectors) -> Vectors:
    cosines: Vectors = np.einsum("nd,nd->n", left, right)
    return cosines


def _at_a_place(found: Sequence[Vectors], count: int) -> Spread:
    """Return the scores of impostors at one place, from those of several, which have means of their own.

    Places differ in their deviation, too: that which 19 of 20 further places stay below is returned, a
    one-sided prediction limit (Student's t).
    """
    from scipy.special import stdtrit

    angles = [np.arcsin(np.clip(cosines.astype(np.float64), -1, 1)) for cosines in found]
    centred = np.concatenate([one - one.mean() for one in angles])
    sd = max(float(centred.std()), _LEAST_SD)
    deviations, places = np.array([one.std() for one in angles]), len(angles)
    spread = float(stdtrit(places - 1, _KEPT)) * float(deviations.std(ddof=1)) * (1 + 1 / places) ** 0.5
    wider = float(np.clip((float(deviations.mean()) + spread) / sd, 1.0, _MOST_WIDER))
    mean = float(np.mean([one.mean() for one in angles]))
    return Spread(mean, sd * wider, float((centred**3).mean()) / sd**3, count)
