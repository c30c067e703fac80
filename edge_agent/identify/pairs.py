"""Scores of people who were seen together at a site, as arrays: a crowded picture renews all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.impostors import Angles, angles_of, blend

Places = NDArray[np.int64]
Floats = NDArray[np.float64]

MIN_PAIRS = 4
"""Least number of pairs of people seen together for a threshold without a prior."""
MAX_PAIRS = 400
"""Pairs kept; older ones are dropped, so that the threshold follows the light and the season."""
_LIMIT = 0.999
"""Greatest size of a value: two people in one picture are not equal."""


class Keys:
    """Numbers of texts, from 0; `texts` has the text of each number."""

    def __init__(self) -> None:
        self.texts: list[str | None] = []
        self._numbers: dict[str | None, int] = {}

    def number(self, text: str | None) -> int:
        """Return the number of a text, a new one if it has none."""
        if (number := self._numbers.get(text)) is None:
            number = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return number

    def known(self, text: str | None) -> int | None:
        """Return the number of a text; None if it has none."""
        return self._numbers.get(text)


class SiteScores:
    """Scores of people who were seen together, one value for each pair: the newest.

    They are cosines of raw embeddings that become the compared ones by the offset of their camera, so that
    they remain valid when the offset changes.
    """

    def __init__(self) -> None:
        self._people = Keys()
        self._cameras = Keys()
        self._pairs: Places = np.zeros((0, 2), np.int64)
        """`(P, 2)` numbers of people, the lower first; the pairs by age of their values, the oldest first."""
        self._values: Floats = np.zeros(0)
        self._at: Places = np.zeros(0, np.int64)
        """`(P,)` numbers of cameras."""
        self._count: int | None = None
        """Number of people in the pairs; None: not counted since the last change."""
        self.changes = 0
        """Number of values that were set."""

    def __len__(self) -> int:
        return len(self._values)

    def angles(self, relief: Callable[[str | None], float] = lambda _: 0.0) -> Angles:
        """Return arcsines of the compared values, oldest first, by the relief of a camera (None: unknown)."""
        reliefs = np.zeros(len(self._cameras.texts), np.float32)
        for number in np.flatnonzero(np.bincount(self._at, minlength=len(reliefs))).tolist():
            reliefs[number] = relief(self._cameras.texts[number])
        less = reliefs[self._at]
        return angles_of((self._values.astype(np.float32) - less) / (1 - less))

    @property
    def people(self) -> int:
        """Number of people in the pairs."""
        if self._count is None:
            self._count = int(np.count_nonzero(np.bincount(self._pairs.ravel())))
        return self._count

    def learn(self, person_a: str, person_b: str, cosine: float, camera: str | None = None) -> None:
        """Set the value of a pair of people who were seen together at a camera."""
        self.learn_all([person_a, person_b], np.array([[0, 1]]), np.array([cosine]), camera)

    def learn_all(
        self, people: Sequence[str], pairs: Places, cosines: Floats, camera: str | None = None
    ) -> None:
        """Set the values `(P,)` of `(P, 2)` pairs, by place, of people who were seen together at a camera."""
        numbers = np.array([self._people.number(person) for person in people], np.int64)
        at = np.full(len(pairs), self._cameras.number(camera))
        self._put(numbers[pairs], np.clip(cosines, -_LIMIT, _LIMIT), at)
        if len(self._people.texts) > 8 * MAX_PAIRS:
            self._forget_unused()

    def _put(self, pairs: Places, values: Floats, cameras: Places) -> None:
        """Set values, one after another; the latest pairs stay."""
        self.changes += len(values)
        self._count = None
        pairs = np.concatenate([self._pairs, np.sort(pairs, axis=1)])
        values, cameras = np.concatenate([self._values, values]), np.concatenate([self._at, cameras])
        kept = _last(pairs[:, 0] << 32 | pairs[:, 1])[-MAX_PAIRS:]
        self._pairs, self._values, self._at = pairs[kept], values[kept], cameras[kept]

    def _forget_unused(self) -> None:
        """Number the people of the present pairs again."""
        former, self._people = self._people.texts, Keys()
        used, places = np.unique(self._pairs, return_inverse=True)
        numbers = np.array([self._people.number(former[one]) for one in used.tolist()], np.int64)
        self._pairs = numbers[places.reshape(self._pairs.shape)]

    def rename(self, old: str, new: str) -> None:
        """Change the key of a person; of pairs that become one the newer value stays."""
        before = self._people.known(old)
        if before is None or before == (after := self._people.number(new)):
            return
        theirs = (self._pairs == before).any(axis=1)
        if not theirs.any():
            return
        pairs, values, cameras = self._pairs[theirs], self._values[theirs], self._at[theirs]
        others = ~theirs
        self._pairs, self._values, self._at = self._pairs[others], self._values[others], self._at[others]
        apart = ~(pairs == after).any(axis=1)
        pairs[pairs == before] = after
        self._put(pairs[apart], values[apart], cameras[apart])

    def drift(self) -> float | None:
        """Return the shift of the newer half of the pairs, in standard deviations; None: too few pairs."""
        values = self.angles()
        if len(values) < 2 * MIN_PAIRS:
            return None
        older, newer = np.array_split(values, 2)
        return float((newer.mean() - older.mean()) / max(float(older.std(ddof=1)), 0.05))

    def to_json(self) -> dict[str, Any]:
        """Return the argument of `load`."""
        people = [str(text) for text in self._people.texts]
        keys = ["|".join(sorted((people[a], people[b]))) for a, b in self._pairs.tolist()]
        cameras = [self._cameras.texts[number] for number in self._at.tolist()]
        return {
            "pairs": dict(zip(keys, self._values.tolist(), strict=True)),
            "cameras": {key: camera for key, camera in zip(keys, cameras, strict=True) if camera is not None},
        }

    def load(self, stored: Mapping[str, Any]) -> None:
        """Add the pairs of an earlier run."""
        cameras = stored.get("cameras")
        cameras = cameras if isinstance(cameras, dict) else {}  # missing in files of earlier versions
        for key, value in stored.get("pairs", {}).items():
            people, camera = str(key).split("|"), cameras.get(key)
            if len(people) == 2 and isinstance(value, (int, float)) and -1.0 <= value <= 1.0:
                self.learn(people[0], people[1], float(value), camera if isinstance(camera, str) else None)

    def threshold(self, target: float) -> float | None:
        """Return the cosine that a pair reaches with this probability, by these scores alone."""
        if len(self) < MIN_PAIRS:
            return None
        spread = blend(None, self.angles(), self.people, np.zeros(0), 0)
        return None if spread is None else spread.reached_by(target)


def _last(keys: Places) -> Places:
    """Return the rising places of those values that do not occur again later."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ends = np.append(ordered[1:] != ordered[:-1], True) if len(keys) else np.zeros(0, np.bool_)
    return np.sort(order[ends])
