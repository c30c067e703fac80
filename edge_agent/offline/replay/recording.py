"""A recording to be replayed: one file, or the files of one run that continue each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.core.errors import InputError, MissingFile
from edge_agent.core.files import parse_json
from edge_agent.core.structures import TrackUpdate
from edge_agent.identify.prior import Prior
from edge_agent.identify.site import Calibrated
from edge_agent.record.entries import Vectors, unpack_frame, unpack_vectors
from edge_agent.record.file import Copied, RecordingFile
from edge_agent.record.recorder import recordings

_JUDGED = 1000
"""Decisions whose thresholds are looked at."""


@dataclass(frozen=True, slots=True)
class Step:
    """An entry of a recording.

    Attributes:
        at: instant of the agent's clock.
        update: the tracks of a frame; None for calls and changes.
        decided: the decisions of the frame as JSON values, see `record.entries.Decisions`.
        body, vectors: of a call or a change.
    """

    kind: str
    at: float
    update: TrackUpdate | None
    decided: tuple[Mapping[str, Any], ...]
    body: Mapping[str, Any]
    vectors: Vectors
    file: RecordingFile
    seq: int


class Recording:
    """Files that continue each other, oldest first; opened by `with`."""

    def __init__(self, path: Path, key: bytes | None) -> None:
        """Name a file, or a folder for its newest run; nothing is opened yet."""
        self.files: list[RecordingFile] = []
        self.header: dict[str, Any] = {}
        """Of the first file."""
        self._path = path
        self._key = key
        self._stack = ExitStack()

    def __enter__(self) -> Recording:
        """Open the files.

        StorageError and MissingFile as in `RecordingFile.existing`; InputError: the folder has none.
        """
        try:
            if self._path.is_dir():
                self._open_newest(self._path)
            else:
                self._add(self._path)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()

    def _open_newest(self, folder: Path) -> None:
        paths = recordings(folder)
        if not paths:
            raise InputError(f"there is no recording in {folder}; record.enabled makes the agent record")
        wanted: str | None = paths[-1].name
        while wanted is not None:
            try:
                self._add(folder / wanted)
            except MissingFile:
                break  # removed by the limits
            follows = self.header.get("follows")
            if follows in [file.path.name for file in self.files]:
                raise self.files[0].damage("it continues a file that continues it")
            wanted = follows if isinstance(follows, str) and folder / follows in paths else None

    def _add(self, path: Path) -> None:
        """Open a file that comes before the others."""
        file = self._stack.enter_context(RecordingFile.existing(path, self._key))
        self.header = _checked(file)
        self.files.insert(0, file)

    @property
    def is_whole(self) -> bool:
        """Whether it begins with the run, and nobody was erased from it: the decisions can be made again."""
        return bool(self.header["cold"]) and not any(file.header.get("erased") for file in self.files)

    @property
    def erased(self) -> int:
        """Number of people who were erased from it."""
        return sum(int(file.header.get("erased", 0)) for file in self.files)

    def has_pictures(self) -> bool:
        """Return whether crops were kept."""
        return any(file.has_pictures() for file in self.files)

    def threshold(self) -> float | None:
        """Return the median threshold of the newest decisions; None where none had one."""
        try:
            found = [decision_of(body) for body in self.files[-1].decisions(_JUDGED)]
        except (InputError, ValueError) as problem:
            raise self.files[-1].damage(str(problem)) from problem
        known = [one["threshold"] for one in found if isinstance(one["threshold"], (int, float))]
        return statistics.median(known) if known else None

    def start(self) -> list[Copied]:
        """Return the gallery as it was at the start."""
        return self.files[0].start()

    def prior(self) -> Prior | None:
        """Return what was expected of the network; StorageError where it is damaged."""
        try:
            stored = self.header["prior"]
            return None if stored is None else Prior.from_json(stored)
        except (ValueError, TypeError) as problem:
            raise self.files[0].damage(str(problem)) from problem

    def calibrated(self) -> Calibrated | None:
        """Return the calibrated threshold, if there was one."""
        try:
            stored = self.header["calibrated"]
            return None if stored is None else Calibrated(float(stored["value"]), float(stored["pair_rate"]))
        except (KeyError, TypeError, ValueError) as problem:
            raise self.files[0].damage(f"a calibration: {problem!r}") from problem

    def steps(self) -> Iterator[Step]:
        """Yield the entries; StorageError where one is damaged."""
        dimension = self.header["dimension"]
        for file in self.files:
            for row in file.rows():
                try:
                    decided = tuple(map(decision_of, row.decisions))
                    if row.kind == "frame":
                        update = unpack_frame(row.camera, row.body, row.vectors, dimension)
                        yield Step(row.kind, row.at, update, decided, {}, _NONE, file, row.seq)
                        continue
                    vectors = unpack_vectors(row.vectors, dimension)
                    body = _object(row.body)
                    yield Step(row.kind, row.at, None, decided, body, vectors, file, row.seq)
                except (InputError, ValueError) as problem:
                    raise file.damage(f"entry {row.seq}: {problem}") from problem


_NONE = unpack_vectors(b"", 1)


def _object(data: bytes | str) -> dict[str, Any]:
    found = parse_json(data, "an entry")
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - of a file
    return found


def decision_of(text: str) -> dict[str, Any]:
    """Return a decision from JSON; InputError or ValueError where it is none."""
    found = _object(text)
    if not all(name in found and isinstance(found[name], kinds) for name, kinds in _DECISION.items()):
        raise ValueError("a decision lacks some of its values")
    return found


_REAL, _MAYBE = (int, float), (int, float, type(None))
_DECISION: dict[str, tuple[type, ...]] = {
    "kind": (str,), "camera": (str,), "track": (int,), "number": (int, type(None)), "time": _REAL,
    "score": _MAYBE, "runner_up": _MAYBE, "threshold": _MAYBE, "search_rate": _MAYBE, "reason": (str,),
}  # fmt: skip


def _checked(file: RecordingFile) -> dict[str, Any]:
    header = file.header
    for name in ("session", "identify", "gallery", "space", "calibrated", "prior", "cold", "at", "created"):
        if name not in header:
            raise file.damage(f"its header lacks {name!r}")
    if not (
        all(isinstance(header[name], str) for name in ("session", "space"))
        and all(isinstance(header[name], (int, float)) for name in ("at", "created"))
        and isinstance(header.get("erased", 0), int)
    ):
        raise file.damage("its header has values of a wrong type")
    return header
