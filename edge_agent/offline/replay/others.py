"""Repeats in a replay what others did to the gallery: commands, expiry, other processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_agent.core.errors import InputError
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.rows import Rows
from edge_agent.record.entries import Decisions, Vectors

_VALUES = ("name", "kind", "created", "last_seen", "sightings", "ttl_s", "seen")


@dataclass(frozen=True, slots=True)
class Others:
    """Changes a gallery as others changed the recorded one."""

    gallery: Gallery
    number: Callable[[int], int]
    """Returns the number here of a recorded identity; InputError where there is none."""
    given: dict[int, int]
    """Gets the numbers of identities that are added."""
    plain: Decisions

    def repeat(self, body: Mapping[str, Any], vectors: Vectors, *, with_vectors: bool) -> int:
        """Repeat one change; return how much of it concerned nobody here.

        Without `with_vectors`, embeddings are left out: they are of another network.
        """
        missed = 0
        for recorded, into in body["gone"]:
            try:
                gone = self.number(recorded)
                if into is None:
                    self.gallery.forget(gone)
                    continue
                keep = self.number(into)
                if keep != gone:
                    self.gallery.merge(keep, gone)
            except InputError:
                missed += 1
        if with_vectors and body.get("means"):  # missing in earlier recordings
            self._share(body["means"])
        with self.gallery.file.changing() as rows:
            if with_vectors:
                missed += self._people(rows, body["people"], vectors)
            missed += self._apart(rows, body["apart"])
        return missed

    def _share(self, means: Sequence[Sequence[Any]]) -> None:
        """Let means of cameras of other devices count."""
        file = self.gallery.file
        with file.changing() as rows:
            for camera, epoch, people, total in means:
                rows.site.put_mean(camera, epoch, people, np.array(total, np.float64))
            file.means.share_all(rows.site.means(self.gallery.dimension))
            file.recentre()

    def _people(self, rows: Rows, people: Sequence[Mapping[str, Any]], vectors: Vectors) -> int:
        """Set name, kind and exemplars of people; who is new is added. Return how many could not be."""
        missed = first = 0
        for person in people:
            last = first + len(person["exemplars"])
            own, first = vectors[first:last], last
            try:
                here = self.number(person["number"])
            except InputError:
                here = 0
            found = rows.store.rows("SELECT name, kind FROM identity WHERE number = ?", (here,))
            if not found:
                missed += not self._add(rows, person, own)
                continue
            if found[0] != (person["name"], person["kind"]):
                rows.update(here, "name = ?, kind = ?", _free(rows, person["name"], here), person["kind"])
            if here == person["number"]:
                self._replace(rows, here, person, own)
        return missed

    def _apart(self, rows: Rows, pairs: Sequence[Sequence[Any]]) -> int:
        """Keep pairs of people apart; return how many could not be."""
        present = set(rows.apart.pairs())
        missed = 0
        for one, other, reason in pairs:
            try:
                first, second = sorted((self.number(one), self.number(other)))
                if (first, second) not in present:
                    rows.apart.add(first, second, reason)
            except InputError:
                missed += 1
        return missed

    def _replace(self, rows: Rows, here: int, person: Mapping[str, Any], vectors: Vectors) -> None:
        wanted = [(row.tobytes(), *one) for row, one in zip(vectors, person["exemplars"], strict=True)]
        found = rows.store.rows(
            "SELECT vector, quality, origin, camera, time, epoch FROM exemplar WHERE number = ? ORDER BY row",
            (here,),
        )
        if found != wanted:
            rows.store.run("DELETE FROM exemplar WHERE number = ?", (here,))
            _insert(rows, here, wanted)

    def _add(self, rows: Rows, person: Mapping[str, Any], vectors: Vectors) -> bool:
        values = {key: person[key] for key in _VALUES}
        values["name"] = _free(rows, person["name"], 0)
        if rows.store.rows("SELECT 1 FROM identity WHERE id = ?", (person["id"],)):
            return False
        number = rows.insert(id=person["id"], **values)
        if number != person["number"] and not rows.store.rows(
            "SELECT 1 FROM identity WHERE number = ?", (person["number"],)
        ):
            rows.store.run("UPDATE identity SET number = ? WHERE number = ?", (person["number"], number))
            number = person["number"]
        self.given[person["number"]] = number
        self.plain.know(person["id"], number)
        _insert(
            rows,
            number,
            [(row.tobytes(), *one) for row, one in zip(vectors, person["exemplars"], strict=True)],
        )
        return True


def _insert(rows: Rows, number: int, exemplars: list[tuple[Any, ...]]) -> None:
    rows.store.run_many(
        "INSERT INTO exemplar (number, vector, quality, origin, camera, time, epoch)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(number, *one) for one in exemplars],
    )
    rows.exemplars.mark(number)


def _free(rows: Rows, name: str | None, number: int) -> str | None:
    """Return a name unless somebody else has it: that happens only where the replay went another way."""
    taken = rows.store.rows("SELECT 1 FROM identity WHERE name = ? AND number <> ?", (name, number))
    return None if taken else name
