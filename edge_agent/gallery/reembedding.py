"""Moves a gallery file to another embedding space, by the pictures that it keeps.

New embeddings are collected beside the present ones, which stay in force; a kill loses at most a batch. Then
one transaction exchanges them. The former ones stay in the file until they are confirmed or restored, so that
whoever is erased meanwhile is erased there, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from edge_agent.core.errors import InputError, StorageError
from edge_agent.gallery.exemplars import Source
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.rows import CAMERAS_FACT, OWN_FACTS, SCRUB_FACT, Identity, Policy, Rows
from edge_agent.gallery.store import Store
from edge_agent.gallery.sync import Space, owner_lock

_OWN = f"key NOT IN ({', '.join('?' * len(OWN_FACTS))})"
"""Facts of the embedding space."""
_EXEMPLAR = "row, number, vector, quality, origin, camera, time, epoch"
_TARGET, _PAST = "target", "past"
"""Spaces in the meta values: of a change that is not complete, and the one that can be restored."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Result of a change: the space now, and who can be recognised, or must be seen again."""

    space: str
    dimension: int
    people: int
    """Identities with exemplars."""
    exemplars: int
    unseen: tuple[Identity, ...]
    """Identities without: they keep id and name, and are not found before they are merged or seen again."""


class Reembedding:
    """The gallery file of a state folder. A context manager, which holds the owner's lock if it is `alone`.

    Only `confirm` may run beside an agent. StorageError on entering: there is no gallery, it is damaged, or
    an agent runs.
    """

    def __init__(self, path: Path, key: bytes | None, *, alone: bool = True) -> None:
        self._path, self._key, self._alone = path, key, alone
        self._lock = owner_lock(path)
        self._opened: Store | None = None

    def __enter__(self) -> Reembedding:
        if not self._path.is_file():
            raise StorageError(f"there is no gallery at {self._path}")
        if self._alone and not self._lock.acquire():
            raise StorageError(
                f"{self._path} is in use by a running agent (process {self._lock.holder()}), which compares"
                " by its present embeddings; stop it first"
            )
        try:
            self._opened = Store(self._path, key=self._key)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()
        self._lock.release()

    @property
    def space(self) -> Space:
        """The present embedding space."""
        if (space := Space.stored(self._store)) is None:
            raise InputError(f"{self._path} has no identities yet")
        return space

    @property
    def past(self) -> Space | None:
        """The space that can be restored; None: there is none."""
        return self._noted(_PAST)

    def begin(self, target: Space) -> int:
        """Begin or continue the change to a space; return the number of pictures still to embed.

        Raises:
            InputError: the gallery is of this space, keeps no pictures, or a change is not confirmed yet.
        """
        if self.past is not None:
            raise InputError(
                f"the change of {self._path} from {self.past} is not confirmed yet: confirm it (--confirm),"
                " or restore the former space (--restore)"
            )
        if target == self.space:
            raise InputError(f"{self._path} is of {target} already: the network is the same")
        if not self._store.value("SELECT count(*) FROM crop WHERE role = 'kept'"):
            raise InputError(
                f"{self._path} keeps no pictures, so nobody can be moved; set gallery.keep_crops, and let the"
                " agent see the people again with the present network"
            )
        if self._noted(_TARGET) != target:
            with self._store.change():
                self._store.run("DELETE FROM reembedded")
                self._note(_TARGET, target)
        left = "SELECT count(*) FROM crop WHERE role = 'kept' AND row NOT IN (SELECT row FROM reembedded)"
        return int(self._store.value(left))

    def batches(self, size: int) -> Iterator[list[tuple[int, bytes]]]:
        """Yield the pictures still to embed, with their rows; `store` each list before the next."""
        statement = (
            "SELECT row, jpeg FROM crop WHERE role = 'kept' AND row NOT IN (SELECT row FROM reembedded)"
            " ORDER BY row LIMIT ?"
        )
        while found := self._store.rows(statement, (size,)):
            yield [(row, jpeg) for row, jpeg in found]

    def store(self, rows: Sequence[int], vectors: Sequence[Vectors | None]) -> None:
        """Store new embeddings, each `(D,)`; None for a picture that cannot be used."""
        with self._store.change(durable=False):
            self._store.run_many(
                "INSERT OR REPLACE INTO reembedded SELECT row, ? FROM crop WHERE row = ?",
                [
                    (b"" if vector is None else vector.astype("<f4").tobytes(), row)
                    for row, vector in zip(rows, vectors, strict=True)
                ],
            )

    def finish(self) -> Moved:
        """Put the new embeddings in force, all or none: one exemplar for each track of an identity."""
        target, former = self._noted(_TARGET), self.space
        if target is None:
            raise InputError("no change has begun")
        content = self._rows(target)
        with self._store.change():
            self._store.run("DELETE FROM past_exemplar")
            self._store.run("DELETE FROM past_fact")
            self._store.run(f"INSERT INTO past_exemplar SELECT {_EXEMPLAR} FROM exemplar")  # noqa: S608
            self._store.run(f"INSERT INTO past_fact SELECT key, value FROM fact WHERE {_OWN}", OWN_FACTS)  # noqa: S608
            cameras = self._store.value("SELECT value FROM fact WHERE key = ?", (CAMERAS_FACT,))
            self._store.run("DELETE FROM exemplar")
            for number in [one.number for one in content.identities()]:
                self._make_exemplars(content, number)
            self._swap_crops()
            self._store.run(f"DELETE FROM fact WHERE {_OWN}", OWN_FACTS)  # noqa: S608
            if cameras is not None and isinstance(known := json.loads(cameras), dict):
                # Which view an exemplar is of stays known; the sums of embeddings are of the former space.
                text = json.dumps({"epochs": known.get("epochs", {}), "guests": {}})
                self._store.run("INSERT INTO fact VALUES (?, ?)", (CAMERAS_FACT, text))
            self._enter(content, target, past=former)
        return self._moved(content, target)

    def restore(self) -> Moved:
        """Put the former embeddings in force again; people who came since must be seen again."""
        past = self._required_past()
        content = self._rows(past)
        with self._store.change():
            self._store.run("DELETE FROM exemplar")
            self._store.run(f"INSERT INTO exemplar ({_EXEMPLAR}) SELECT {_EXEMPLAR} FROM past_exemplar")  # noqa: S608
            self._swap_crops()
            self._store.run("UPDATE crop SET vector = x'' WHERE row NOT IN (SELECT row FROM reembedded)")
            self._store.run(f"DELETE FROM fact WHERE {_OWN}", OWN_FACTS)  # noqa: S608
            self._store.run("INSERT INTO fact SELECT key, value FROM past_fact")
            content.drop_past()
            self._enter(content, past, past=None)
        self._store.scrub(wait=True)
        return self._moved(content, past)

    def confirm(self) -> Space:
        """Erase the former embeddings; return their space."""
        past = self._required_past()
        with self._store.change():
            self._rows(self.space).drop_past()
            self._store.run("INSERT OR REPLACE INTO fact VALUES (?, 'true')", (SCRUB_FACT,))
        self._store.scrub(wait=True)
        return past

    # ---- inside a change

    def _make_exemplars(self, content: Rows, number: int) -> None:
        """Add the new exemplars of an identity: for each origin the mean of its pictures, by quality."""
        found = self._store.rows(
            "SELECT origin, camera, quality, time, reembedded.vector, coalesce((SELECT max(epoch) FROM"
            " past_exemplar WHERE past_exemplar.number = crop.number"
            " AND past_exemplar.origin = crop.origin), 0)"
            " FROM crop JOIN reembedded USING (row) WHERE crop.number = ? AND role = 'kept'"
            " AND length(reembedded.vector) > 0 ORDER BY origin, row",
            (number,),
        )
        vectors: list[Vectors] = []
        sources: list[Source] = []
        for origin, group in groupby(found, key=itemgetter(0)):
            _, cameras, grades, times, packed, epochs = zip(*group, strict=True)
            qualities = np.array(grades, np.float32)
            mean = np.maximum(qualities, 1e-3) @ content.exemplars.unpacked(packed)
            vectors.append(np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32))
            sources.append((float(qualities.mean()), origin, cameras[0], max(times), epochs[0]))
        if vectors:
            content.add_exemplars(number, np.stack(vectors), sources)

    def _swap_crops(self) -> None:
        """Exchange the embeddings of the pictures with those beside them."""
        rows = self._store.rows(
            "SELECT reembedded.vector, crop.vector, row FROM crop JOIN reembedded USING (row)"
        )
        self._store.run_many("UPDATE crop SET vector = ? WHERE row = ?", [(new, row) for new, _, row in rows])
        self._store.run_many(
            "UPDATE reembedded SET vector = ? WHERE row = ?", [(old, row) for _, old, row in rows]
        )

    def _enter(self, content: Rows, space: Space, *, past: Space | None) -> None:
        self._store.put_meta("space", space.space)
        self._store.put_meta("dimension", space.dimension)
        self._note(_TARGET, None)
        self._note(_PAST, past)
        content.note_other_cameras()
        self._store.run("UPDATE identity SET revision = random()")
        self._store.put_meta("changes", 1 + int(self._store.meta("changes") or 0))

    # ----

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise RuntimeError("use it in a `with` block")
        return self._opened

    def _rows(self, space: Space) -> Rows:
        return Rows(self._store, space.dimension, Policy.stored(self._store))

    def _required_past(self) -> Space:
        if (past := self.past) is None:
            raise InputError(f"{self._path} has no former embedding space to restore or confirm")
        return past

    def _noted(self, which: str) -> Space | None:
        space, dimension = (self._store.meta(f"{which}_{key}") for key in ("space", "dimension"))
        return None if space is None else Space(str(space), int(dimension))

    def _note(self, which: str, space: Space | None) -> None:
        for key in ("space", "dimension"):
            self._store.put_meta(f"{which}_{key}", None if space is None else getattr(space, key))

    def _moved(self, content: Rows, space: Space) -> Moved:
        people = content.identities()
        unseen = tuple(one for one in people if not one.exemplars)
        exemplars = sum(one.exemplars for one in people)
        return Moved(space.space, space.dimension, len(people) - len(unseen), exemplars, unseen)
