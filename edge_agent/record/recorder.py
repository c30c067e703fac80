"""Writes recordings on a thread of its own: a chain of files, of which the oldest are removed.

The driving thread only appends to a queue. A file begins with a copy of the gallery; the next one of a run
continues it. Where the writer cannot follow, entries are lost and a new chain begins.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import DiskFull, EdgeAgentError, MissingFile, StorageError
from edge_agent.core.pictures import encode_kept
from edge_agent.core.sqlite import remove_database
from edge_agent.record.entries import Decisions, Entry
from edge_agent.record.file import SUFFIX, Copied, RecordingFile, size_of

_log = structlog.get_logger(__name__)

FOLDER = "recordings"
"""In the state folder."""
FILES = 8
"""Files into which the limits of size and time are divided."""
FLUSH_S = 1.0
"""Interval of writing; a kill loses what came since."""
FLUSHED_S = 30.0
"""Longest wait for entries to be written before somebody is erased from them."""
MOST_WAITING_BYTES = 48 << 20
"""Entries that wait for the writer; beyond, they are lost."""
LEAST_FREE_BYTES = 256 << 20
"""Free space that is left to the rest of the agent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of all recordings of a state folder."""

    bytes: int
    seconds: float


class Start(Protocol):
    """The gallery at one moment."""

    def tables(self) -> Iterable[Copied]:
        """Return its rows."""

    def numbers(self) -> Mapping[str, int]:
        """Return the numbers of all identities by id."""

    def close(self) -> None:
        """Release what `tables` needs."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A new file: what its header states, and the gallery at this moment."""

    header: Mapping[str, Any]
    start: Start


@dataclass(frozen=True, slots=True)
class Pictures:
    """Crops `(h, w, 3)` uint8 BGR of the tracks of the latest frame of a camera, by track."""

    camera: str
    crops: Mapping[int, NDArray[np.uint8]]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return sum(crop.nbytes for crop in self.crops.values())


@dataclass(frozen=True, slots=True)
class Flush:
    """Write everything that came before, then set `done`."""

    done: threading.Event

    bytes = 0


Item = Entry | Pictures | Flush | Begin


@dataclass(slots=True)
class Recorder:
    """Records while it is entered. `put` and `erase` may be called from any thread."""

    folder: Path
    key: bytes | None
    limits: Limits
    begin: Callable[[bool], None]
    """Puts a `Begin` at a moment between two entries; whether it continues the file before."""
    age: Callable[[Mapping[str, Any]], float]
    """Returns the age of a file in seconds by its header."""
    problem: str = ""
    """Why nothing is recorded any more; "" while it is."""
    written: int = 0
    """Entries."""
    lost: int = 0
    """Entries that the writer could not take."""
    lost_pictures: int = 0
    """The same of pictures, whose absence does no harm to the rest."""
    frames_with_pictures: int = 0
    """Frames whose pictures were given to `put`."""
    _queue: deque[Item] = field(default_factory=deque)
    _waiting: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: bool = False
    _gap: bool = False
    """Entries are dropped until a new file begins."""
    _thread: threading.Thread | None = None
    _file: RecordingFile | None = None
    _header: Mapping[str, Any] = field(default_factory=dict)
    _decisions: Decisions | None = None
    _seq: int = 0
    _frames: dict[str, int] = field(default_factory=dict)
    """Number of the latest frame of each camera in the file."""
    _erasing: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Recorder:
        try:
            self.begin(False)
        except Exception as error:  # noqa: BLE001 - a fault here must not end the agent
            self._give_up(f"{type(error).__name__}: {error}")
            return self
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10.0)

    @property
    def size(self) -> int:
        """Bytes of all recordings on the disk."""
        return sum(size_of(path) for path in recordings(self.folder))

    def state(self) -> dict[str, Any]:
        """Return what `edge-agent status` shows."""
        size = self.size
        lost = {"lost": self.lost, "lost_pictures": self.lost_pictures}
        return {"problem": self.problem, "entries": self.written, **lost, "bytes": size}

    def put(self, item: Item) -> None:
        """Queue an entry; it is lost where too much waits. Never blocks for long."""
        self.frames_with_pictures += isinstance(item, Pictures)
        if self.problem and not isinstance(item, Flush):
            if isinstance(item, Begin):
                item.start.close()
            return
        with self._lock:
            if isinstance(item, Begin):
                self._gap = False
                self._queue.append(item)
            elif self._gap and not isinstance(item, Flush):
                self.lost += 1
            elif isinstance(item, Pictures) and self._waiting + item.bytes > MOST_WAITING_BYTES // 2:
                self.lost_pictures += len(item.crops)
            elif self._waiting + item.bytes > MOST_WAITING_BYTES:
                self._gap = True
                self.lost += 1
            else:
                self._waiting += item.bytes
                self._queue.append(item)
        if isinstance(item, Flush):
            self._wake.set()

    def interrupt(self) -> None:
        """Begin a new chain: something happened that entries cannot describe."""
        with self._lock:
            self._gap = True

    def erase(self, identity: str) -> int:
        """Erase a person by id from all recordings; return the number of entries with the person.

        StorageError: some could not be erased.
        """
        self._flush()
        with self._erasing:
            return erase(self.folder, self.key, identity)

    def erase_pictures(self) -> int:
        """Erase the pictures of everybody from all recordings, as `erase`; return their number."""
        self._flush()
        with self._erasing:
            return erase_pictures(self.folder, self.key)

    def _flush(self) -> None:
        """Wait until everything that came so far is written."""
        if self._thread is not None and self._thread.is_alive():
            flush = Flush(threading.Event())
            self.put(flush)
            if not flush.done.wait(FLUSHED_S) and self._thread.is_alive():
                raise StorageError(f"the recorder has not written its entries in {FLUSHED_S:.0f} s")

    # --- on the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        last = False
        try:
            while not last:
                last = self._stop
                self._write_all()
                if self._file is not None and not last:
                    self._limit()
                if not last:
                    self._wake.wait(FLUSH_S)
                    self._wake.clear()
        except EdgeAgentError as error:
            self._give_up(str(error))
        except Exception as error:  # noqa: BLE001 - a fault here must not end the agent
            self._give_up(f"{type(error).__name__}: {error}")
        finally:
            if self._file is not None:
                with contextlib.suppress(EdgeAgentError):
                    self._file.close()

    def _give_up(self, reason: str) -> None:
        """Record no more; what is written stays."""
        self.problem = reason
        _log.warning("recording_stopped", reason=reason)
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, Begin):
                item.start.close()
            elif isinstance(item, Flush):
                item.done.set()

    def _write_all(self) -> None:
        rows: list[tuple[int, Entry, list[dict[str, Any]], dict[int, bytes]]] = []
        for item in self._taken():
            if isinstance(item, Entry) and self._decisions is not None:
                self._seq += 1
                if item.update is not None:
                    self._frames[item.update.camera] = self._seq
                for person in item.body.get("people", ()):
                    if "number" in person:  # not of somebody whom only others know
                        self._decisions.know(person["id"], person["number"])
                plain = [self._decisions.plain(one) for one in item.decisions]
                rows.append((self._seq, item, plain, {}))
            elif isinstance(item, Pictures):
                self._add_pictures(item, rows)
            elif isinstance(item, Begin | Flush):
                self._append(rows)
                rows = []
                if isinstance(item, Begin):
                    self._open(item)
                else:
                    item.done.set()
        self._append(rows)

    def _add_pictures(
        self, item: Pictures, rows: list[tuple[int, Entry, list[dict[str, Any]], dict[int, bytes]]]
    ) -> None:
        """Add pictures to their frame, with which they are erased; without it, they are lost."""
        seq = self._frames.get(item.camera)
        if seq is None or self._file is None:
            self.lost_pictures += len(item.crops)
        elif rows and seq >= rows[0][0]:
            rows[seq - rows[0][0]][3].update(_encoded(item.crops))
        else:
            with self._erasing:
                self._file.add_pictures(seq, _encoded(item.crops))

    def _taken(self) -> Iterator[Item]:
        while self._queue:
            with self._lock:
                item = self._queue.popleft()
                if not isinstance(item, Begin):
                    self._waiting -= item.bytes
            yield item

    def _append(self, rows: list[tuple[int, Entry, list[dict[str, Any]], dict[int, bytes]]]) -> None:
        if rows and self._file is not None:
            with self._erasing:
                self._file.append(rows)
            self.written += len(rows)

    def _open(self, item: Begin) -> None:
        with contextlib.closing(item.start):
            if self._file is not None:
                self._file.close()
            self._frames.clear()
            name = f"{item.header['name']}{SUFFIX}"
            follows = self._file.path.name if self._file is not None and item.header["continues"] else None
            self._header = {**item.header, "follows": follows}
            if follows is None or self._decisions is None:
                self._decisions = Decisions(item.start.numbers())
            self._file = RecordingFile.create(self.folder / name, self.key, self._header)
            self._file.copy(item.start.tables())

    def _limit(self) -> None:
        """Begin another file where this one is large or old; remove the oldest."""
        assert self._file is not None
        self._remove_old()
        if self._gap:
            self.begin(False)
        elif (
            self._file.size() > self.limits.bytes // FILES
            or self.age(self._header) > self.limits.seconds / FILES
        ):
            self.begin(True)

    def _remove_old(self) -> None:
        assert self._file is not None
        remove_old(self.folder, self.key, self.limits, self.age, self._file.path)
        if _free(self.folder) < LEAST_FREE_BYTES:
            raise StorageError(
                f"less than {LEAST_FREE_BYTES >> 20} MB are free on the disk of {self.folder}; free some and"
                " restart the agent"
            )


def recordings(folder: Path) -> list[Path]:
    """Return the files of a folder of recordings, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def erase(folder: Path, key: bytes | None, identity: str) -> int:
    """Erase a person by id from all recordings of a folder; return the number of entries with the person.

    A file that cannot be read, since it is damaged or of another key, is removed: nobody can say whom it has.

    StorageError: a file is locked, or the disk is full.
    """
    return _erased(folder, key, lambda file: file.erase(identity))


def erase_pictures(folder: Path, key: bytes | None) -> int:
    """Erase the pictures of everybody from all recordings, as `erase`; return their number."""
    return _erased(
        folder, key, RecordingFile.erase_pictures, check=False
    )  # not to read all files at each start


def _erased(
    folder: Path, key: bytes | None, erase_in: Callable[[RecordingFile], int], *, check: bool = True
) -> int:
    erased = 0
    for path in recordings(folder):
        try:
            with RecordingFile.existing(path, key, check=check) as file:
                erased += erase_in(file)
        except MissingFile:
            continue  # removed by the limits
        except DiskFull:
            raise
        except StorageError as problem:
            if "locked" in str(problem):
                raise
            remove_database(path)
            _log.warning("recording_removed", path=str(path), reason=str(problem))
    return erased


Age = Callable[[Mapping[str, Any]], float]
"""Returns the age of a file in seconds by its header."""


def remove_old(folder: Path, key: bytes | None, limits: Limits, age: Age, keep: Path | None) -> None:
    """Remove the recordings that are older than the limit, and the oldest beyond the size; not `keep`.

    More are removed where the disk has less than `LEAST_FREE_BYTES` free.
    """
    paths = recordings(folder)
    total = sum(map(size_of, paths))
    for path in paths:
        if path == keep:
            continue
        free = _free(folder) >= LEAST_FREE_BYTES
        if total <= limits.bytes and free and _age_of(path, key, age) <= limits.seconds:
            continue
        total -= size_of(path)
        remove_database(path)


def _age_of(path: Path, key: bytes | None, age: Age) -> float:
    try:
        with RecordingFile.existing(path, key, check=False) as file:
            return age(file.header)
    except (EdgeAgentError, KeyError, TypeError, ValueError):  # of another key, or damaged
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime
        return 0.0


def _encoded(crops: Mapping[int, NDArray[np.uint8]]) -> dict[int, bytes]:
    return {track: encode_kept(crop) for track, crop in crops.items()}


def _free(folder: Path) -> int:
    left = os.statvfs(folder)
    return left.f_bavail * left.f_frsize
