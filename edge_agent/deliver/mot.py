"""Result files in MOTChallenge format, for evaluation with other tools.

Rows are `frame,identity,left,top,width,height,score,-1,-1,-1`. The identity is the agent's number of the
person, not of the track: a returning person has the former number. Observations without an identity have no
row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from edge_agent.core.errors import InputError
from edge_agent.core.files import open_to_write
from edge_agent.core.manifest import write_atomic, write_error
from edge_agent.core.structures import TrackObservation, TrackUpdate

Number = Callable[[str, int, float], int | None]
"""Returns the identity number, as known now, that a camera's track had at a time."""


def _rows(seen: Iterable[TrackObservation], number: Number) -> list[str]:
    rows = []
    for one in seen:
        if (known := number(one.camera, one.track_id, one.time)) is not None:
            x1, y1, x2, y2 = (float(v) for v in one.box)
            box = f"{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
            rows.append(f"{one.frame},{known},{box},{one.score:.4f},-1,-1,-1\n")
    return rows


def _path_of(path: Path, camera: str, cameras: int) -> Path:
    """Path of a camera's file: with several cameras, each has its own, e.g. `out-yard.txt`."""
    return path if cameras == 1 else path.with_name(f"{path.stem}-{camera}{path.suffix}")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise write_error(path, problem) from problem


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")


class MotWriter:
    """Writes each frame with the identities known at that frame; with several cameras, to a file for each."""

    def __init__(self, path: Path, cameras: int) -> None:
        self._path = path
        self._cameras = cameras
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> MotWriter:
        _check_folder(self._path)
        if self._cameras == 1:
            self._open("", self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        files, self._files = list(self._files.values()), {}
        with contextlib.ExitStack() as closing:
            for file in files:
                closing.enter_context(_writing(Path(file.name)))
                closing.callback(file.close)

    def write(self, update: TrackUpdate, number: Number) -> None:
        """Add the rows of one frame.

        Raises:
            DiskFull, StorageError: they could not be written.
        """
        if rows := _rows(update.seen, number):
            file = self._file(update.camera)
            with _writing(Path(file.name)):
                file.writelines(rows)

    def _file(self, camera: str) -> TextIO:
        key = "" if self._cameras == 1 else camera
        return self._files.get(key) or self._open(key, _path_of(self._path, camera, self._cameras))

    def _open(self, key: str, path: Path) -> TextIO:
        try:
            self._files[key] = open(path, "w", encoding="ascii", opener=_opener)  # noqa: SIM115
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        return self._files[key]


def _opener(path: str, flags: int) -> int:
    return open_to_write(path, flags, 0o666)


class MotFinal:
    """Keeps all rows until the end, and writes them with the last identity of their tracks.

    A track that slipped to another person has the former identity before.

    Memory grows with the length of the run: for recordings, not for a service.
    """

    def __init__(self, path: Path, cameras: int) -> None:
        self._path = path
        self._cameras = cameras
        self._seen: dict[str, list[TrackObservation]] = {}
        _check_folder(path)
        if path.exists() and not path.is_file():  # report it now, not at the end of the run
            raise InputError(f"{path}: cannot be written: it is not a regular file")

    def write(self, update: TrackUpdate) -> None:
        """Keep the rows of one frame."""
        self._seen.setdefault(update.camera, []).extend(update.seen)

    def finish(self, number: Number) -> None:
        """Write the files, each completely or not at all."""
        for camera, seen in self._seen.items():
            text = "".join(_rows(seen, number))
            write_atomic(_path_of(self._path, camera, self._cameras), text.encode("ascii"))
