"""A folder into which an upstream detector writes person crops.

What a crop is comes from its name in Market-1501 style (`0007_c2s1_000451_03.jpg`: track 7 of camera
c2 in recording 1, frame 451), or from a JSON object beside it (`anything.jpg` and `anything.json`)::

    {"camera": "hall", "time": 1700000000.25, "frame": 451, "track": 7, "box": [10, 20, 74, 148]}

Every key is optional; others are tolerated. Where both are there, the JSON object counts.

**Exactly once.** A crop is a file of one name, size and modification time. It is given out until its
batch is acknowledged with `done`, and never again once `done` has returned, through restarts and kill -9:
the acknowledgement is a committed transaction in `state_path`. (A power cut may undo the last ones, since
waiting for the disk with every batch would slow the agent and wear the flash.) A process that is killed
between using a batch and acknowledging it meets that batch again: no reader of files can do better
without a transaction shared with its consumer.

**Half-written files.** A crop is read when its size and time stood still for `settle_seconds` and it has
its end marker. A writer does best to write under a name that starts with a dot and to rename; and to put
the JSON object there before the picture.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edge_agent.core.errors import InputError, SourceError, SourceLost, StorageError
from edge_agent.core.pictures import PICTURE_SUFFIXES, parse_crop_name, read_picture
from edge_agent.core.sqlite import Description, connect, make_private, transaction
from edge_agent.core.structures import LONE_TRACKS, CropBatch, Pictures
from edge_agent.source.fields import is_number, unix_time

__all__ = ["CropFolderSource"]

_log = structlog.get_logger(__name__)

_CAMERA = re.compile(r"[a-z0-9_-]{1,64}")
_BEAT_SECONDS = 0.5
"""Between two signs of life while nothing comes."""
_PATIENCE_SECONDS = 10.0
"""A crop that is cut off, empty or without data is given so long to become whole before it is set aside."""
_FULL_SCAN_SECONDS = 60.0
"""The folder's own time tells of new names but not of files overwritten in place: look at all this often."""
_PRUNE_SECONDS = 86_400.0
_MAX_LISTED = 4096
"""Crops taken from one look at the folder, oldest first; what is beyond waits for the next."""
_MAX_IN_FLIGHT = 64
"""Batches given out and not acknowledged; more are held back, for their pictures stay in memory."""
_MAX_CROPS = 128
"""Crops in one batch; a frame with more comes in several."""
_MAX_PICTURE_BYTES = 16 << 20
_MAX_SIDECAR_BYTES = 64 << 10
_SAME_MOMENT_S = 0.001
_TRACKS_PER_SEQUENCE = 1_000_000
"""A tracker starts anew with a recording, so track 7 of recording 1 is not track 7 of recording 2."""


@dataclass(frozen=True, slots=True)
class _File:
    """One picture in the folder, as the directory says."""

    modified_ns: int
    name: str
    size: int

    @property
    def age(self) -> float:
        return time.time() - self.modified_ns / 1e9


@dataclass(frozen=True, slots=True)
class _Crop:
    """One picture and what is known of it."""

    file: _File
    camera: str
    number: int | None
    time: float
    track: int | None
    box: tuple[float, float, float, float] | None
    frame_key: tuple[object, ...]
    """Crops of one frame have it in common."""


class _Unusable(Exception):
    """Why a crop cannot be read; `final` when it will not become better."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class CropFolderSource:
    """Crops of a watched folder, one `CropBatch` per camera and frame; see the module for the rules.

    The camera of a batch is the id of the source, followed by the camera that the crop names
    (`yard-c2`, `yard-hall`). Works by polling, so on any file system, network shares included.

    Args:
        id: id of the source.
        folder: where the crops are; folders in it and names that start with a dot are left alone.
        state_path: SQLite file that remembers which crops were acknowledged; made when missing.
        poll_seconds: between two looks at the folder.
        settle_seconds: a file that has not changed for so long is complete.
        once: end when everything that is there has been read, rather than wait for more.
        delete: remove crops (and their JSON) once they are acknowledged; broken ones stay.
        fps: with it, the time of a crop with a Market-1501 name is `start_time + frame / fps`;
            without, it is the file's modification time.
        start_time: Unix time of frame 0 for that; the moment of opening when None.
    """

    live = False
    stall_seconds = None  # an empty folder is healthy

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        folder: str | Path,
        *,
        state_path: str | Path,
        poll_seconds: float = 0.5,
        settle_seconds: float = 0.5,
        once: bool = False,
        delete: bool = False,
        fps: float | None = None,
        start_time: float | None = None,
    ) -> None:
        if not (poll_seconds > 0 and settle_seconds >= 0) or (fps is not None and not fps > 0):
            raise SourceError(
                f"source {id}: poll_seconds and fps must be positive, settle_seconds not negative"
            )
        self.id = id
        self.folder = Path(folder)
        self.ends = once
        self._ledger = _Ledger(Path(state_path))
        self._poll_seconds = poll_seconds
        self._settle_seconds = settle_seconds
        self._delete = delete
        self._fps = fps
        self._start_time = start_time
        self._timed_from_opening = fps is not None and start_time is None
        self._numbers = itertools.count(1)
        self._opened = False
        self._lock = threading.Lock()
        self._in_flight: dict[int, tuple[CropBatch, list[_File]]] = {}
        self._flying: set[_File] = set()
        self._refused = 0
        self._acknowledged = 0

    @property
    def refused(self) -> int:
        """Crops set aside since they are broken, or their data make no sense."""
        return self._refused

    @property
    def acknowledged(self) -> int:
        """Crops acknowledged."""
        return self._acknowledged

    def frames(self) -> Generator[CropBatch | None, None, None]:
        """Batches in order of time as far as they are there; None while nothing is new.

        Raises:
            SourceError: there is no such folder, or it may not be read.
            SourceLost: the folder was there and is gone (a network share, for example).
            StorageError: the state cannot be read or written.
        """
        if self._start_time is None:
            self._start_time = time.time()
        look = _Look()
        with self._ledger.opened():
            if self._delete:
                self._remove_leftovers()
            while True:
                found = self._new_files(look)
                yield from self._batches(found, look)
                if self.ends and not look.unfinished:
                    return
                yield from self._rest()

    def done(self, batch: CropBatch) -> None:
        """Acknowledge a batch: it will never be given out again. May be called from any thread.

        Raises:
            StorageError: it could not be written down; the batch counts as not acknowledged.
            ValueError: this batch was not given out by this source, or is acknowledged already.
        """
        with self._lock:
            if id(batch) not in self._in_flight:
                raise ValueError(f"source {self.id}: batch was not given out, or is acknowledged already")
            files = self._in_flight[id(batch)][1]
            self._ledger.record(files, "read")
            del self._in_flight[id(batch)]
            self._flying.difference_update(files)
            self._acknowledged += len(files)
        if self._delete:
            for file in files:
                self._remove(file)

    def owns(self, camera: str) -> bool:
        """Whether the crops of this camera come from here."""
        return camera == self.id or camera.startswith(f"{self.id}-")

    def erase(self, pictures: Collection[Pictures]) -> int:
        """Delete all crops of these tracks with their JSON, whether they were read or not.

        May be called from any thread, and when nothing is being read.

        Returns:
            How many pictures were deleted.

        Raises:
            StorageError: the folder cannot be read, or one of them cannot be deleted.
        """
        wanted: dict[tuple[str, int | None], list[Pictures]] = {}
        for one in pictures:
            track = None if one.track >= LONE_TRACKS else one.track
            wanted.setdefault((one.camera, track), []).append(one)
        gone: list[_File] = []
        try:
            with os.scandir(self.folder) as entries:
                for file in filter(None, map(_picture, entries)):
                    if self._is_wanted(file, wanted):
                        path = self.folder / file.name
                        path.with_suffix(".json").unlink(missing_ok=True)
                        path.unlink(missing_ok=True)
                        gone.append(file)
        except OSError as problem:
            raise StorageError(
                f"source {self.id}: pictures of a person who was erased cannot be deleted from {self.folder}:"
                f" {problem.strerror}; check its owner and permissions"
            ) from problem
        if gone and self._ledger.path.exists():
            self._ledger.forget(gone)
        return len(gone)

    def _is_wanted(self, file: _File, wanted: dict[tuple[str, int | None], list[Pictures]]) -> bool:
        try:
            crop = self._describe(file)
        except _Unusable:
            return False
        for one in wanted.get((crop.camera, crop.track), ()):
            # A crop without a track stands for itself. Times that count from the opening say nothing now.
            until = one.since + _SAME_MOMENT_S if crop.track is None else one.until
            if self._timed_from_opening or one.since - _SAME_MOMENT_S <= crop.time < until:
                return True
        return False

    # ---- looking at the folder ------------------------------------------------------------------

    def _rest(self) -> Generator[None, None, None]:
        """Wait `poll_seconds`, showing life."""
        until = time.monotonic() + self._poll_seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(_BEAT_SECONDS, left))
            yield None

    def _hold_back(self) -> Generator[None, None, None]:
        """Wait, showing life, while too much is given out and not acknowledged."""
        while len(self._in_flight) >= _MAX_IN_FLIGHT:
            time.sleep(_BEAT_SECONDS / 10)
            yield None

    def _new_files(self, look: _Look) -> list[_File]:
        """The oldest crops that are complete and new, at most `_MAX_LISTED`."""
        modified_ns = self._folder_time()
        if not look.due(modified_ns):
            return []
        look.begin(modified_ns)
        if look.pruning_due():
            self._ledger.prune(self.folder)
        chosen = heapq.nsmallest(
            _MAX_LISTED,
            self._ledger.unknown(self._settled(look)),
            key=lambda file: (file.modified_ns, file.name),
        )
        look.unfinished |= len(chosen) == _MAX_LISTED
        return chosen

    def _folder_time(self) -> int:
        try:
            modified_ns = self.folder.stat().st_mtime_ns
            if not self.folder.is_dir():
                raise SourceError(f"source {self.id}: {self.folder} is not a folder")
        except OSError as problem:
            reason = f"source {self.id}: cannot read the folder {self.folder}: {problem.strerror or problem}"
            raise (SourceLost if self._opened else SourceError)(reason) from problem
        self._opened = True
        return modified_ns

    def _settled(self, look: _Look) -> Iterator[_File]:
        """Pictures whose size and time stand still, in the directory's order; none in flight."""
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    file = _picture(entry)
                    if file is None or file in self._flying:
                        continue
                    if look.settled(file, self._settle_seconds):
                        yield file
                    else:
                        look.unfinished = True
        except OSError as problem:
            raise SourceLost(f"source {self.id}: cannot list {self.folder}: {problem.strerror}") from problem

    # ---- from files to batches ------------------------------------------------------------------

    def _batches(self, files: Iterable[_File], look: _Look) -> Generator[CropBatch | None, None, None]:
        crops: list[_Crop] = []
        for file in files:
            with self._setting_aside(file, look):
                crops.append(self._describe(file))
        for group in _by_frame(crops):
            members = iter(group)
            while part := list(itertools.islice(members, _MAX_CROPS)):
                yield from self._hold_back()
                batch = self._read(part, look)
                if batch is not None:
                    yield batch

    def _read(self, crops: list[_Crop], look: _Look) -> CropBatch | None:
        """Decode one group of crops and note it as given out; None where none can be decoded."""
        images, kept = [], []
        for crop in crops:
            with self._setting_aside(crop.file, look):
                images.append(self._decode(crop.file))
                kept.append(crop)
        if not kept:
            return None
        first = kept[0]
        boxes = [
            crop.box or (0, 0, image.shape[1], image.shape[0])
            for crop, image in zip(kept, images, strict=True)
        ]
        batch = CropBatch(
            camera=first.camera,
            number=next(self._numbers) if first.number is None else first.number,
            time=min(crop.time for crop in kept),
            images=tuple(images),
            boxes=np.array(boxes, np.float32),
            track_ids=tuple(crop.track for crop in kept),
        )
        files = [crop.file for crop in kept]
        with self._lock:
            self._in_flight[id(batch)] = (batch, files)
            self._flying.update(files)
        return batch

    def _decode(self, file: _File) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if file.size > _MAX_PICTURE_BYTES:
            raise _Unusable(f"{file.size} bytes are no person crop", final=True)
        try:
            return read_picture(self.folder / file.name)
        except InputError as problem:
            raise _Unusable(str(problem.__cause__ or problem)) from problem

    @contextlib.contextmanager
    def _setting_aside(self, file: _File, look: _Look) -> Iterator[None]:
        """Within, a crop that is unusable is left for later, or set aside when it will stay unusable."""
        try:
            yield
        except _Unusable as problem:
            if not problem.final and abs(file.age) < _PATIENCE_SECONDS:
                look.unfinished = True
                return
            self._ledger.record([file], f"refused: {problem}")
            self._refused += 1
            _log.warning("crop_refused", camera=self.id, file=file.name, reason=str(problem))

    def _describe(self, file: _File) -> _Crop:
        """What the JSON object beside a picture says, or else its name."""
        sidecar = (self.folder / file.name).with_suffix(".json")
        try:
            with sidecar.open("rb") as handle:
                text = handle.read(_MAX_SIDECAR_BYTES + 1)
        except FileNotFoundError:
            return self._from_name(file)
        except OSError as problem:
            raise _Unusable(f"cannot read {sidecar.name}: {problem.strerror}") from problem
        return self._from_json(file, sidecar.name, text)

    def _from_name(self, file: _File) -> _Crop:
        name = parse_crop_name(file.name)
        if name is None:
            raise _Unusable("its name is not like 0007_c2s1_000451_03.jpg, and no .json is beside it")
        if name.pid < 0:
            raise _Unusable("its name says that it shows nobody (-1)", final=True)
        moment = file.modified_ns / 1e9
        if self._fps is not None and self._start_time is not None:
            moment = self._start_time + name.frame / self._fps
        track = (name.sequence or 0) * _TRACKS_PER_SEQUENCE + name.pid if name.pid else None
        key = (name.camid, name.sequence, name.frame)
        return _Crop(file, self._camera(f"c{name.camid}"), name.frame, moment, track, None, key)

    def _from_json(self, file: _File, sidecar: str, text: bytes) -> _Crop:
        if len(text) > _MAX_SIDECAR_BYTES:
            raise _Unusable(f"{sidecar} is too long", final=True)
        try:
            found = json.loads(text)
            if not isinstance(found, dict):
                raise _Unusable(f"{sidecar} is not a JSON object")
            camera = self.id if found.get("camera") is None else self._camera(found["camera"])
            number = _whole(found, "frame")
            stated = unix_time(found.get("time"))
            moment = file.modified_ns / 1e9 if stated is None else stated
            # Frame numbers start again with the writer, so the time, where it is given, has a say too.
            key = (camera, number, stated if number is not None else moment)
            return _Crop(file, camera, number, moment, _whole(found, "track"), _box(found.get("box")), key)
        except (ValueError, RecursionError) as problem:
            raise _Unusable(f"{sidecar}: {problem}") from problem

    def _camera(self, name: object) -> str:
        full = f"{self.id}-{name}"
        if not isinstance(name, str) or not _CAMERA.fullmatch(full):
            raise _Unusable(
                f"camera {name!r} does not make an id of at most 64 of a-z, 0-9, _ and -", final=True
            )
        return full

    def _remove_leftovers(self) -> None:
        """Delete what was acknowledged before a kill that came before its deletion."""
        for file in self._ledger.read():
            self._remove(file)

    def _remove(self, file: _File) -> None:
        """Delete a picture that was acknowledged, and its JSON; what cannot be deleted stays known."""
        path = self.folder / file.name
        try:
            if _identity(path) == (file.size, file.modified_ns):  # not one written over it meanwhile
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink()
        except FileNotFoundError:  # erased meanwhile
            return
        except OSError as problem:
            _log.warning("crop_not_deleted", camera=self.id, file=file.name, reason=problem.strerror)


class _Look:
    """What one reader of a folder remembers between two looks at it."""

    def __init__(self) -> None:
        self.unfinished = True
        self._seen_ns = -1
        self._full = self._pruned = -math.inf
        self._young: dict[str, tuple[int, int, float]] = {}

    def due(self, modified_ns: int) -> bool:
        """Whether anything can be new: listing 100,000 names twice a second would be waste."""
        stale = time.monotonic() - self._full > _FULL_SCAN_SECONDS
        # A file made in the same tick of the clock as the last look leaves the folder's time unchanged.
        fresh = abs(time.time() - modified_ns / 1e9) < 2.0
        return self.unfinished or fresh or stale or modified_ns != self._seen_ns

    def begin(self, modified_ns: int) -> None:
        """Note that a look at all names starts."""
        self.unfinished = False
        self._seen_ns = modified_ns
        self._full = time.monotonic()
        if len(self._young) > _MAX_LISTED:
            self._young.clear()  # they are looked at again, and wait a little longer

    def pruning_due(self) -> bool:
        """Whether it is time, once a day, to forget files that are gone."""
        if time.monotonic() - self._pruned < _PRUNE_SECONDS:
            return False
        self._pruned = time.monotonic()
        return True

    def settled(self, file: _File, seconds: float) -> bool:
        """Whether the file has not changed for `seconds`, by its own time or as seen here."""
        if file.age >= seconds:
            self._young.pop(file.name, None)
            return True
        # Its time is recent, or in the future since another machine's clock wrote it.
        size, modified_ns, since = self._young.get(file.name, (-1, -1, 0.0))
        if (size, modified_ns) != (file.size, file.modified_ns):
            self._young[file.name] = (file.size, file.modified_ns, time.monotonic())
            return False
        if time.monotonic() - since < seconds:
            return False
        del self._young[file.name]
        return True


class _Ledger:
    """Which files were acknowledged or refused, in SQLite. Any thread may call at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._description = Description(
            path,
            role="the record of the crops already read",
            damaged="remove it (the crops still in the folder will be read again)",
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep one connection for all calls within; makes the table where it is missing.

        Acknowledgements that come later open one of their own: slower, and there are few of them.

        Raises:
            StorageError: the file cannot be used.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StorageError(f"cannot make the folder {self.path.parent}: {problem.strerror}") from problem
        with self._description.translated(), contextlib.closing(self._connect()) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS crops (name TEXT PRIMARY KEY, size INTEGER NOT NULL, "
                "modified_ns INTEGER NOT NULL, outcome TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
            )
            with self._lock:
                self._open = database
            try:
                yield
            finally:
                with self._lock:  # nobody is in the middle of using it
                    self._open = None

    def _connect(self) -> sqlite3.Connection:
        make_private(self.path)
        return connect(self.path, pragmas={"journal_mode": "WAL", "synchronous": "NORMAL"})

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._description.translated():
            if self._open is not None:
                yield self._open
                return
            with contextlib.closing(self._connect()) as own:
                yield own

    def unknown(self, files: Iterable[_File]) -> Iterator[_File]:
        """Those of `files` that were neither acknowledged nor refused."""
        rest = iter(files)
        while chunk := list(itertools.islice(rest, 500)):
            marks = ",".join("?" * len(chunk))
            with self._connected() as database:
                rows = database.execute(
                    f"SELECT name, size, modified_ns FROM crops WHERE name IN ({marks})",  # noqa: S608 - marks
                    [file.name for file in chunk],
                ).fetchall()
            known = {name: (size, modified_ns) for name, size, modified_ns in rows}
            yield from (file for file in chunk if known.get(file.name) != (file.size, file.modified_ns))

    def record(self, files: Iterable[_File], outcome: str) -> None:
        """Write `files` down in one transaction."""
        now = time.time()
        rows = [(file.name, file.size, file.modified_ns, outcome, now) for file in files]
        with self._connected() as database, transaction(database):
            database.executemany("INSERT OR REPLACE INTO crops VALUES (?, ?, ?, ?, ?)", rows)

    def read(self) -> list[_File]:
        """Those that were acknowledged."""
        with self._connected() as database:
            rows = database.execute("SELECT modified_ns, name, size FROM crops WHERE outcome = 'read'")
            return [_File(*row) for row in rows.fetchall()]

    def forget(self, files: Iterable[_File]) -> None:
        """These are known no more."""
        with self._connected() as database, transaction(database):
            database.executemany("DELETE FROM crops WHERE name = ?", [(file.name,) for file in files])

    def prune(self, folder: Path) -> None:
        """Forget files that are not in the folder any more, or the state would grow for ever.

        Not where all are gone: that is what a network share looks like that is not mounted.
        """
        with self._connected() as database:
            database.execute("CREATE TEMP TABLE there (name TEXT PRIMARY KEY) WITHOUT ROWID")
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                database.executemany("INSERT INTO there VALUES (?)", ((entry.name,) for entry in entries))
            gone = database.execute("SELECT count(*) FROM crops WHERE name NOT IN (SELECT name FROM there)")
            total = database.execute("SELECT count(*) FROM crops")
            if 0 < gone.fetchone()[0] < total.fetchone()[0]:
                database.execute("DELETE FROM crops WHERE name NOT IN (SELECT name FROM there)")


def _by_frame(crops: Iterable[_Crop]) -> list[list[_Crop]]:
    """Crops of one frame together, sorted by name; frames in order of time."""
    groups: dict[tuple[object, ...], list[_Crop]] = {}
    for crop in sorted(crops, key=lambda crop: crop.file.name):
        groups.setdefault(crop.frame_key, []).append(crop)
    return sorted(groups.values(), key=lambda group: min((crop.time, crop.number or 0) for crop in group))


def _picture(entry: os.DirEntry[str]) -> _File | None:
    """A directory entry that is a picture; None for all others, and for one that just vanished."""
    if entry.name.startswith(".") or f".{entry.name.rpartition('.')[2].lower()}" not in PICTURE_SUFFIXES:
        return None
    try:
        if not entry.is_file():
            return None
        status = entry.stat()
    except OSError:
        return None
    return _File(status.st_mtime_ns, entry.name, status.st_size)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _whole(found: dict[str, Any], key: str) -> int | None:
    value = found.get(key)
    if value is not None and not (type(value) is int and 0 <= value < 1 << 62):
        raise ValueError(f"{key} must be a whole number from 0, got {value!r:.40}")
    return value


def _box(value: object) -> tuple[float, float, float, float] | None:
    """`[x1, y1, x2, y2]` in pixels."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(side) for side in value):
        raise ValueError(f"box must be [x1, y1, x2, y2] in pixels, got {value!r:.60}")
    x1, y1, x2, y2 = (float(side) for side in value)
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"box {value} is empty")
    return x1, y1, x2, y2
