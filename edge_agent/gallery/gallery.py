"""Identities with exemplars, in one SQLite file and in memory for searching."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.encryption import database_key
from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.names import checked_name, new_id
from edge_agent.core.sqlite import MEMORY
from edge_agent.gallery.cameras import Cameras
from edge_agent.gallery.corrections import Corrections
from edge_agent.gallery.crops import Crops
from edge_agent.gallery.exemplars import checked_exemplars, checked_vectors, grades
from edge_agent.gallery.means import Vectors
from edge_agent.gallery.notices import Notices
from edge_agent.gallery.retention import Retention
from edge_agent.gallery.rows import (
    Erased,
    GalleryStats,
    Identity,
    Kind,
    Person,
    Policy,
)
from edge_agent.gallery.shortlist import IndexBuilder
from edge_agent.gallery.store import Store
from edge_agent.gallery.sync import Facts, Space, SyncedFile

if TYPE_CHECKING:
    from edge_agent.core.clock import Clock
    from edge_agent.core.config import GallerySettings, Settings
    from edge_agent.core.structures import EngineInfo

_log = structlog.get_logger(__name__)

GALLERY_FILE = "gallery.db"
"""In the state folder."""


class Gallery:
    """A local gallery of one embedding space; opened by `with`.

    All methods may be called from any thread. Vectors are float32 rows of unit length; times are Unix
    seconds. A number that no identity has raises InputError. Every method may raise StorageError (DiskFull
    when no space is left); file and index are then unchanged.
    """

    def __init__(
        self,
        path: Path | str,
        settings: GallerySettings,
        *,
        space: str,
        dimension: int,
        owner: bool = False,
        key: bytes | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Describe the gallery of an embedding space of D = `dimension` numbers; nothing is opened yet.

        The file is created with mode 0600 if missing, its folder with 0700; `:memory:` is none. `key`
        encrypts it, see `edge_agent.core.encryption`. Only one live system may be its `owner`, whose sizes
        and times to live are stored, and apply to all who open the file without owning it. Ages are
        counted by `clock`; without one nobody expires. The times of calls are labels.
        """
        if dimension < 1:
            raise ValueError("dimension must be positive")
        self.space = space
        self.dimension = dimension
        self.file = SyncedFile(
            None if str(path) == MEMORY else Path(path), Space(space, dimension), key, clock
        )
        self.retention = Retention(self.file)
        self.notices = Notices(self.file)
        self.builder = IndexBuilder(settings, self.file)
        self.facts = Facts(self.file)
        self.cameras = Cameras(self.file)
        self.corrections = Corrections(self.file)
        self.crops = Crops(self.file, settings.crops_mb << 20)
        self._settings = settings
        self._owner = owner

    @classmethod
    def existing(cls, path: Path, *, key: bytes | None = None, clock: Clock | None = None) -> Gallery:
        """Describe the gallery of an existing file, with the space and settings that it contains."""
        from edge_agent.core.config import GallerySettings

        if not Path(path).is_file():
            raise StorageError(
                f"there is no gallery at {path}; it is made when the agent first runs, "
                "or name another folder with --state"
            )
        with contextlib.closing(Store(Path(path), key=key, check=False)) as store:
            space = Space.stored(store)
        if space is None:
            raise StorageError(f"{path} was never completed; remove it, it is empty")
        return cls(
            path, GallerySettings(), space=space.space, dimension=space.dimension, key=key, clock=clock
        )

    def __enter__(self) -> Gallery:
        """Open the file and load the index.

        SpaceMismatch when it contains identities of another embedding space; StorageError when it is damaged,
        inaccessible, or owned by another running agent.
        """
        self.file.open(Policy.of(self._settings), owner=self._owner)
        if self._owner:
            with contextlib.suppress(StorageError):  # a full disk: at the next start or reload
                self.crops.apply(self._settings)
        self.crops.begin()
        return self

    def __exit__(self, *problem: object) -> None:
        """Close the file."""
        self.builder.close()
        self.file.close()

    def __len__(self) -> int:
        """Number of identities."""
        with self.file.reading():
            return len(self.file.revisions)

    def exclusive(self, *, together: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold the lock for many calls; changes by other processes are noticed afterwards.

        With `together`, their changes are committed at once when the outermost block ends: a kill before that
        undoes them all. They survive a power cut after `file.log.settle`. StorageError at the end: they are
        undone.
        """
        return self.file.exclusive(together=together)

    def search(self, vectors: Vectors, k: int = 2) -> tuple[NDArray[np.int64], Vectors]:
        """Return the `k` best identities of each query `(Q, D)`, best first.

        After `cameras.start`, queries are vectors that `cameras.centred` made.
        Of equal ones, the lower number comes first. Beyond `exact_up_to` identities one may be missing, see
        `docs/gallery-growth.md`; the scores are exact. Errors as in `checked_vectors`.

        Returns:
            `(Q, k)` int64 numbers and `(Q, k)` float32 cosines of the query and the best exemplar. Where the
            gallery has fewer than `k` identities with exemplars, numbers are -1 and scores -inf.
        """
        queries = checked_vectors(vectors, self.dimension)
        with self.file.reading():
            self.builder.update()
            return self.file.index.search(queries, k)

    def vectors(self, numbers: Collection[int]) -> tuple[NDArray[np.int64], Vectors]:
        """Return exemplars of some identities from memory: `(N,)` int64 numbers and `(N, D)` float32.

        They are as they are compared: after `cameras.start` without the offsets of cameras.
        The rows of one identity are adjacent; one without exemplars, or that does not exist, has none.
        """
        with self.file.reading():
            return self.file.index.vectors(numbers)

    def present(self, numbers: Collection[int] | None = None) -> set[int]:
        """Return those of these identities that exist, or all, with or without exemplars; from memory."""
        with self.file.reading():
            return set(self.file.revisions) if numbers is None else self.file.revisions.keys() & numbers

    def changes_since(self, mark: int) -> tuple[int, set[int] | None]:
        """Return the present mark, and the identities added, changed or removed since `mark`; 0: ever.

        None when the identities are not known any more: then any may have changed.
        """
        with self.file.reading():
            return self.file.changes_since(mark)

    def enrol(
        self,
        vectors: Vectors,
        qualities: Vectors,
        *,
        name: str | None = None,
        kind: Kind = "auto",
        origin: str,
        camera: str,
        time: float,
    ) -> Identity:
        """Add a new identity. A full gallery erases `auto` identities first: expired, then longest unseen.

        Of the exemplars `(M, D)`, M at least 1, those are kept that `add_exemplars` keeps. `qualities` `(M,)`
        in 0..1 are how well each shows the person; `origin` is the track or file that contributed them, for
        `remove_origin`; `camera` and `time` are where and when the person was seen.

        Raises:
            ValueError, NonFiniteEmbedding: see `checked_exemplars`.
            InputError: the name is taken or unusable.
            StorageError: the gallery is full of enrolled identities.
        """
        rows, grades = checked_exemplars(vectors, qualities, self.dimension)
        if not len(rows):
            raise ValueError("enrol needs at least one exemplar")
        label = None if name is None else checked_name(name)
        with self.file.changing() as content:
            if label is not None:
                content.require_free_name(label)
            self.retention.make_room(content, 1)
            time = content.ages.current(time)
            number = content.insert(
                id=new_id(), name=label, kind=kind, created=time, last_seen=time, sightings=1, ttl_s=None
            )
            epoch = self.cameras.epoch(camera)
            content.add_exemplars(number, rows, [(grade, origin, camera, time, epoch) for grade in grades])
            return content.identity(number)

    def add_exemplars(
        self, number: int, vectors: Vectors, qualities: Vectors, *, origin: str, camera: str, time: float
    ) -> int:
        """Offer more exemplars `(M, D)` of an identity; return how many of them are kept.

        The most diverse `max_exemplars` of old and new are, see `diverse_rows`. Errors as in `enrol`.
        """
        rows, grades = checked_exemplars(vectors, qualities, self.dimension)
        with self.file.changing(durable=False) as content:
            if number not in self.file.revisions:
                content.identity(number)  # raises
            time = content.ages.current(time)
            epoch = self.cameras.epoch(camera)
            return content.add_exemplars(
                number, rows, [(grade, origin, camera, time, epoch) for grade in grades]
            )

    def remove_origin(self, number: int, origin: str, since: float | None = None) -> int:
        """Remove what one origin contributed to an identity, e.g. a track that was another person.

        With `since`, only what was stored from that time on.

        An identity without exemplars is never found; it stays until it expires or is forgotten. Returns the
        number of removed exemplars; 0 also when there is no such identity.
        """
        with self.file.changing() as content:
            first = None if since is None else content.ages.current(since)
            return content.exemplars.remove_origin(number, origin, first)

    def touch(self, number: int, time: float, *, sighting: bool = True) -> None:
        """Note that a person is seen now, which postpones the expiry, at the label `time`; it never falls.

        With `sighting`, one more is counted; not for a person who is still present.
        """
        with self.file.changing(durable=False) as content:
            moved = "last_seen = max(last_seen, ?), sightings = sightings + ?, seen = ?"
            content.update(number, moved, content.ages.current(time), int(sighting), content.ages.seen())

    def merge(self, keep: int, absorb: int, reason: str = "operator") -> Identity:
        """Combine two identities that are one person; `reason` is for subscribers.

        `keep` stays, with its number and id; `get` and `forget` still find the person by the other's id.
        Exemplars are offered in the order of their storage, as in `add_exemplars`. The name and the time to
        live are those of `keep`, or else the other's; `enrolled` prevails over `auto`; sightings are added.
        """
        if keep == absorb:
            raise InputError(f"cannot merge identity {keep} with itself")
        with self.file.changing() as content:
            return content.merge(keep, absorb, reason)

    def rename(self, number: int, name: str | None) -> Identity:
        """Name a person, which makes the identity `enrolled`; None removes the name, and the kind stays.

        InputError when the name is taken or unusable.
        """
        label = None if name is None else checked_name(name)
        with self.file.changing() as content:
            before = content.identity(number)
            if before.name != label:
                content.require_free_name(label)
                content.notice("named", before.id, number, "operator")
            content.update(number, "name = ?" if label is None else "name = ?, kind = 'enrolled'", label)
            return content.identity(number)

    def forget(self, number: int) -> Erased:
        """Erase a person from the file, its write-ahead log and memory.

        When this returns, the rows are zeroed, their pages are free and the log is empty; copies of old
        blocks in the file system or a flash controller are out of reach. StorageError may also mean: erased,
        but another process keeps copies in the log.
        """
        with self.file.changing() as content:
            erased = content.erase(content.identity(number))
        self.file.scrub()
        _log.info("identity_forgotten", exemplars=erased.exemplars)
        return erased

    def forget_all(self) -> list[Erased]:
        """Erase all identities and facts, as in `forget`; the file then accepts another embedding space."""
        with self.file.changing() as content:
            erased = [content.erase(person) for person in content.identities()]
            content.leave_space()
        self.cameras.reload()
        self.file.scrub()
        _log.info("gallery_emptied", identities=len(erased))
        return erased

    # ---- look-up

    def get(self, key: int | str) -> Identity:
        """Return the identity with this number, id, former id, name, or number as text."""
        with self.file.reading() as content:
            return content.find(key)

    def person(self, key: int | str) -> Person:
        """Return who has this number, id, former id, name, or number as text."""
        with self.file.reading() as content:
            return content.person(key if isinstance(key, int) else content.find(key).number)

    def identities(self) -> list[Identity]:
        """Return all identities, by rising number."""
        with self.file.reading() as content:
            return content.identities()

    def enrolled(self, numbers: Collection[int]) -> set[int]:
        """Return those of these identities that are of kind `enrolled`."""
        marks = ",".join("?" * len(numbers))
        # "+kind" keeps SQLite from using the index of the kind, which would read all identities of it.
        statement = f"SELECT number FROM identity WHERE +kind = 'enrolled' AND number IN ({marks})"  # noqa: S608
        with self.file.reading() as content:
            return {number for (number,) in content.store.rows(statement, [*numbers])}

    def exemplars(self, number: int) -> tuple[Vectors, Vectors, tuple[str, ...]]:
        """Return raw `(M, D)` float32 vectors, `(M,)` float32 qualities and M origins, oldest first."""
        with self.file.reading() as content:
            content.identity(number)
            rows = content.store.rows(
                "SELECT vector, quality, origin FROM exemplar WHERE number = ? ORDER BY row", (number,)
            )
            vectors = content.exemplars.unpacked([row[0] for row in rows])
        return vectors, grades([row[1] for row in rows]), tuple(row[2] for row in rows)

    def former_ids(self, number: int) -> tuple[str, ...]:
        """Return the ids of the identities that were merged into this one."""
        with self.file.reading() as content:
            return content.former_ids(number)

    def stats(self) -> GalleryStats:
        """Return size and content."""
        with self.file.reading() as content:
            store = content.store
            people, enrolled, named, oldest, newest = store.rows(
                "SELECT count(*), count(CASE kind WHEN 'enrolled' THEN 1 END), count(name), "
                "min(last_seen), max(last_seen) FROM identity"
            )[0]
            return GalleryStats(
                path=self.file.where,
                space=self.space,
                dimension=self.dimension,
                identities=people,
                enrolled=enrolled,
                named=named,
                exemplars=int(store.value("SELECT count(*) FROM exemplar")),
                **asdict(content.policy),
                crops=content.crops.count(),
                crop_bytes=content.crops.nbytes(),
                oldest_seen=oldest,
                newest_seen=newest,
                evicted=self.retention.evicted,
                file_bytes=store.file_bytes(),
                index_bytes=self.file.index.nbytes,
            )


def open_gallery(
    settings: Settings, info: EngineInfo, clock: Clock | None = None, *, owner: bool = False
) -> Gallery:
    """Describe the gallery of the state folder, for the embedding space of `info`; enter it to open it."""
    return Gallery(
        settings.state_dir / GALLERY_FILE,
        settings.gallery,
        space=info.space,
        dimension=info.dimension,
        owner=owner,
        key=database_key(settings.storage),
        clock=clock,
    )
