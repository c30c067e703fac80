"""Comparison without the offsets of cameras: for tracks, exemplars, and cameras that are moved.

The means come from what is stored: each identity votes for the view of its exemplars. So merging, forgetting,
expiry and import keep them right. People who get no identity, as with enrolment `watchlist`, vote when their
track ends; only sums of ten or more are stored, since that of a few is nearly their embeddings.

A camera was moved when the latest people differ, as a group, from those before by more than groups of that
size do. Their exemplars then move to another epoch, an earlier one that fits or a new one. Older exemplars
keep the mean of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.gallery.exemplars import View
from edge_agent.gallery.means import (
    FEWEST_GUESTS,
    Bias,
    Seen,
    Sums,
    Vectors,
    centred,
    likeness_of,
    restored,
    weight,
)
from edge_agent.gallery.rows import CAMERAS_FACT
from edge_agent.gallery.sync import Facts, SyncedFile

_log = structlog.get_logger(__name__)

LATEST = 16
"""Latest people of a camera who are compared with those before."""
_BEFORE = 20
"""Least number of people before them."""
_FAR = 2.5
"""Squared distance of the two means, relative to that expected of two groups of one view, from which a camera
was moved."""
_NEAR = 2.0
"""The same, up to which an earlier epoch fits."""
_OTHER_VIEW = 0.01
"""Squared distance of two offsets from which they are worth a search each."""


class Cameras:
    """The cameras of an open gallery. Any thread may call it, after `start`."""

    def __init__(self, file: SyncedFile) -> None:
        self._file = file
        self._facts = Facts(file)
        self._epochs: dict[str, int] = {}
        self._guests: dict[str, dict[str, Any]] = {}
        """Stored people without an identity, by camera."""
        self._unstored: dict[str, int] = {}
        self._mark: Any = None

    def start(self) -> None:
        """Compare without offsets from now on; until then exemplars are compared as they are stored."""
        with self._file.reading():
            self.reload()
            self._file.centre()

    def reload(self) -> None:
        """Take over what is stored that does not come from identities, and forget what was known of it."""
        with self._file.reading():
            self._mark = self._file.cameras_mark
            stored = _checked(self._facts.get(CAMERAS_FACT), self._file.space.dimension)
            self._epochs, self._guests = stored["epochs"], stored["guests"]
            self._unstored.clear()
            means = self._file.means
            means.clear_guests()
            means.latest.clear()
            for camera, found in self._guests.items():
                vector = np.array(found["sum"], np.float64)
                means.guests[means.view(camera, found["epoch"])] = float(found["people"]), vector
            self._file.recentre(erased=True)

    def epoch(self, camera: str) -> int:
        """Return the epoch of a camera: which of its views it has now."""
        if self._mark != self._file.cameras_mark:
            self.reload()  # another process erased all, or imported an archive into an empty gallery
        return self._epochs.get(camera, 0)

    def centred(self, camera: str, vectors: Vectors) -> Vectors:
        """Return raw embeddings `(N, D)` of people at a camera as they are compared: `(N, D)` of length 1."""
        with self._file.reading():
            view = self._view(camera)
            return centred(vectors, self._file.means.offsets[view])

    def of_others(
        self, vectors: Vectors, views: Sequence[View], means: Mapping[View, tuple[float, Sums]]
    ) -> Vectors:
        """Return raw embeddings `(N, D)` of N views as they would be compared here, `(N, D)` of length 1.

        `means` has the number of people and the sum of their votes `(D,)` for views that this device lacks.
        """
        with self._file.reading():
            own = self._file.means
            lacking = [view for view in dict.fromkeys(views) if own.find(*view) is None]
            nobody = (0.0, np.zeros(self._file.space.dimension))
            found = [means.get(view, nobody) for view in lacking]
            offsets: dict[View, Vectors] = {}
            if found:
                people, totals = (np.array(each) for each in zip(*found, strict=True))
                offsets = dict(zip(lacking, own.with_others(people, totals), strict=True))
            for view in set(views) - offsets.keys():
                offsets[view] = own.offsets[own.view(*view)]
            return centred(vectors, np.stack([offsets[view] for view in views]))

    def elsewhere(self, camera: str, vector: Vectors, most: int) -> Vectors:
        """Return a raw embedding `(D,)` of a camera as other views would give it: at most `(most, D)`.

        The first is the embedding itself. The views are those that differ most, of all devices.
        """
        with self._file.reading():
            means, own = self._file.means, self._view(camera)
            asked, given = vector[None], means.offsets[own]
            neutral, others = centred(asked, given), means.offsets[means.counts() > 0]
            chosen, far = [asked], _squares(others - given)
            while len(chosen) < most and len(others) and far.max() > _OTHER_VIEW:
                place = int(far.argmax())
                chosen.append(restored(neutral, others[place]))
                far = np.minimum(far, _squares(others - others[place]))
            return np.concatenate(chosen)

    def bias(self, camera: str) -> Bias:
        """Return what is subtracted at a camera, for thresholds and scores of raw embeddings."""
        with self._file.reading():
            return self._file.means.bias(self._view(camera))

    def least_bias(self, numbers: Collection[int]) -> Bias | None:
        """Return the bias of that view of some identities where least is subtracted; None: no exemplars."""
        with self._file.reading():
            return self._least(set(self._file.index.views(numbers).tolist()))

    def least_bias_of(self, views: Collection[View]) -> Bias | None:
        """Return the bias of that view where least is subtracted; None: of one that is not known here."""
        with self._file.reading():
            found = {self._file.means.find(*view) for view in views}
            return None if None in found else self._least({view for view in found if view is not None})

    def _least(self, views: Collection[int]) -> Bias | None:
        biases = [self._file.means.bias(view) for view in views]
        return min(biases, key=lambda bias: bias.relief, default=None)

    def cosines(self, camera: str, vectors: Vectors, voted: Collection[bool]) -> NDArray[np.float32]:
        """Return `(N, N)` compared cosines of people seen together at a camera; raw embeddings `(N, D)`.

        Each value is that of a newcomer and one who voted, as in a search: of the votes of two people, that
        of one is left out, since a mean lowers the cosine of two who are both in it. `voted`: `(N,)`, whether
        the person's vote is in the mean.
        """
        with self._file.reading():
            view = self._view(camera)
            offset = self._file.means.offsets[view]
            people = float(self._file.means.counts()[view])
        own = np.array(list(voted), np.float32)[:, None] * np.float32(weight(people) / max(people, 1.0))
        moved = vectors - offset
        # Row i, column j: of `moved[j] + own[i] * vectors[i]`, and of the same for i.
        given = own * (vectors @ moved.T)
        square = own**2 * np.einsum("nd,nd->n", vectors, vectors)[:, None]
        products = moved @ moved.T
        lengths = np.sqrt(np.maximum(products.diagonal() + 2 * given + square, 1e-12))
        products += given + given.diagonal()[:, None] + square
        one_way = products / (lengths * lengths.diagonal()[:, None])
        return np.asarray((one_way + one_way.T) / 2, np.float32)

    def exemplars(self, number: int) -> tuple[Vectors, tuple[str, ...]]:
        """Return the exemplars of an identity as they are compared, `(M, D)`, and their origins, by age."""
        with self._file.reading():
            return self._file.index.vectors([number])[1], self._file.origins(number)

    def saw(self, camera: str, origin: str, vector: Vectors, number: int | None) -> None:
        """Note the track of a person that ended: its raw embedding `(D,)`, and its identity if it has one."""
        with self._file.reading():
            means, view = self._file.means, self._view(camera)
            latest = means.latest.setdefault(camera, {})
            key = origin if number is None else f"#{number}"
            latest.pop(key, None)
            latest[key] = Seen(origin, vector.copy(), number)
            if number is None:
                means.welcome(view, vector)
                self._file.recentre()
            if len(latest) > LATEST and latest.pop(next(iter(latest))).number is None:
                self._unstored[camera] = self._unstored.get(camera, 0) + 1
                self._store(camera)
            if len(latest) == LATEST and (epoch := self._moved(camera, view)) is not None:
                self._begin(camera, epoch)

    def _view(self, camera: str) -> int:
        return self._file.means.view(camera, self.epoch(camera))

    def _moved(self, camera: str, view: int) -> int | None:
        """Return the epoch that the latest people of a camera belong to, if it is not the present one."""
        means = self._file.means
        vectors = [one.vector for one in means.latest[camera].values()]
        latest = np.concatenate(vectors, dtype=np.float64).reshape(len(vectors), -1)
        people, total = means.votes(view)
        people, total = people - len(latest), total - latest.sum(axis=0)
        far = _distance(latest, people, total)
        if far is None or far < _FAR:
            return None
        begin = _begin_of_change(latest - total / people)
        if begin > LATEST // 8:
            return None  # some of the latest still belong to the present view
        epochs = means.epochs(camera)
        counts, totals = means.counts(), means.totals()
        distances = {
            epoch: _distance(latest[begin:], counts[other], totals[other])
            for epoch, other in epochs.items()
            if other != view
        }
        near = {epoch: one for epoch, one in distances.items() if one is not None and one < _NEAR}
        return min(near, key=near.__getitem__) if near else max(epochs) + 1

    def _begin(self, camera: str, epoch: int) -> None:
        """Move the latest people of a camera to another epoch, which is in force from now on."""
        means = self._file.means
        latest = means.latest.pop(camera).values()
        before = self._view(camera)
        with self._file.changing() as rows:
            rows.exemplars.move([one.origin for one in latest if one.number is not None], epoch)
            self._epochs[camera] = epoch
            for one in latest:
                if one.number is None:
                    means.welcome(before, one.vector, -1)
                    means.welcome(self._view(camera), one.vector)
        self._guests.pop(camera, None)
        self._unstored[camera] = sum(one.number is None for one in latest)
        self._store(camera)
        self._write()
        self._file.recentre()
        _log.warning("camera_moved", camera=camera, view=epoch, people=len(latest))

    def _store(self, camera: str) -> None:
        """Store the people of a camera without an identity, but for the latest, ten or more at once."""
        if self._unstored[camera] < FEWEST_GUESTS:
            return
        people, total = self._file.means.guests[self._view(camera)]
        pending = [
            one.vector for one in self._file.means.latest.get(camera, {}).values() if one.number is None
        ]
        if pending:
            people, total = people - len(pending), total - np.sum(pending, axis=0, dtype=np.float64)
        rounded = [round(value, 5) for value in total.tolist()]
        self._guests[camera] = {"epoch": self.epoch(camera), "people": people, "sum": rounded}
        self._unstored[camera] = 0
        self._write()

    def _write(self) -> None:
        """Store epochs and guests, unless another process has replaced them meanwhile."""
        known = {"epochs": self._epochs, "guests": self._guests}
        self._facts.change(
            CAMERAS_FACT,
            lambda stored: known if self._mark == self._file.cameras_mark else stored,
            durable=False,
        )


def _checked(stored: object, dimension: int) -> dict[str, Any]:
    """Return the usable part of what was stored."""
    found = stored if isinstance(stored, dict) else {}
    epochs, guests = (
        value if isinstance(value, dict) else {} for value in (found.get("epochs"), found.get("guests"))
    )
    return {
        "epochs": {camera: epoch for camera, epoch in epochs.items() if _is_epoch(epoch)},
        "guests": {camera: one for camera, one in guests.items() if _is_sum(one, dimension)},
    }


def _is_epoch(found: object) -> bool:
    return type(found) is int and found >= 0


def _is_sum(found: object, dimension: int) -> bool:
    if not isinstance(found, dict) or not _is_epoch(found.get("epoch")):
        return False
    people, total = found.get("people"), found.get("sum")
    if not isinstance(people, (int, float)) or not isinstance(total, list) or len(total) != dimension:
        return False
    return people >= 1 and all(isinstance(one, (int, float)) for one in total)


def _distance(latest: NDArray[np.float64], people: float, total: NDArray[np.float64]) -> float | None:
    """Return the squared distance of the means of two groups, relative to that expected of one population."""
    likeness = likeness_of(people, total)
    if people < _BEFORE or likeness is None:
        return None
    gap = latest.mean(axis=0) - total / people
    return float(gap @ gap) / (max(1 - likeness, 1e-6) * (1 / len(latest) + 1 / people))


def _squares(rows: Vectors) -> NDArray[np.float32]:
    """Return the squared lengths `(N,)` of vectors `(N, D)`."""
    squares: NDArray[np.float32] = np.einsum("nd,nd->n", rows, rows)
    return squares


def _begin_of_change(latest: NDArray[np.float64]) -> int:
    """Return where in `(N, D)` differences from a mean, by age, those begin that are like the newest."""
    gap = latest[len(latest) // 2 :].mean(axis=0)
    beyond = latest @ gap / max(float(gap @ gap), 1e-9) - 0.5
    return int(np.cumsum(beyond[::-1])[::-1].argmax())
