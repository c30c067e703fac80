"""The gallery file and the copy of its embeddings in memory, under one lock.

The file is authoritative. After each change the index in memory gets what the file has of the identities
that changed, as far as the change itself has not read it before. So the two cannot diverge: not by a full
disk, not by another process (the command line) that changes the file.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.arrays import MOST_NUMBERS
from edge_agent.core.errors import InputError, SpaceMismatch, StorageError
from edge_agent.core.files import parse_json
from edge_agent.core.locks import FileLock
from edge_agent.core.sqlite import MEMORY
from edge_agent.core.text import visible
from edge_agent.gallery.index import ExemplarIndex, Views
from edge_agent.gallery.log import WriteAheadLog
from edge_agent.gallery.means import CameraMeans, Vectors, centred, restored
from edge_agent.gallery.rows import Policy, Rows
from edge_agent.gallery.store import Store
from edge_agent.gallery.votes import Votes

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock

_NAMED_CHANGES = 4000
"""Identities with the latest changes, which `changes_since` can name."""
_LEAST_TURN = 0.02
"""Change of an offset, as a length, from which the rows of its view are turned; it is less certain."""
_FEW_PEOPLE = 30
"""People from which one contributes less to the offset than `_LEAST_TURN`."""
_COUNT_CHANGE = (  # of identities and exemplars: other processes then read the revisions again
    "INSERT INTO meta VALUES ('changes', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1"
)


@dataclass(frozen=True, slots=True)
class Space:
    """An embedding space: its id, and the length D of its vectors."""

    space: str
    dimension: int

    def __str__(self) -> str:
        return f"space {self.space} ({self.dimension} numbers)"

    @staticmethod
    def stored(store: Store) -> Space | None:
        """Return the space of a gallery file; None where it has none yet."""
        space = store.meta("space")
        if space is None:
            return None
        dimension = store.meta("dimension")
        if not isinstance(space, str) or type(dimension) is not int or not 0 < dimension <= MOST_NUMBERS:
            raise store.damage("it does not state a usable embedding space")
        return Space(visible(space), dimension)


def owner_lock(gallery: Path) -> FileLock:
    """Return the lock of the one process that uses a gallery for a live system."""
    return FileLock(gallery.with_name(gallery.name + ".lock"))


class SyncedFile:
    """An open gallery file, its index, and the lock that every method holds which reads or changes.

    `revisions` has a number for each identity, which changes with its exemplars. After `centre`, the rows of
    the index are `centred` by the `means` of their views; the file has the embeddings themselves.
    """

    def __init__(
        self, path: Path | None, space: Space, key: bytes | None, clock: Clock | None = None
    ) -> None:
        self.where = str(path or MEMORY)
        self.space = space
        self.lock = threading.RLock()
        self.index = ExemplarIndex(space.dimension)
        self.means = CameraMeans(space.dimension)
        self.revisions: dict[int, int] = {}
        self.cameras_mark: Any = None
        """Changes when another process replaces `CAMERAS_FACT`."""
        self.apart_mark: Any = None
        """Changes when another process changes the pairs of `gallery.corrections`."""
        self.log: WriteAheadLog
        """Set by `open`."""
        self.is_centred = False
        """Whether the votes for the means of cameras are counted, see `centre`."""
        self._path = path
        self._key = key
        self._clock = clock
        self._open_rows: Rows | None = None
        self._owner_lock = None if path is None else owner_lock(path)
        self._changes: dict[int, int] = {}
        """Count of changes at the latest one of each identity, in this order."""
        self._change_count = 0
        self._origins: dict[int, tuple[str, ...]] = {}
        """Of exemplars that were asked for, or written, since the last change of their identity."""
        self._votes = Votes(self.means, self.index)
        self._unnamed = 0
        """Count of changes at the latest one that is not in `_changes`."""
        self._stored_count: int | None = None
        self._data_version = -1
        self._exclusive = 0
        self._together = self._counted = False
        self._reading = _Reading(self.lock, self._current)

    def open(self, policy: Policy, *, owner: bool) -> None:
        """Open the file and load the index; see `Gallery.__enter__`."""
        store = Store(self._path, key=self._key)
        self.log = store.log
        self._open_rows = Rows(store, self.space.dimension, policy, self._clock)
        try:
            self._settle(self._open_rows, owner=owner)
            if owner:
                self._open_rows.ages.adopt()
            self._synchronise()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release the memory."""
        with self.lock:
            if self._owner_lock is not None:
                self._owner_lock.release()
            if self._open_rows is not None:
                self._open_rows.store.close()
                self._open_rows = None
            self.index = ExemplarIndex(self.space.dimension)
            self.means = CameraMeans(self.space.dimension)
            self._votes.clear()
            self.is_centred = False
            self.revisions = {}
            self._data_version = -1

    def _settle(self, rows: Rows, *, owner: bool) -> None:
        """Lock the file of an owner; give an empty one this space; determine whose policy applies."""
        lock = self._owner_lock if owner else None
        if lock is not None and not lock.acquire():
            raise StorageError(
                f"{self.where} is in use by another edge-agent (process {lock.holder()}); "
                "stop that one, or give this one its own state folder"
            )
        store, policy = rows.store, rows.policy
        space, stored = Space.stored(store), Policy.stored(store)
        if (space, stored) == (self.space, policy):
            return  # nothing to write, so that a gallery on a full disk still opens
        new = space is None or (space != self.space and self._may_change_space(rows, owner=owner))
        if not new:
            self._check_space(store)
            if not owner:
                rows.policy = stored
                return
        with store.change():
            if new:
                for key, value in zip(("space", "dimension"), astuple(self.space), strict=True):
                    store.put_meta(key, value)
                rows.leave_space()
            rows.store_policy(policy)

    def _may_change_space(self, rows: Rows, *, owner: bool) -> bool:
        """Return whether the file has no identities, and no live system uses it."""
        if rows.store.value("SELECT count(*) FROM identity"):
            return False
        if owner or self._owner_lock is None:
            return True
        if not self._owner_lock.acquire():
            return False
        self._owner_lock.release()
        return True

    def _check_space(self, store: Store) -> None:
        found = Space.stored(store)
        if found is None or found == self.space:
            return
        folder = "." if self._path is None else self._path.parent
        raise SpaceMismatch(
            f"the gallery {self.where} contains embeddings of {found}, but the model in use makes those of"
            f" {self.space}; they cannot be compared. Use the former model (a former default network: see"
            " docs/gallery.md, embedding space), move its people by their kept pictures with"
            f" `edge-agent gallery reembed --model NETWORK --state {folder}`, or keep a copy with"
            f" `edge-agent gallery export FILE --state {folder}` and empty the gallery"
            f" with `edge-agent gallery forget --all --state {folder}`"
        )

    def reading(self) -> contextlib.AbstractContextManager[Rows]:
        """Hold the lock, with the index up to date."""
        return self._reading

    @contextlib.contextmanager
    def changing(self, *, durable: bool = True) -> Iterator[Rows]:
        """Hold the lock for one transaction, see `Store.change`; then update the index."""
        with self.lock, self._rows.exemplars:
            rows = self._rows
            with rows.store.change(durable=durable) as began:
                if began:
                    self._counted = False
                    if rows.store.data_version() != self._data_version:  # other processes wait from here on
                        self._synchronise()
                yield rows
                if rows.exemplars.changed and not self._counted:
                    rows.store.run(_COUNT_CHANGE)
                    self._counted = self._together
                    self._stored_count = rows.store.meta("changes")
            for number in rows.exemplars.changed:
                self._reload(number)
            if rows.exemplars.changed:
                self.recentre(erased=not rows.exemplars.changed <= self.revisions.keys())

    @contextlib.contextmanager
    def exclusive(self, *, together: bool = False) -> Iterator[None]:
        """Hold the lock for many calls; changes by other processes are noticed afterwards.

        With `together`, all changes of the block are committed at its end, see `Store.together`; a block
        inside another one is part of it. StorageError: some are undone. The index then follows the file at
        the next call.
        """
        with self.reading() as rows:
            outermost = together and not self._together
            self._exclusive += 1
            self._together = self._together or together
            try:
                with rows.store.together() if together else contextlib.nullcontext():
                    yield
            except StorageError:
                self._data_version = -1
                raise
            finally:
                self._exclusive -= 1
                if outermost:
                    self._together = self._counted = False

    def changes_since(self, mark: int) -> tuple[int, set[int] | None]:
        """See `Gallery.changes_since`; call it inside `reading`."""
        if mark == 0 or mark < self._unnamed:
            return self._change_count, None
        changed = set()
        for number, at in reversed(self._changes.items()):
            if at <= mark:
                break
            changed.add(number)
        return self._change_count, changed

    def version(self) -> tuple[int, int]:
        """Return numbers of the changes by other processes and by this one, as of the latest `reading`."""
        return self._data_version, self._rows.store.changes()

    def origins(self, number: int) -> tuple[str, ...]:
        """Return the origins of the exemplars of an identity, by age; call it inside `reading`."""
        if number not in self._origins:
            if number not in self.revisions:
                self._rows.identity(number)  # raises
            self._origins[number] = self._rows.exemplars.origins(number)
        found = self._origins[number]
        if len(self._origins) > _NAMED_CHANGES:
            self._origins.clear()
        return found

    def scrub(self) -> None:
        """Remove copies of erased rows from the disk; StorageError when another process prevents it."""
        if not self._rows.store.scrub(wait=True):
            raise StorageError(
                f"{self.where}: erased, but another process holds its write-ahead log open; copies "
                "remain there until the next forget or expiry. Close that process (fuser names it)"
            )

    def _current(self) -> Rows:
        """Return the rows, after a look whether others have changed them; inside the lock."""
        rows = self._rows
        if not self._exclusive and rows.store.data_version() != self._data_version:
            self._synchronise()
        return rows

    @property
    def _rows(self) -> Rows:
        if self._open_rows is None:
            raise RuntimeError("the gallery is not open: use it in a `with` block")
        return self._open_rows

    def _synchronise(self) -> None:
        """Read what other connections changed in the file since the last call; everything at the first."""
        rows, first = self._rows, self._data_version < 0
        version = rows.store.data_version()
        rows.fleet.follow()
        self._check_space(rows.store)
        self.cameras_mark = rows.store.meta("cameras")
        self.apart_mark = rows.store.meta("apart")
        count = rows.store.meta("changes")
        if not first and count == self._stored_count:
            self._data_version = version  # e.g. unused pages were freed
            return
        present = dict(rows.store.rows("SELECT number, revision FROM identity"))
        stale = {number for number, revision in present.items() if self.revisions.get(number) != revision}
        gone = self.revisions.keys() - present.keys()
        stale |= gone
        for number in gone:
            self.means.drop(number)
        if len(stale) > len(present) // 4:
            self._load_all()
            self.revisions = present
        else:
            for number in stale:
                self._reload(number)
            self.recentre(erased=True)
        self._data_version, self._stored_count = version, count

    def _load_all(self) -> None:
        rows = self._rows
        counts = rows.store.rows("SELECT number, count(*) FROM exemplar GROUP BY number ORDER BY number")
        owners, each = np.array(counts, np.int64).reshape(-1, 2).T
        self._forget_marks()
        self.index.load(owners, each, self._batches(rows))
        if self.is_centred:
            self._count_votes()

    def _reload(self, number: int) -> None:
        state = self._rows.exemplars.state(number)
        revision, vectors, keys = state.revision, state.vectors, state.views
        views = self.means.views(keys)
        if self.is_centred:
            self._votes.take_back(number)
        self.index.put(number, centred(vectors, self.means.offsets[views]) if len(keys) else vectors, views)
        if self.is_centred:
            self._votes.add(number, vectors, views)
        if revision is None:
            self.revisions.pop(number, None)
            self.means.drop(number)
        else:
            self.revisions[number] = revision
        self._origins.pop(number, None)
        if state.origins is not None:
            self._origins[number] = state.origins
        self._note_changes([number])

    def _note_changes(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._change_count += 1
            self._changes.pop(number, None)
            self._changes[number] = self._change_count
        while len(self._changes) > _NAMED_CHANGES:
            self._unnamed = self._changes.pop(next(iter(self._changes)))

    def _forget_marks(self) -> None:
        """Let `changes_since` return None: any identity may have changed."""
        self._changes.clear()
        self._origins.clear()
        self._change_count += 1
        self._unnamed = self._change_count

    # ---- offsets of cameras

    def centre(self) -> None:
        """Centre the rows of the index from now on."""
        with self.reading():
            if not self.is_centred:
                self.is_centred = True
                self.means.share_all(self._rows.site.means(self.space.dimension))
                self._count_votes()
            nobody = np.zeros((1, self.space.dimension), np.float32)
            self.index.search(nobody, 1)  # a first search prepares those that follow

    def recentre(self, *, erased: bool = False) -> None:
        """Turn the rows of the views whose offsets moved by more than they are uncertain by.

        With `erased`, also by less where one person is a great part of the mean.
        """
        if not self.is_centred:
            return
        wanted, present = self.means.wanted(), self.means.offsets
        gaps = wanted - present
        least = np.where(self.means.counts() < _FEW_PEOPLE, 0.0, _LEAST_TURN) if erased else _LEAST_TURN
        moved = np.sqrt(np.einsum("vd,vd->v", gaps, gaps)) > least
        for view in np.flatnonzero(moved).tolist():
            numbers = self.index.turn(view, present[view], wanted[view])
            self.means.move(view, wanted[view])
            if len(numbers) > _NAMED_CHANGES // 4:
                self._forget_marks()
            else:
                self._note_changes(numbers.tolist())

    def _batches(self, rows: Rows) -> Iterator[tuple[NDArray[np.int64], Vectors, Views]]:
        for owners, vectors, keys in rows.exemplars.batches():
            views = self.means.views(keys)
            yield owners, centred(vectors, self.means.offsets[views]), views

    def _count_votes(self) -> None:
        self.means.clear()
        self._votes.clear()
        for owners, rows, views in self.index.batches():
            self.means.vote_all(owners, views, restored(rows, self.means.offsets[views]))
        self.recentre(erased=True)


class _Reading:
    """What `SyncedFile.reading` returns, always the same: a generator each time takes three times as long."""

    __slots__ = ("_current", "_lock")

    def __init__(self, lock: threading.RLock, current: Callable[[], Rows]) -> None:
        self._lock = lock
        self._current = current

    def __enter__(self) -> Rows:
        self._lock.acquire()
        try:
            return self._current()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *problem: object) -> None:
        self._lock.release()


class Facts:
    """JSON values by key, e.g. the score statistics of the site.

    They belong to the embedding space: `Gallery.forget_all` removes them.
    """

    def __init__(self, file: SyncedFile) -> None:
        self._file = file

    def get(self, key: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return the value; None when there is none."""
        with self._file.reading() as rows:
            text = rows.store.value("SELECT value FROM fact WHERE key = ?", (key,))
            try:
                return None if text is None else parse_json(text, key)
            except InputError as problem:
                raise rows.store.damage(str(problem)) from problem

    def set(self, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Store a value; None removes it. A power cut may undo this. ValueError: not JSON, or not finite."""
        self.change(key, lambda _: value, durable=False)

    def change(self, key: str, change: Callable[[Any], Any], *, durable: bool = True) -> None:
        """Replace a value by `change(value)` in one transaction; None stands for no value."""
        with self._file.changing(durable=durable) as rows:
            value = change(self.get(key))
            if value is None:
                rows.store.run("DELETE FROM fact WHERE key = ?", (key,))
            else:
                text = json.dumps(value, allow_nan=False)
                rows.store.run("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, text))
