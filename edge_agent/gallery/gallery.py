"""Who is known here: identities with exemplars, on disk and in memory at once.

SQLite holds the truth; an index in memory answers searches. Each change is one transaction, after which the
index takes over what the file says, so the two cannot drift apart: not by a full disk, not by `kill -9`, not
by another process (the command line) that changes the file meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import threading
import time as clock_module
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, InputError, NonFiniteEmbedding, SpaceMismatch, StorageError
from edge_agent.core.locks import FileLock
from edge_agent.core.sqlite import MEMORY
from edge_agent.core.structures import Pictures
from edge_agent.gallery.archive import Archive, ArchivedIdentity, read_archive, write_archive
from edge_agent.gallery.diversity import diverse_rows
from edge_agent.gallery.identity import (
    Erased,
    GalleryStats,
    Identity,
    Imported,
    Kind,
    checked_name,
    new_id,
)
from edge_agent.gallery.index import ExemplarIndex
from edge_agent.gallery.shortlist import LIBRARY, SAMPLE, Codes
from edge_agent.gallery.store import Store

__all__ = ["Gallery", "owner_lock"]

_log = structlog.get_logger(__name__)

_REMEMBERED_CHANGES = 1000
"""Changes that `changes_since` can name; whoever comes later has to look at everybody."""
_PIECE = 4096
"""Exemplars read at a time when the file is loaded."""
_PAUSE_S = 0.002
"""Between two pieces of an index that is being built, for those who wait for the lock."""
_NICE = 10
_TOO_SMALL = 0.8
"""Share of `exact_up_to` below which a gallery that shrank is searched exactly again."""
_UNIT_TOLERANCE = 0.02  # half precision normalises to about 0.001; a forgotten normalisation is far off
_IDENTITY = (
    "SELECT number, id, name, kind, created, last_seen, expires, ttl, "
    "(SELECT count(*) FROM exemplar WHERE exemplar.number = identity.number), sightings FROM identity"
)
_EXPIRES = (
    "CASE WHEN ttl = 0 THEN NULL WHEN ttl > 0 THEN last_seen + ttl"
    " WHEN kind = 'auto' THEN last_seen + ? ELSE last_seen + ? END"
)
_COUNT_CHANGE = (  # of who is here, and of their exemplars: what other processes have to read again
    "INSERT INTO meta VALUES ('changes', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1"
)
_INSERT_EXEMPLAR = (
    "INSERT INTO exemplar (number, vector, quality, origin, camera, time) VALUES (?, ?, ?, ?, ?, ?)"
)


class Gallery:
    """A local gallery of one embedding space.

    Opened by `with`. One lock makes every method safe to call from any thread. Vectors are float32 rows of
    unit length; times are Unix seconds.

    Every method may raise StorageError (DiskFull when no space is left); after an error the file and
    the index are as they were before the call.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        space: str,
        dimension: int,
        capacity: int = 10_000,
        max_exemplars: int = 16,
        ttl_s: float | None = None,
        enrolled_ttl_s: float | None = None,
        index: Literal["auto", "exact", "faiss"] = "auto",
        exact_up_to: int = 100_000,
        owner: bool = False,
        key: bytes | None = None,
        clock: Callable[[], float] = clock_module.time,
    ) -> None:
        """Describe the gallery; nothing is opened yet.

        Args:
            path: the file, made with mode 0600 if missing (its folder with 0700), or `:memory:`.
            space: id of the embedding space that all vectors belong to.
            dimension: D, numbers in an embedding.
            capacity: most identities. One more makes room by erasing `auto` identities: all expired ones,
                else the one that was not seen for longest. `enrolled` ones are never given up.
            max_exemplars: most embeddings of an identity, see `add_exemplars`.
            ttl_s: an `auto` identity expires this long after it was last seen; None: never.
            enrolled_ttl_s: the same for `enrolled` ones. An identity's own time (`keep`) is stronger.
            index: how more than `exact_up_to` identities are searched. `exact`: by looking at all; `faiss`:
                by `shortlist.Codes`, which are made in the background from the first search on, and until
                then exactly; `auto`: as `faiss` where that is installed, else exactly, with a warning.
            exact_up_to: identities; so many are searched exactly in any case.
            owner: hold the gallery as the one live system that uses it. A second owner is refused; commands
                open it without. The owner's `capacity`, `max_exemplars` and times to live are stored, and
                whoever opens an existing gallery without owning it gets those instead of its own.
            key: encrypts the file, see `edge_agent.core.encryption`; None: it is plain.
            clock: Unix seconds; tells `import_` who has expired. All else goes by the times of the calls.
        """
        if capacity < 1 or max_exemplars < 1 or dimension < 1:
            raise ValueError("capacity, max_exemplars and dimension must be positive")
        _check_ttl(ttl_s, enrolled_ttl_s)
        self._path = None if str(path) == MEMORY else Path(path)
        self._space = space
        self._dimension = dimension
        self._capacity = capacity
        self._max_exemplars = max_exemplars
        self._ttl_s = ttl_s
        self._enrolled_ttl_s = enrolled_ttl_s
        self._index_kind = index
        self._exact_up_to = exact_up_to
        self._owner = owner
        self._key = key
        self._clock = clock
        self._lock = threading.RLock()
        self._open_store: Store | None = None
        self._owner_lock: FileLock | None = None
        self._index = ExemplarIndex(dimension)
        self._builder: threading.Thread | None = None
        self._closing = threading.Event()
        self._without_index = False
        self._revisions: dict[int, int] = {}
        self._marked: set[int] = set()
        self._changes: deque[int] = deque(maxlen=_REMEMBERED_CHANGES)
        self._changed = 0
        self._data_version = -1
        self._steady = 0
        self._counted: int | None = None
        self._evicted = 0

    @classmethod
    def existing(
        cls, path: Path, *, key: bytes | None = None, clock: Callable[[], float] = clock_module.time
    ) -> Gallery:
        """A gallery as it was last configured: space, size, capacity and expiry are read from the file.

        For commands, which know the file but not the model.

        Raises:
            StorageError: there is no such file, or it is not a gallery.
        """
        if not Path(path).is_file():
            raise StorageError(
                f"there is no gallery at {path}; it is made when the agent first runs, "
                "or name another folder with --state"
            )
        store = Store(Path(path), key=key, check=False)
        with contextlib.closing(store):
            keys = ("space", "dimension", "capacity", "max_exemplars", "ttl_s", "enrolled_ttl_s")
            facts = {name: store.meta(name) for name in keys}
        if facts["space"] is None:
            raise StorageError(f"{path} was never completed; remove it, it holds nothing")
        return cls(path, **facts, key=key, clock=clock)

    def __enter__(self) -> Gallery:
        """Open the file and load the index.

        Raises:
            ConfigError: the index is `faiss`, and that is not installed.
            SpaceMismatch: the file holds identities of another embedding space.
            StorageError: damaged, inaccessible, or owned by another running agent.
        """
        if self._index_kind == "faiss" and not _installed():
            raise ConfigError(
                "gallery.index = faiss needs the faiss library, which is not installed: "
                "pip install 'edge-agent[index]', or set gallery.index to auto or exact"
            )
        self._closing.clear()
        with contextlib.ExitStack() as undo:
            self._open_store = Store(self._path, key=self._key)
            undo.callback(self._close)
            if self._owner and not self._take_ownership():
                raise StorageError(
                    f"{self._where} is in use by another edge-agent (process {self._holder()}); "
                    "stop that one, or give this one its own state folder"
                )
            self._settle_space()
            self._synchronise()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._closing.set()
        if self._builder is not None:
            self._builder.join()  # two seconds at most
        with self._lock:
            self._close()

    def __len__(self) -> int:
        """Number of identities."""
        with self._reading():
            return len(self._revisions)

    @property
    def space(self) -> str:
        """Id of the embedding space."""
        return self._space

    @property
    def dimension(self) -> int:
        """Numbers in an embedding."""
        return self._dimension

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """For many questions at once: nobody else changes anything meanwhile.

        Other threads wait; what other processes change is noticed afterwards, or by the first change here.
        """
        with self._reading():
            self._steady += 1
            try:
                yield
            finally:
                self._steady -= 1

    # ---- search

    def scores(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Compare queries `(Q, D)` with everyone.

        Returns:
            `(I,)` int64 numbers of the identities that have exemplars, in no particular order, and `(Q, I)`
            float32: cosine of each query and the identity's best exemplar.

        Raises:
            ValueError: not `(Q, D)`.
            NonFiniteEmbedding: a query holds NaN or infinity.
        """
        queries = self._checked(vectors)
        with self._reading():
            return self._index.numbers, self._index.scores(queries)

    def search(
        self, vectors: NDArray[np.float32], k: int = 2
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` best identities of each query `(Q, D)`, best first; of equals, the lower number first.

        Beyond `exact_up_to` identities somebody may be missing, see `docs/gallery-growth.md`; the scores
        are exact all the same.

        Returns:
            `(Q, k)` int64 numbers and `(Q, k)` float32 best-exemplar cosines. Where the gallery has fewer
            than `k` identities, numbers are -1 and scores -inf. Errors as in `scores`.
        """
        queries = self._checked(vectors)
        with self._reading():
            self._choose_index()
            return self._index.search(queries, k)

    @property
    def exact(self) -> bool:
        """Whether the next `search` looks at everybody."""
        with self._reading():
            return not self._index.listed

    def vectors(self, numbers: Collection[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exemplars of some identities from memory; who has none, or is not here, has no row.

        Returns:
            `(N,)` int64, whose each row is, those of one identity together; and `(N, D)` float32.
        """
        with self._reading():
            return self._index.vectors(numbers)

    def present(self, numbers: Collection[int]) -> set[int]:
        """Those of these identities that are in the gallery, with or without exemplars; from memory."""
        with self._reading():
            return self._revisions.keys() & numbers

    def changes_since(self, mark: int) -> tuple[int, set[int] | None]:
        """Whose exemplars changed since an earlier call.

        Args:
            mark: what that call returned; 0 for never.

        Returns:
            the mark of now, and the numbers of the identities that were added, changed or removed since;
            None when they cannot be told any more: then everybody may have changed.
        """
        with self._reading():
            count = self._changed - mark
            if mark == 0 or count > len(self._changes):
                return self._changed, None
            return self._changed, set(list(self._changes)[len(self._changes) - count :] if count else ())

    # ---- changes

    def enrol(
        self,
        vectors: NDArray[np.float32],
        qualities: NDArray[np.float32],
        *,
        name: str | None = None,
        kind: Kind = "auto",
        origin: str,
        camera: str,
        time: float,
    ) -> Identity:
        """Put a new person into the gallery.

        Args:
            vectors: `(M, D)` float32 exemplars, M at least 1; kept as in `add_exemplars`.
            qualities: `(M,)` 0..1, how well each shows the person.
            name: what people call the person.
            kind: `enrolled` for people whom somebody entered on purpose.
            origin: which track or file contributed the exemplars, for `remove_origin`.
            camera: id of the source.
            time: when the person was seen.

        Raises:
            ValueError: shapes do not fit, or a row is not of unit length.
            NonFiniteEmbedding: a row holds NaN or infinity.
            InputError: the name is taken or unusable.
            StorageError: the gallery is full of enrolled identities.
        """
        rows = self._checked(vectors, unit=True)
        if not len(rows):
            raise ValueError("enrol needs at least one exemplar")
        checked = _checked_qualities(qualities, len(rows))
        label = None if name is None else checked_name(name)
        with self._changing() as store:
            self._refuse_taken(label)
            self._make_room(1, now=time)
            number = self._insert(new_id(), label, kind, created=time, last_seen=time, sightings=1)
            self._offer(number, rows, checked, origin=origin, camera=camera, time=time)
            return _identity(store, number)

    def add_exemplars(
        self,
        number: int,
        vectors: NDArray[np.float32],
        qualities: NDArray[np.float32],
        *,
        origin: str,
        camera: str,
        time: float,
    ) -> int:
        """Offer more exemplars `(M, D)` of a known person; the most diverse `max_exemplars` are kept.

        While there is room all are kept. Beyond, the two most alike of old and new are found and the one
        of lower quality goes (of two equal ones, the later), again for each exemplar too many.

        Returns:
            how many of the offered ones are kept.

        Raises:
            InputError: there is no such identity.
            Others as in `enrol`.
        """
        rows = self._checked(vectors, unit=True)
        checked = _checked_qualities(qualities, len(rows))
        with self._changing(durable=False) as store:
            _identity(store, number)
            return self._offer(number, rows, checked, origin=origin, camera=camera, time=time)

    def remove_origin(self, number: int, origin: str) -> int:
        """Take back what one origin contributed to an identity, e.g. a track that was someone else.

        An identity may be left without exemplars: it is then never found, and is erased when it expires or is
        forgotten.

        Returns:
            how many exemplars were removed: 0 too when there is no such identity any more.
        """
        with self._changing() as store:
            gone = store.run(
                "DELETE FROM exemplar WHERE number = ? AND origin = ?", (number, origin)
            ).rowcount
            if gone:
                self._mark(number)
            return gone

    def exemplars(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[str, ...]]:
        """`(M, D)` float32 vectors, `(M,)` float32 qualities and M origins of an identity, oldest first.

        Raises:
            InputError: there is no such identity.
        """
        with self._reading() as store:
            _identity(store, number)
            rows = store.rows(
                "SELECT vector, quality, origin FROM exemplar WHERE number = ? ORDER BY row", (number,)
            )
        return (
            self._unpacked([row[0] for row in rows]),
            np.array([row[1] for row in rows], np.float32),
            tuple(row[2] for row in rows),
        )

    def touch(self, number: int, time: float, *, sighting: bool = True) -> None:
        """Note that a person was seen at `time`, which puts off the expiry of an `auto` identity.

        Args:
            number: of the identity.
            time: `last_seen` becomes this, unless it is later already.
            sighting: count this as one more sighting; False for a person who is still there.

        Raises:
            InputError: there is no such identity.
        """
        with self._changing(durable=False) as store:
            found = store.run(
                "UPDATE identity SET last_seen = max(last_seen, ?), sightings = sightings + ? "
                "WHERE number = ?",
                (time, int(sighting), number),
            )
            if not found.rowcount:
                raise _unknown(number)
            self._set_expiry(number)

    def merge(self, keep: int, absorb: int) -> Identity:
        """Make two identities that are one person into one.

        `keep` stays, with its number and id; the other's id is remembered, so `get` and `forget` still find
        the person by it. Exemplars are offered in the order of their times, as in `add_exemplars`. The
        name and the time to live are `keep`'s, or else the other's; `enrolled` wins over `auto`; sightings
        add up.

        Raises:
            InputError: one of them is not there, or they are the same.
        """
        if keep == absorb:
            raise InputError(f"cannot merge identity {keep} with itself")
        with self._changing() as store:
            stays, goes = _identity(store, keep), _identity(store, absorb)
            store.run("UPDATE exemplar SET number = ? WHERE number = ?", (keep, absorb))
            store.run("UPDATE former SET number = ? WHERE number = ?", (keep, absorb))
            store.run("UPDATE pictures SET number = ? WHERE number = ?", (keep, absorb))
            store.run("DELETE FROM identity WHERE number = ?", (absorb,))
            store.run("INSERT INTO former VALUES (?, ?)", (goes.id, keep))
            store.run(
                "UPDATE identity SET name = ?, kind = ?, created = ?, last_seen = ?, sightings = ?, ttl = ? "
                "WHERE number = ?",
                (
                    stays.name or goes.name,
                    "enrolled" if "enrolled" in {stays.kind, goes.kind} else "auto",
                    min(stays.created, goes.created),
                    max(stays.last_seen, goes.last_seen),
                    stays.sightings + goes.sightings,
                    stays.ttl_s if stays.ttl_s is not None else goes.ttl_s,
                    keep,
                ),
            )
            self._marked.add(absorb)
            self._set_expiry(keep)
            self._prune(keep)
            return _identity(store, keep)

    def rename(self, number: int, name: str | None) -> Identity:
        """Name a person, which makes the identity `enrolled`: whom an operator names is not evicted.

        None takes the name away and leaves the kind as it is.

        Raises:
            InputError: there is no such identity, or the name is taken or unusable.
        """
        label = None if name is None else checked_name(name)
        with self._changing() as store:
            if _identity(store, number).name != label:
                self._refuse_taken(label)
            store.run("UPDATE identity SET name = ? WHERE number = ?", (label, number))
            if label is not None:
                store.run("UPDATE identity SET kind = 'enrolled' WHERE number = ?", (number,))
            self._set_expiry(number)
            return _identity(store, number)

    def keep(self, number: int, ttl_s: float | None) -> Identity:
        """Give one person a time to live of their own.

        Args:
            number: of the identity.
            ttl_s: it is erased this long after the person was last seen; 0.0: never; None: as others of its
                kind.

        Raises:
            InputError: there is no such identity.
        """
        if ttl_s is not None and ttl_s < 0:
            raise ValueError("ttl_s must not be negative")
        with self._changing() as store:
            _identity(store, number)
            store.run("UPDATE identity SET ttl = ? WHERE number = ?", (ttl_s, number))
            self._set_expiry(number)
            return _identity(store, number)

    def forget(self, number: int) -> Erased:
        """Erase a person from the file, its write-ahead log and memory.

        The rows are gone when this returns: their content is zeroed, their pages given back, the log
        truncated. Copies that the file system or a flash controller keeps of old blocks are beyond a
        program's reach: encrypt the disk where that matters.

        Raises:
            InputError: there is no such identity.
            StorageError: erased, but another process kept remains readable; says so.
        """
        with self._changing() as store:
            erased = self._erase(_identity(store, number))
        self._scrub()
        _log.info("identity_forgotten", identity=erased.id, exemplars=erased.exemplars)
        return erased

    def forget_all(self) -> list[Erased]:
        """Erase everybody and the stored facts, as in `forget`; the gallery then takes on any space."""
        with self._changing() as store:
            erased = [self._erase(person) for person in _identities(store)]
            store.run("DELETE FROM fact")
        self._scrub()
        _log.info("gallery_emptied", identities=len(erased))
        return erased

    def expire(self, now: float) -> list[Identity]:
        """Erase the identities whose `expires` is not after `now`, and return what they were.

        As thorough as `forget`, but does not wait when another process is just reading the write-ahead log:
        copies there then last until the next call that erases.
        """
        with self._reading() as store:
            if not store.value("SELECT count(*) FROM identity WHERE expires <= ?", (now,)):
                return []
        with self._changing() as store:
            gone = _identities(store, "WHERE expires <= ?", now)
            for person in gone:
                self._erase(person)
        self._store.scrub(wait=False)
        return gone

    def set_ttl(self, ttl_s: float | None, *, enrolled_s: float | None = None) -> None:
        """Let `auto` and `enrolled` identities expire so long after they were last seen, those here too."""
        _check_ttl(ttl_s, enrolled_s)
        with self._changing():
            before = self._ttl_s, self._enrolled_ttl_s
            self._ttl_s, self._enrolled_ttl_s = ttl_s, enrolled_s
            try:
                self._store_policy()
            except BaseException:
                self._ttl_s, self._enrolled_ttl_s = before
                raise

    # ---- pictures that others keep

    def note_pictures(self, number: int, camera: str, track: int, since: float) -> bool:
        """Note that pictures in a crop folder show this person, so that they can go with the person.

        Args:
            number: of the identity; nothing is noted where it is gone.
            camera: id of the camera.
            track: number of the track; who was noted for it before is so no more.
            since: time of its first picture, Unix seconds.

        Returns:
            False where nothing was noted: nobody has this number any more, or what this track showed before
            still has to be removed.
        """
        with self._changing(durable=False) as store:
            done = store.run(
                "INSERT INTO pictures SELECT ?, ?, ?, number FROM identity WHERE number = ?"
                " ON CONFLICT DO UPDATE SET number = excluded.number WHERE pictures.number IS NOT NULL",
                (camera, track, since, number),
            )
            return done.rowcount > 0

    def orphaned_pictures(self) -> list[Pictures]:
        """Pictures of people who are gone, see `note_pictures`, until `pictures_removed`."""
        with self._reading() as store:
            rows = store.rows(
                "SELECT camera, track, since, (SELECT min(later.since) FROM pictures AS later WHERE"
                " later.camera = pictures.camera AND later.track = pictures.track"
                " AND later.since > pictures.since) FROM pictures WHERE number IS NULL"
            )
        return [
            Pictures(camera, track, since, math.inf if until is None else until)
            for camera, track, since, until in rows
        ]

    def pictures_removed(self, gone: Iterable[Pictures]) -> None:
        """These pictures are no more."""
        with self._changing() as store:
            store.run_many(
                "DELETE FROM pictures WHERE camera = ? AND track = ? AND since = ? AND number IS NULL",
                [(one.camera, one.track, one.since) for one in gone],
            )

    # ---- look-up

    def get(self, key: int | str) -> Identity:
        """The identity with this number, id (also one that was merged into another), name, or number as text.

        Raises:
            InputError: nobody is known by it.
        """
        with self._reading() as store:
            return _identity(store, _resolve(store, key))

    def numbers(self, kind: Kind) -> NDArray[np.int64]:
        """`(K,)` int64: numbers of everyone of a kind, in no particular order; quicker than `identities`."""
        with self._reading() as store:
            rows = store.rows("SELECT number FROM identity WHERE kind = ?", (kind,))
        return np.fromiter((number for (number,) in rows), np.int64, len(rows))

    def enrolled(self, numbers: Collection[int]) -> set[int]:
        """Those of these identities that are of kind `enrolled`; costs as much as there are numbers."""
        marks = ",".join("?" * len(numbers))  # and a plus, or SQLite looks through everybody of the kind
        with self._reading() as store:
            rows = store.rows(
                f"SELECT number FROM identity WHERE +kind = 'enrolled' AND number IN ({marks})",  # noqa: S608
                [*numbers],
            )
        return {number for (number,) in rows}

    def identities(self) -> list[Identity]:
        """Everyone, by rising number."""
        with self._reading() as store:
            return _identities(store)

    def former_ids(self, number: int) -> tuple[str, ...]:
        """Ids of identities that were merged into this one."""
        with self._reading() as store:
            return _former_ids(store, number)

    def stats(self) -> GalleryStats:
        """Size and content."""
        with self._reading() as store:
            people, enrolled, named, oldest, newest = store.rows(
                "SELECT count(*), count(CASE kind WHEN 'enrolled' THEN 1 END), count(name), "
                "min(last_seen), max(last_seen) FROM identity"
            )[0]
            return GalleryStats(
                path=self._where,
                space=self._space,
                dimension=self._dimension,
                identities=people,
                enrolled=enrolled,
                named=named,
                exemplars=int(store.value("SELECT count(*) FROM exemplar")),
                capacity=self._capacity,
                max_exemplars=self._max_exemplars,
                ttl_s=self._ttl_s,
                enrolled_ttl_s=self._enrolled_ttl_s,
                oldest_seen=oldest,
                newest_seen=newest,
                evicted=self._evicted,
                file_bytes=store.file_bytes(),
                index_bytes=self._index.nbytes,
            )

    def get_fact(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        """A JSON value that `set_fact` stored, None when there is none."""
        with self._reading() as store:
            text = store.value("SELECT value FROM fact WHERE key = ?", (key,))
        return None if text is None else json.loads(text)

    def set_fact(self, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Store a JSON value beside the identities, e.g. the site's score statistics; None removes it.

        Facts belong to the embedding space: `forget_all` clears them.

        Raises:
            ValueError: not a JSON value, or a non-finite number in it.
        """
        text = json.dumps(value, allow_nan=False)
        with self._changing(durable=False) as store:
            if value is None:
                store.run("DELETE FROM fact WHERE key = ?", (key,))
            else:
                store.run("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, text))

    def change_fact(self, key: str, change: Callable[[Any], Any]) -> None:
        """Replace a stored value by what `change` makes of it, in one transaction; survives a power cut."""
        with self._changing() as store:
            text = store.value("SELECT value FROM fact WHERE key = ?", (key,))
            value = change(None if text is None else json.loads(text))
            if value is None:
                store.run("DELETE FROM fact WHERE key = ?", (key,))
            else:
                changed = json.dumps(value, allow_nan=False)
                store.run("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, changed))

    # ---- copies

    def export(self, path: Path) -> int:
        """Write everything to one archive (mode 0600), see `edge_agent.gallery.archive` for the format.

        It holds biometric data of everyone in the gallery.

        Returns:
            number of identities written.

        Raises:
            DiskFull, StorageError: as in `core.manifest.atomic_file`; an old file is then untouched.
        """
        with self._reading() as store, store.snapshot():
            people = self._archived(store)
            facts = {key: json.loads(text) for key, text in store.rows("SELECT key, value FROM fact")}
        write_archive(Path(path), Archive(self._space, self._dimension, people, facts))
        return len(people)

    def import_(self, path: Path) -> Imported:
        """Add the identities of an archive; all of them, or none when anything is wrong.

        Ids are kept, numbers are given anew. Identities whose id is here already are skipped, so importing
        twice changes nothing. Facts are taken over where none of that key is stored.

        Raises:
            InputError: not an archive, damaged, or a name in it belongs to someone else here.
            SpaceMismatch: it was exported from a gallery of another embedding space.
            StorageError: there is not enough room for all.
        """
        archive = read_archive(Path(path))
        if (archive.space, archive.dimension) != (self._space, self._dimension):
            raise SpaceMismatch(
                f"{path} holds embeddings of space {archive.space} ({archive.dimension} numbers), "
                f"the gallery {self._where} those of {self._space} ({self._dimension}); "
                "they cannot be compared. Import it with --state naming a folder of its own"
            )
        with self._changing() as store:
            new = [person for person in archive.people if _known_id(store, person.id) is None]
            self._make_room(len(new), now=self._clock(), evict=False)
            for person in new:
                self._refuse_taken(person.name)
                self._take_in(store, person)
            store.run_many(
                "INSERT OR IGNORE INTO fact VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in archive.facts.items()],
            )
        return Imported(added=len(new), skipped=len(archive.people) - len(new))

    # ---- inside

    @property
    def _where(self) -> str:
        return MEMORY if self._path is None else str(self._path)

    @property
    def _store(self) -> Store:
        if self._open_store is None:
            raise RuntimeError("the gallery is not open: use it in a `with` block")
        return self._open_store

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Store]:
        """Hold the lock, with the index up to date."""
        with self._lock:
            self._follow_others()
            yield self._store

    @contextlib.contextmanager
    def _changing(self, *, durable: bool = True) -> Iterator[Store]:
        """Hold the lock for one transaction; afterwards the index follows what was marked."""
        with self._lock:
            store = self._store
            self._marked.clear()
            with store.change(durable=durable):
                self._look_at_file()  # nobody else can change it from here on
                yield store
                if self._marked:
                    store.run(_COUNT_CHANGE)
                counted = store.meta("changes")
            self._counted = counted
            for number in self._marked:
                self._follow(number)

    def _scrub(self) -> None:
        if not self._store.scrub(wait=True):
            raise StorageError(
                f"{self._where}: erased, but another process holds its write-ahead log open; copies "
                "remain there until the next forget or expiry. Close that process (fuser names it)"
            )

    def _mark(self, number: int) -> None:
        """The exemplars of this identity change in the present transaction."""
        self._store.run("UPDATE identity SET revision = random() WHERE number = ?", (number,))
        self._marked.add(number)

    def _follow(self, number: int) -> None:
        """Make the index hold what the file says of one identity."""
        revision = self._store.value("SELECT revision FROM identity WHERE number = ?", (number,))
        blobs = self._store.rows("SELECT vector FROM exemplar WHERE number = ? ORDER BY row", (number,))
        self._index.put(number, self._unpacked([blob for (blob,) in blobs]))
        if revision is None:
            self._revisions.pop(number, None)
        else:
            self._revisions[number] = revision
        self._changes.append(number)
        self._changed += 1

    def _follow_others(self) -> None:
        if not self._steady:
            self._look_at_file()

    def _look_at_file(self) -> None:
        if self._store.changed_outside() != self._data_version:
            self._synchronise()

    def _synchronise(self) -> None:
        """Take over what changed in the file since the last time: all of it at the first."""
        first, version = self._data_version < 0, self._store.changed_outside()
        self._refuse_other_space()
        counted = self._store.meta("changes")
        if not first and counted == self._counted:
            self._data_version = version  # e.g. pages of the erased were given back
            return
        present = dict(self._store.rows("SELECT number, revision FROM identity"))
        stale = {number for number, revision in present.items() if self._revisions.get(number) != revision}
        stale |= self._revisions.keys() - present.keys()
        if len(stale) > len(present) // 4:
            self._load()
            self._revisions = present
        else:
            for number in stale:
                self._follow(number)
        self._data_version, self._counted = version, counted

    def _load(self) -> None:
        rows = self._store.rows("SELECT number, count(*) FROM exemplar GROUP BY number ORDER BY number")
        owners, counts = np.array(rows, np.int64).reshape(-1, 2).T
        self._changes.clear()
        self._changed += 1  # which cannot be named: whoever asks looks at everybody
        self._index.load(owners, counts, self._exemplars_by_pieces())

    def _exemplars_by_pieces(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for rows in self._store.pieces("SELECT number, vector FROM exemplar ORDER BY row", _PIECE):
            owners, blobs = zip(*rows, strict=True)
            yield np.array(owners, np.int64), self._unpacked(blobs)

    def _choose_index(self) -> None:
        """Begin to build the shortlist of a gallery that has grown, or give that of one that shrank up."""
        people = len(self._index)
        if self._index.has_shortlist and people < _TOO_SMALL * self._exact_up_to:
            self._index.follow(None)
        due = people > self._exact_up_to and self._index_kind != "exact" and not self._index.has_shortlist
        if not due or self._without_index or (self._builder is not None and self._builder.is_alive()):
            return
        if not _installed():
            self._without_index = True
            _log.warning(
                "gallery_searched_exactly",
                identities=people,
                reason="no faiss: pip install 'edge-agent[index]'",
            )
            return
        self._builder = threading.Thread(target=self._build, name="gallery-index", daemon=True)
        self._builder.start()

    def _build(self) -> None:
        """Make a shortlist without stopping anybody: only pieces of it are made under the lock."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        began = clock_module.monotonic()
        try:
            with self._lock:
                sample = self._index.sample(SAMPLE)
            codes = Codes(sample)
            del sample
            with self._lock:
                self._index.follow(codes)
            more = True
            while more and not self._closing.wait(_PAUSE_S):
                with self._lock:
                    more = self._index.encode()
        except Exception as error:  # noqa: BLE001 - whatever the library raises: searching goes on exactly
            with self._lock:
                self._index.follow(None)
                self._without_index = True
            _log.error("gallery_index_failed", error=str(error), outcome="the gallery is searched exactly")
            return
        _log.info(
            "gallery_index_built", identities=len(self._index), seconds=clock_module.monotonic() - began
        )

    def _unpacked(self, blobs: Sequence[bytes]) -> NDArray[np.float32]:
        """`(N, D)` float32 from stored rows."""
        if any(len(blob) != 4 * self._dimension for blob in blobs):
            raise StorageError(
                f"{self._where} is damaged: an embedding has not {self._dimension} numbers; "
                "move the file away and restore the last export: edge-agent gallery import FILE"
            )
        return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self._dimension).astype(np.float32)

    def _take_ownership(self) -> bool:
        if self._path is None:
            return True
        lock = owner_lock(self._path)
        if lock.acquire():
            self._owner_lock = lock
            return True
        return False

    def _holder(self) -> str:
        return "unknown" if self._path is None else owner_lock(self._path).holder()

    def _settle_space(self) -> None:
        """Check that the file is of this space, or make it so when nobody is in it; settle who decides."""
        known = {key: self._store.meta(key) for key in ("space", "dimension", *self._policy())}
        if known == {"space": self._space, "dimension": self._dimension, **self._policy()}:
            return  # nothing to write, so that a gallery on a full disk still opens
        new = known["space"] is None or self._may_adopt()
        if not new:
            self._refuse_other_space()
        if not new and not self._owner:
            self._capacity, self._max_exemplars = known["capacity"], known["max_exemplars"]
            self._ttl_s, self._enrolled_ttl_s = known["ttl_s"], known["enrolled_ttl_s"]
            return
        with self._store.change():
            if new:
                self._store.put_meta("space", self._space)
                self._store.put_meta("dimension", self._dimension)
                self._store.run("DELETE FROM fact")
            self._store_policy()

    def _store_policy(self) -> None:
        for key, value in self._policy().items():
            self._store.put_meta(key, value)
        self._store.run(f"UPDATE identity SET expires = {_EXPIRES}", self._times)  # noqa: S608 - question marks

    def _policy(self) -> dict[str, float | None]:
        """What is stored for `existing` to read."""
        return {
            "capacity": self._capacity,
            "max_exemplars": self._max_exemplars,
            "ttl_s": self._ttl_s,
            "enrolled_ttl_s": self._enrolled_ttl_s,
        }

    @property
    def _times(self) -> tuple[float | None, float | None]:
        """What `_EXPIRES` asks for."""
        return self._ttl_s, self._enrolled_ttl_s

    def _may_adopt(self) -> bool:
        """Whether the file is of another space, but holds nobody and no live system uses it."""
        store = self._store
        same = (store.meta("space"), store.meta("dimension")) == (self._space, self._dimension)
        if same or store.value("SELECT count(*) FROM identity"):
            return False
        if self._owner:
            return True
        if not self._take_ownership():
            return False
        self._release_ownership()
        return True

    def _refuse_other_space(self) -> None:
        space, dimension = self._store.meta("space"), self._store.meta("dimension")
        if (space, dimension) == (self._space, self._dimension):
            return
        folder = "." if self._path is None else self._path.parent
        raise SpaceMismatch(
            f"the gallery {self._where} holds embeddings of space {space} ({dimension} numbers), "
            f"but the model in use makes space {self._space} ({self._dimension} numbers); they cannot be "
            f"compared. Use the former model, or keep a copy with "
            f"`edge-agent gallery export FILE --state {folder}` "
            "and empty it "
            f"with `edge-agent gallery forget --all --state {folder}`"
        )

    def _release_ownership(self) -> None:
        if self._owner_lock is not None:
            self._owner_lock.release()
            self._owner_lock = None

    def _close(self) -> None:
        self._release_ownership()
        if self._open_store is not None:
            self._open_store.close()
            self._open_store = None
        self._index = ExemplarIndex(self._dimension)
        self._revisions = {}
        self._data_version = -1

    def _checked(self, vectors: NDArray[np.float32], *, unit: bool = False) -> NDArray[np.float32]:
        """Rows as contiguous float32 `(N, D)`, normalised anew when they are to be stored."""
        rows = np.ascontiguousarray(vectors, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._dimension:
            raise ValueError(f"vectors: expected (N, {self._dimension}), got {np.shape(vectors)}")
        if not np.isfinite(rows).all():
            raise NonFiniteEmbedding("an embedding holds NaN or infinity; it is not compared nor stored")
        if not unit:
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if (np.abs(lengths - 1) > _UNIT_TOLERANCE).any():
            raise ValueError(
                f"vectors: expected rows of length 1, got {lengths.min():.3g} to {lengths.max():.3g}"
            )
        return np.asarray(rows / lengths, np.float32)

    def _refuse_taken(self, name: str | None) -> None:
        if name is None:
            return
        number = self._store.value("SELECT number FROM identity WHERE name = ?", (name,))
        if number is not None:
            raise InputError(
                f"the name {name!r} belongs to identity {number} already; choose another, or merge the two: "
                f"edge-agent gallery merge {number} OTHER"
            )

    def _make_room(self, wanted: int, *, now: float, evict: bool = True) -> None:
        """Erase expired and then long unseen `auto` identities until `wanted` more fit."""
        store = self._store
        missing = wanted - (self._capacity - len(self._revisions))
        if missing <= 0:
            return
        expired = _identities(store, "WHERE expires <= ?", now)
        for person in expired:
            self._erase(person)
        missing -= len(expired)
        if missing <= 0:
            return
        oldest = (
            _identities(
                store,
                "WHERE kind = 'auto' AND coalesce(ttl, 1) > 0 ORDER BY last_seen, number LIMIT ?",
                missing,
            )
            if evict
            else []
        )
        if len(oldest) < missing:
            raise StorageError(
                f"the gallery {self._where} is full: {self._capacity} identities"
                + (", all enrolled" if evict else "")
                + "; raise its capacity, or forget some: edge-agent gallery forget WHO"
            )
        for person in oldest:
            self._erase(person)
            _log.warning("identity_evicted", identity=person.id, last_seen=person.last_seen)
        self._evicted += len(oldest)

    def _insert(
        self, opaque: str, name: str | None, kind: Kind, *, created: float, last_seen: float, sightings: int
    ) -> int:
        number = self._store.run(
            "INSERT INTO identity (id, name, kind, created, last_seen, sightings, revision) "
            "VALUES (?, ?, ?, ?, ?, ?, random())",
            (opaque, name, kind, created, last_seen, sightings),
        ).lastrowid
        assert number is not None  # an INSERT that did not raise has a row id
        self._set_expiry(number)
        return number

    def _set_expiry(self, number: int) -> None:
        """`expires` follows from kind, own time to live and `last_seen`."""
        self._store.run(
            f"UPDATE identity SET expires = {_EXPIRES} WHERE number = ?",  # noqa: S608 - question marks only
            (*self._times, number),
        )

    def _offer(
        self,
        number: int,
        vectors: NDArray[np.float32],
        qualities: NDArray[np.float32],
        *,
        origin: str,
        camera: str,
        time: float,
    ) -> int:
        """Insert exemplars, prune to the most diverse, and say how many of these stayed."""
        store = self._store
        before = int(store.value("SELECT coalesce(max(row), 0) FROM exemplar"))
        store.run_many(
            _INSERT_EXEMPLAR,
            [
                (number, vector.astype("<f4").tobytes(), float(quality), origin, camera, time)
                for vector, quality in zip(vectors, qualities, strict=True)
            ],
        )
        self._prune(number)
        return int(
            store.value("SELECT count(*) FROM exemplar WHERE number = ? AND row > ?", (number, before))
        )

    def _prune(self, number: int) -> None:
        """Delete exemplars beyond `max_exemplars` by the rule of `diverse_rows`, in order of arrival."""
        store = self._store
        self._mark(number)
        rows = store.rows(
            "SELECT row, vector, quality FROM exemplar WHERE number = ? ORDER BY time, row", (number,)
        )
        if len(rows) <= self._max_exemplars:
            return
        vectors = self._unpacked([row[1] for row in rows])
        kept = diverse_rows(vectors, np.array([row[2] for row in rows], np.float32), self._max_exemplars)
        gone = set(range(len(rows))) - set(kept.tolist())
        store.run_many("DELETE FROM exemplar WHERE row = ?", [(rows[place][0],) for place in gone])

    def _erase(self, person: Identity) -> Erased:
        """Delete an identity and everything of it, inside a change."""
        store = self._store
        former = _former_ids(store, person.number)
        size = store.value(
            "SELECT coalesce(sum(length(vector)), 0) FROM exemplar WHERE number = ?", (person.number,)
        )
        store.run("DELETE FROM identity WHERE number = ?", (person.number,))
        self._marked.add(person.number)
        return Erased(person.number, person.id, person.name, person.exemplars, former, int(size))

    def _archived(self, store: Store) -> tuple[ArchivedIdentity, ...]:
        exemplars = defaultdict(list)
        for number, *row in store.rows(
            "SELECT number, quality, origin, camera, time, vector FROM exemplar ORDER BY row"
        ):
            exemplars[number].append(row)
        former = defaultdict(list)
        for number, opaque in store.rows("SELECT number, id FROM former ORDER BY id"):
            former[number].append(opaque)
        return tuple(
            ArchivedIdentity(
                id=person.id,
                name=person.name,
                kind=person.kind,
                created=person.created,
                last_seen=person.last_seen,
                sightings=person.sightings,
                ttl_s=person.ttl_s,
                former_ids=tuple(former[person.number]),
                exemplars=tuple((row[0], row[1], row[2], row[3]) for row in exemplars[person.number]),
                vectors=self._unpacked([row[4] for row in exemplars[person.number]]),
            )
            for person in _identities(store)
        )

    def _take_in(self, store: Store, person: ArchivedIdentity) -> None:
        number = self._insert(
            person.id,
            person.name,
            person.kind,
            created=person.created,
            last_seen=person.last_seen,
            sightings=person.sightings,
        )
        if person.ttl_s is not None:
            store.run("UPDATE identity SET ttl = ? WHERE number = ?", (person.ttl_s, number))
            self._set_expiry(number)
        store.run_many(
            "INSERT OR IGNORE INTO former VALUES (?, ?)", [(old, number) for old in person.former_ids]
        )
        vectors = self._checked(person.vectors, unit=True)
        store.run_many(
            _INSERT_EXEMPLAR,
            [
                (number, vector.astype("<f4").tobytes(), *facts)
                for facts, vector in zip(person.exemplars, vectors, strict=True)
            ],
        )
        self._prune(number)


def owner_lock(gallery: Path) -> FileLock:
    """Return the lock of the one process that uses a gallery for a live system."""
    return FileLock(gallery.with_name(gallery.name + ".lock"))


def _check_ttl(*seconds: float | None) -> None:
    if any(one is not None and one <= 0 for one in seconds):
        raise ValueError("ttl_s and enrolled_ttl_s must be positive")


def _installed() -> bool:
    return importlib.util.find_spec(LIBRARY) is not None


def _identity(store: Store, number: int) -> Identity:
    found = _identities(store, "WHERE number = ?", number)
    if not found:
        raise _unknown(number)
    return found[0]


def _identities(store: Store, condition: str = "ORDER BY number", *values: float) -> list[Identity]:
    return [Identity(*row) for row in store.rows(f"{_IDENTITY} {condition}", values)]


def _former_ids(store: Store, number: int) -> tuple[str, ...]:
    rows = store.rows("SELECT id FROM former WHERE number = ? ORDER BY id", (number,))
    return tuple(row[0] for row in rows)


def _known_id(store: Store, opaque: str) -> int | None:
    """Number of the identity that has this id or took over one that had it."""
    number: int | None = store.value(
        "SELECT number FROM identity WHERE id = ? UNION ALL SELECT number FROM former WHERE id = ?",
        (opaque, opaque),
    )
    return number


def _resolve(store: Store, key: int | str) -> int:
    if isinstance(key, int):
        return key
    found = _known_id(store, key)
    if found is None:
        found = store.value("SELECT number FROM identity WHERE name = ?", (key.strip(),))
    if found is None and key.isdecimal():
        return int(key)
    if found is None:
        raise _unknown(key)
    return found


def _unknown(key: int | str) -> InputError:
    return InputError(f"nobody in the gallery is known as {key!r}; `edge-agent gallery list` shows who is")


def _checked_qualities(qualities: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """`(rows,)` float32, finite."""
    checked = np.asarray(qualities, np.float32)
    if checked.shape != (rows,) or not np.isfinite(checked).all():
        raise ValueError(f"qualities: expected ({rows},) finite numbers, got {checked.shape}")
    return checked
