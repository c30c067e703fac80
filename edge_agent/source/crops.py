"""A folder into which an upstream detector writes person crops.

The metadata of a crop come from its name in Market-1501 style (`0007_c2s1_000451_03.jpg`: track 7 of camera
c2 in recording 1, frame 451), or from a JSON object next to it (`anything.jpg` and `anything.json`)::

    {"camera": "hall", "time": 1700000000.25, "frame": 451, "track": 7, "box": [10, 20, 74, 148]}

Every key is optional; other keys are tolerated. The JSON object has precedence.

**Exactly once.** A crop is a file of one name, size and modification time. It is delivered until its batch is
acknowledged with `done`, and never again once `done` has returned, across restarts and kill -9: the
acknowledgement is a committed transaction. (A power cut may undo the last ones: to wait for the disk with
every batch would slow the agent and wear the flash.) A process that is killed between the use of a batch and
its acknowledgement gets that batch again.

**Half-written files.** A crop is read when its size and time have been constant for `settle_seconds` and it
has its end marker. Writers should write under a name that starts with a dot, and rename; the JSON object
first, then the picture.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import stat
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edge_agent.core.errors import EdgeAgentError, SourceError, SourceLost, StorageError
from edge_agent.core.files import shown
from edge_agent.core.pictures import MAX_CROP_PIXELS, UnreadablePicture, read_picture
from edge_agent.core.redaction import public_source
from edge_agent.core.structures import LONE_TRACKS, CropBatch, Pictures
from edge_agent.core.text import encodable
from edge_agent.source import crop_files
from edge_agent.source.crop_files import CropFile, CropLedger, FolderScan, crop_file
from edge_agent.source.crop_metadata import Crop, CropDescriber, UnusableCrop, by_frame

_log = structlog.get_logger(__name__)

_HEARTBEAT_SECONDS = 0.5
"""Between two heartbeats while no crops come."""
_PATIENCE_SECONDS = 10.0
"""An incomplete crop, or one without metadata, is refused when it has not become complete after this time."""
MAX_IN_FLIGHT = 64
"""Batches delivered and not acknowledged; more are held back, since their pictures stay in memory."""
MAX_BYTES_IN_FLIGHT = 256 << 20
"""The same, by the size of their pictures."""
MAX_BATCH_BYTES = 64 << 20
"""Size of the pictures from which on a batch is complete."""
MAX_CROPS = 128
"""Crops in one batch; a frame with more comes in several."""
_MAX_PICTURE_BYTES = 16 << 20
_SAME_MOMENT_S = 0.001


@dataclass(frozen=True, slots=True)
class CropFolderOptions:
    """Options of a crop folder; `fps` and `start_time` are for crops named as in Market-1501."""

    poll_seconds: float = 0.5
    settle_seconds: float = 0.5
    once: bool = False
    delete: bool = False
    fps: float | None = None
    start_time: float | None = None


class CropFolderSource:
    """Crops of a watched folder, one `CropBatch` per camera and frame; see the module for the rules.

    The camera of a batch is the id of the source, followed by the camera of the crop's metadata (`yard-c2`,
    `yard-hall`). Polls the folder, so that it works on any file system, network shares included.

    Subfolders and names that start with a dot are ignored, symbolic links are refused. `state_path` is an
    SQLite file that records the acknowledged crops; it is made when missing. `now` gives Unix seconds that
    never jump, see `core.clock`.
    """

    live = False
    stall_seconds = None  # an empty folder is healthy

    def __init__(
        self,
        id: str,  # noqa: A002 - the name that every source has
        folder: str | Path,
        state_path: str | Path,
        options: CropFolderOptions,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.id = id
        self.folder = Path(folder)
        self._shown = public_source(shown(self.folder))
        self.ends = options.once
        self._options = options
        self._now = now
        self._ledger = CropLedger(Path(state_path))
        self._describer = CropDescriber(id, self.folder, options.fps, options.start_time)
        self._numbers = itertools.count(1)
        self._opened = False
        self._lock = threading.Lock()
        self._in_flight: dict[int, tuple[CropBatch, list[CropFile]]] = {}
        self._files_in_flight: set[CropFile] = set()
        self._bytes_in_flight = 0

    def check(self) -> None:
        """Raise SourceError where the folder cannot be read."""
        self._folder_time()

    def frames(self) -> Generator[CropBatch | None, None, None]:
        """Batches in order of time as far as they are present; None while nothing is new.

        Raises:
            SourceError: the folder does not exist, or may not be read.
            SourceLost: the folder existed and is gone (a network share, for example).
            StorageError: the state cannot be read or written.
        """
        if self._describer.start_time is None:
            self._describer.start_time = self._now()
        scan = FolderScan(self._now)
        with self._ledger.opened():
            if self._options.delete:
                for file in self._ledger.acknowledged():  # a kill came before their deletion
                    self._remove(file)
            while True:
                found = self._new_files(scan)
                yield from self._batches(found, scan)
                if self.ends and not scan.unfinished:
                    return
                until = time.monotonic() + self._options.poll_seconds
                while (left := until - time.monotonic()) > 0:
                    time.sleep(min(_HEARTBEAT_SECONDS, left))
                    yield None

    def done(self, batch: CropBatch) -> None:
        """Acknowledge a batch: it will never be delivered again. May be called from any thread.

        Raises:
            StorageError: it could not be stored; the batch counts as not acknowledged.
            ValueError: this batch was not delivered by this source, or is acknowledged already.
        """
        with self._lock:
            if id(batch) not in self._in_flight:
                raise ValueError(f"source {self.id}: batch was not given out, or is acknowledged already")
            files = self._in_flight[id(batch)][1]
            self._ledger.record(files, "read")
            del self._in_flight[id(batch)]
            self._files_in_flight.difference_update(files)
            self._bytes_in_flight -= _bytes_of(batch.images)
        if self._options.delete:
            for file in files:
                self._remove(file)

    def owns(self, camera: str) -> bool:
        """Whether the crops of this camera come from this folder."""
        return camera == self.id or camera.startswith(f"{self.id}-")

    def erase(self, pictures: Collection[Pictures]) -> int:
        """Delete all crops of these tracks with their JSON files, read or not; return the number of pictures.

        May be called from any thread, also while the source is not being read.

        Raises:
            StorageError: the folder cannot be read, or one of them cannot be deleted.
        """
        wanted: dict[tuple[str, int | None], list[Pictures]] = {}
        for one in pictures:
            wanted.setdefault((one.camera, one.track if one.track < LONE_TRACKS else None), []).append(one)
        for tracks in wanted.values():
            tracks.sort(key=lambda one: one.since)
        gone: list[CropFile] = []
        try:
            with os.scandir(self.folder) as entries:
                for file in filter(None, map(crop_file, entries)):
                    if self._is_wanted(file, wanted):
                        crop_files.remove_crop(self.folder / file.name)
                        gone.append(file)
        except OSError as problem:
            raise StorageError(
                f"source {self.id}: pictures of a person who was erased cannot be deleted from {self._shown}:"
                f" {problem.strerror}; check its owner and permissions"
            ) from problem
        if gone and self._ledger.path.exists():
            self._ledger.forget(gone)
        return len(gone)

    def _is_wanted(self, file: CropFile, wanted: dict[tuple[str, int | None], list[Pictures]]) -> bool:
        try:
            crop = self._describer.describe(file)
        except UnusableCrop:
            return False
        # Times counted from the opening differ from those of an earlier run.
        timeless = self._options.fps is not None and self._options.start_time is None
        tracks = wanted.get((crop.camera, crop.track), [])
        if crop.track is None:  # one entry for each picture, and there can be many
            at = bisect_left(tracks, crop.time - _SAME_MOMENT_S, key=lambda one: one.since)
            return bool(tracks) and (
                timeless or (at < len(tracks) and tracks[at].since <= crop.time + _SAME_MOMENT_S)
            )
        return any(timeless or one.since - _SAME_MOMENT_S <= crop.time < one.until for one in tracks)

    def _new_files(self, scan: FolderScan) -> list[CropFile]:
        """Return the oldest crops that are complete and new, at most `MAX_LISTED`."""
        modified_ns = self._folder_time()
        if not scan.due(modified_ns):
            return []
        scan.begin(modified_ns)
        if scan.pruning_due():
            self._ledger.prune(self.folder)
        chosen = heapq.nsmallest(
            crop_files.MAX_LISTED,
            self._ledger.unknown(self._settled(scan)),
            key=lambda file: (file.modified_ns, file.name),
        )
        scan.unfinished |= len(chosen) == crop_files.MAX_LISTED
        return chosen

    def _folder_time(self) -> int:
        kind = SourceLost if self._opened else SourceError
        try:
            status = self.folder.stat()
        except OSError as problem:
            reason = f"source {self.id}: cannot read the folder {self._shown}: {problem.strerror or problem}"
            raise kind(reason) from problem
        if not stat.S_ISDIR(status.st_mode):
            raise kind(f"source {self.id}: {self._shown} is not a folder")
        self._opened = True
        return status.st_mtime_ns

    def _settled(self, scan: FolderScan) -> Iterator[CropFile]:
        """Pictures whose size and time are constant, in the directory's order; none in flight."""
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    file = crop_file(entry)
                    if file is None or file in self._files_in_flight:
                        continue
                    if scan.settled(file, self._options.settle_seconds):
                        yield file
                    else:
                        scan.unfinished = True
        except OSError as problem:
            raise SourceLost(f"source {self.id}: cannot list {self._shown}: {problem.strerror}") from problem

    def _batches(
        self, files: Iterable[CropFile], scan: FolderScan
    ) -> Generator[CropBatch | None, None, None]:
        crops: list[Crop] = []
        for file in files:
            with self._refusing(file, scan):
                crops.append(self._describer.describe(file))
        for group in by_frame(crops):
            waiting = deque(group)
            while waiting:
                while len(self._in_flight) >= MAX_IN_FLIGHT or self._bytes_in_flight >= MAX_BYTES_IN_FLIGHT:
                    time.sleep(_HEARTBEAT_SECONDS / 10)
                    yield None
                batch = self._read(waiting, scan)
                if batch is not None:
                    yield batch

    def _read(self, waiting: deque[Crop], scan: FolderScan) -> CropBatch | None:
        """Decode the next crops of one frame and mark them as in flight; None where none can be decoded."""
        images: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        kept: list[Crop] = []
        while waiting and len(kept) < MAX_CROPS and _bytes_of(images) < MAX_BATCH_BYTES:
            crop = waiting.popleft()
            with self._refusing(crop.file, scan):
                images.append(self._decode(crop.file))
                kept.append(crop)
        if not kept:
            return None
        number = kept[0].number
        sizes = [(0, 0, image.shape[1], image.shape[0]) for image in images]
        boxes = [crop.box or size for crop, size in zip(kept, sizes, strict=True)]
        batch = CropBatch(
            camera=kept[0].camera,
            number=next(self._numbers) if number is None else number,
            time=min(crop.time for crop in kept),
            images=tuple(images),
            boxes=np.array(boxes, np.float32),
            track_ids=tuple(crop.track for crop in kept),
        )
        files = [crop.file for crop in kept]
        with self._lock:
            self._in_flight[id(batch)] = (batch, files)
            self._files_in_flight.update(files)
            self._bytes_in_flight += _bytes_of(images)
        return batch

    def _decode(self, file: CropFile) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if file.size > _MAX_PICTURE_BYTES:
            raise UnusableCrop(f"{file.size} bytes are no person crop", final=True)
        try:
            return read_picture(self.folder / file.name, max_pixels=MAX_CROP_PIXELS, follow=False)
        except UnreadablePicture as problem:
            raise UnusableCrop(problem.reason) from problem

    @contextlib.contextmanager
    def _refusing(self, file: CropFile, scan: FolderScan) -> Iterator[None]:
        """Leave an unusable crop for the next scan, or refuse it when it will stay unusable."""
        try:
            yield
        except UnusableCrop as problem:
            if not problem.final and not scan.out_of_patience(file, _PATIENCE_SECONDS):
                scan.unfinished = True
                return
            self._refuse(file, str(problem))
        except (EdgeAgentError, MemoryError):
            raise
        except Exception as problem:  # noqa: BLE001 - one crop must not end the source, now and at each start
            _log.exception("crop_failed", camera=self.id, file=shown(file.name))
            self._refuse(file, f"unexpected error: {problem!r}")

    def _refuse(self, file: CropFile, reason: str) -> None:
        self._ledger.record([file], f"refused: {encodable(reason)}")
        _log.warning("crop_refused", camera=self.id, file=shown(file.name), reason=reason)

    def _remove(self, file: CropFile) -> None:
        """Delete an acknowledged picture and its JSON file; what cannot be deleted stays in the record."""
        path = self.folder / file.name
        try:
            status = path.lstat()
            if status.st_size == file.size and crop_files.modified_ns(status) == file.modified_ns:
                crop_files.remove_crop(path)  # it was not overwritten
        except FileNotFoundError:  # erased meanwhile
            return
        except OSError as problem:
            _log.warning("crop_not_deleted", camera=self.id, file=shown(file.name), reason=problem.strerror)


def _bytes_of(images: Iterable[np.ndarray[Any, np.dtype[np.uint8]]]) -> int:
    return sum(image.nbytes for image in images)
