"""The video of a run: frames with the box, the person and the state of each track, as known at that frame."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.agent.results import FrameOutcome
from edge_agent.core.errors import InputError
from edge_agent.core.files import native_path
from edge_agent.core.manifest import require_folder, write_error
from edge_agent.core.structures import Decision, DecisionKind, Frame, TrackObservation
from edge_agent.offline.record import Names, Number, colour

SUFFIX = ".mp4"
_CODEC = "mp4v"
"""MPEG-4 part 2: the only MP4 encoder in OpenCV's packages; H.264 encoders have licences that forbid it."""
_PACE_FRAMES = 12
"""Frames whose distances give the frame rate."""
_RATES = (1.0, 60.0)
_LONGEST_GAP_S = 5.0
"""Longest pause that the video repeats; a longer one is cut to this."""
_LABEL_S = 2.0
"""How long the kind of a decision is shown."""
_NOBODY = (150, 150, 150)


class AnnotatedVideo:
    """Writes the frames of each camera to an MP4 file; with several cameras, to one for each.

    `path` names the file, `out-yard.mp4` with several cameras. A file appears when the video is complete.
    Enter it before the run, call it with every outcome, and leave it after the run. Crops of an upstream
    detector have no frames and are left out.
    """

    def __init__(self, path: Path, cameras: int, number: Number) -> None:
        if path.suffix.lower() != SUFFIX:
            raise InputError(f"{path}: the name of a video must end in {SUFFIX}")
        require_folder(path)
        self._path, self._cameras, self._number = path, cameras, number
        self._films: dict[str, _Film] = {}
        self._names = Names()
        self._latest: dict[tuple[str, int], Decision] = {}

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for film in self._films.values():
            film.close()

    def __call__(self, outcome: FrameOutcome) -> None:
        """Add the frame of an outcome.

        Raises:
            InputError: the file cannot be written.
        """
        self._names.note(outcome.decisions)
        self._latest.update({(one.camera, one.track_id): one for one in outcome.decisions})
        update = outcome.update
        for ended in update.ended:
            self._latest.pop((update.camera, ended), None)
        if isinstance(outcome.item, Frame):
            picture = outcome.item.image.copy()
            for seen in update.seen:
                self._draw(picture, seen)
            self._film(update.camera).add(picture, update.time)

    def _film(self, camera: str) -> _Film:
        if camera not in self._films:
            own = self._path.with_name(f"{self._path.stem}-{camera}{self._path.suffix}")
            self._films[camera] = _Film(self._path if self._cameras == 1 else own)
        return self._films[camera]

    def _draw(self, picture: NDArray[np.uint8], seen: TrackObservation) -> None:
        number = self._number(seen.camera, seen.track_id, seen.time)
        red, green, blue = _NOBODY if number is None else colour(number)
        shade = (blue, green, red)
        left, top, right, bottom = (round(float(side)) for side in seen.box)
        cv2.rectangle(picture, (left, top), (right, bottom), shade, 2)
        text = "?" if number is None else self._names.title(number)
        decision = self._latest.get((seen.camera, seen.track_id))
        if decision is not None and 0 <= seen.time - decision.time < _LABEL_S:
            text += f" {_state(decision)}"
        _label(picture, text, (left, top), shade)


def _state(decision: Decision) -> str:
    """Return the kind of a recent decision, with its score."""
    score = "" if decision.score is None else f" {decision.score:.2f}"
    return {DecisionKind.ENROLLED: "new"}.get(decision.kind, decision.kind.value) + score


def _label(picture: NDArray[np.uint8], text: str, at: tuple[int, int], shade: tuple[int, int, int]) -> None:
    """Write text on a filled box above a point, inside the picture; OpenCV's fonts have ASCII only."""
    shown = text.encode("ascii", "replace").decode("ascii")
    (width, height), base = cv2.getTextSize(shown, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    left = max(0, min(at[0], picture.shape[1] - width - 4))
    bottom = max(height + base + 2, min(at[1], picture.shape[0]))
    cv2.rectangle(picture, (left, bottom - height - base - 2), (left + width + 4, bottom), shade, cv2.FILLED)
    cv2.putText(
        picture,
        shown,
        (left + 2, bottom - base),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.5,
        (255, 255, 255),
        1,
        cv2.LINE_AA,
    )


@dataclass(slots=True)
class _Film:
    """One file. Frames have their own times, the file has a fixed rate: frames are repeated or left out."""

    path: Path
    _writer: cv2.VideoWriter | None = None
    _size: tuple[int, int] = (0, 0)
    _rate: float = 0.0
    _waiting: list[tuple[NDArray[np.uint8], float]] = field(default_factory=list)
    """Frames before the rate is known, then the last one."""
    _owed: float = 0.0
    """Frames by which the file is behind, below 1."""

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")

    def add(self, picture: NDArray[np.uint8], time: float) -> None:
        self._waiting.append((picture, time))
        if self._writer is None and len(self._waiting) <= _PACE_FRAMES:
            return
        if self._writer is None:
            self._open()
        self._flush()

    def close(self) -> None:
        """Write what waits, and give the file its name."""
        if self._writer is None and not self._waiting:
            return
        if self._writer is None:
            self._open()
        self._flush()
        assert self._writer is not None  # opened above
        self._write(self._waiting.pop()[0], 1.0)
        self._writer.release()
        try:
            self._partial.replace(self.path)
        except OSError as problem:
            raise write_error(self.path, problem) from problem

    def _open(self) -> None:
        gaps = np.diff([time for _, time in self._waiting])
        gaps = gaps[gaps > 0]
        self._rate = float(np.clip(1 / np.median(gaps), *_RATES)) if len(gaps) else 25.0
        height, width = self._waiting[0][0].shape[:2]
        self._size = (width, height)
        # Made first, so that it is never readable by others and an unwritable folder is an error of Python.
        try:
            os.close(os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        except OSError as problem:
            raise InputError(f"{self.path}: cannot be written: {problem.strerror}") from problem
        writer = cv2.VideoWriter(
            native_path(self._partial), cv2.VideoWriter.fourcc(*_CODEC), self._rate, self._size
        )
        if not writer.isOpened():
            raise InputError(f"{self.path}: this OpenCV cannot write MP4 videos")
        self._writer = writer

    def _flush(self) -> None:
        """Write all frames but the last, whose duration is not known yet."""
        for (picture, time), (_, following) in zip(self._waiting, self._waiting[1:], strict=False):
            self._write(picture, min(max(following - time, 0.0), _LONGEST_GAP_S) * self._rate)
        del self._waiting[:-1]

    def _write(self, picture: NDArray[np.uint8], frames: float) -> None:
        assert self._writer is not None
        if picture.shape[1::-1] != self._size:  # a camera that changed its resolution
            picture = np.asarray(cv2.resize(picture, self._size), np.uint8)
        self._owed += frames
        whole = int(self._owed + 0.5)
        self._owed -= whole
        for _ in range(whole):
            self._writer.write(picture)
