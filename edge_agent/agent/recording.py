"""Records what the decision gets and decides, so that `offline.replay` can make the decisions again.

The decision depends on the gallery at the start, on the tracks of each frame, on calls (commands, reloads),
and on what others change in the gallery: commands, expiry, other processes. All are recorded in the order in
which they took effect: under the lock of the gallery.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import structlog

from edge_agent import __version__
from edge_agent.agent.recorded_replies import Note, RecordedElsewhere, described
from edge_agent.core.encryption import database_key
from edge_agent.core.structures import Decision, TrackUpdate
from edge_agent.gallery.gallery import GALLERY_FILE
from edge_agent.gallery.snapshot import Snapshot
from edge_agent.identify import Identifier
from edge_agent.record.entries import Entry
from edge_agent.record.file import Copied
from edge_agent.record.recorder import FOLDER, Begin, Limits, Pictures, Recorder, erase_pictures, remove_old

if TYPE_CHECKING:
    from edge_agent.agent.results import FrameOutcome
    from edge_agent.core.clock import Clock
    from edge_agent.core.config import IdentifySettings, Settings
    from edge_agent.core.structures import EngineInfo
    from edge_agent.gallery.exemplars import View
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.means import Sums
    from edge_agent.gallery.rows import Rows
    from edge_agent.identify.prior import Prior
    from edge_agent.identify.site import Calibrated

_log = structlog.get_logger(__name__)

T = TypeVar("T")

HOUR_S = 3600.0
CROP_INTERVAL_S = 0.5
"""Between two pictures of a track: what another network gets of it in a replay."""
SHADOW = "shadow"
MOST_PEOPLE = 500
"""Identities that are recorded at once where any may have changed; in a larger gallery a new chain begins."""


@dataclass(frozen=True, slots=True)
class _Start:
    """A snapshot of the gallery as the recorder stores it."""

    snapshot: Snapshot

    def tables(self) -> list[Copied] | Any:  # noqa: ANN401 - a generator: all rows never are in memory
        return (Copied(*table) for table in self.snapshot.tables())

    def numbers(self) -> Mapping[str, int]:
        return self.snapshot.numbers()

    def close(self) -> None:
        self.snapshot.close()


@dataclass(slots=True)
class Journal:
    """Turns what happens to an identifier into entries of a recorder."""

    gallery: Gallery
    clock: Clock
    recorder: Recorder
    _version: tuple[int, int] = (0, 0)
    _mark: int = 0
    _cameras: Any = None
    _named: dict[int, str | None] = field(default_factory=dict)
    """Names of enrolled people by number."""
    _apart: Any = None
    """Changes with the pairs that an operator keeps apart."""
    _means: Mapping[View, tuple[float, Sums]] = field(default_factory=dict)
    """Means of cameras of other devices."""
    _ids: dict[int, str] = field(default_factory=dict)
    """Ids of identities by number."""

    def begin(self, ids: Mapping[str, int]) -> None:
        """Note how the gallery is now; inside `exclusive`."""
        self._ids = {number: id_ for id_, number in ids.items()}
        with self.gallery.file.reading() as rows:
            self._named, self._apart = _named(rows), rows.store.meta("apart")
        self._means = self.gallery.file.means.elsewhere
        self.settle()

    def settle(self) -> None:
        """Note that all changes up to now are of the identifier itself; inside `exclusive`."""
        file = self.gallery.file
        self._version, self._cameras = file.version(), file.cameras_mark
        self._mark = self.gallery.changes_since(0)[0]

    def others(self) -> None:
        """Record what others changed in the gallery since `settle`; inside `exclusive`."""
        file = self.gallery.file
        version = file.version()
        if version == self._version:
            return
        foreign = version[0] != self._version[0]
        _, changed = self.gallery.changes_since(self._mark)
        if changed is None and len(self._ids) <= MOST_PEOPLE:
            changed = self.gallery.present() | self._ids.keys()
        with file.reading() as rows:
            named = _named(rows)
            if changed is None or file.cameras_mark != self._cameras:
                self.recorder.interrupt()  # anything may have changed
            else:
                both = named.keys() | self._named.keys()
                changed |= {number for number in both if named.get(number, 0) != self._named.get(number, 0)}
                apart, means = rows.store.meta("apart"), self._changed_means()
                if changed or means or apart != self._apart:
                    self._put(rows, changed, means, foreign=foreign)
            self._named, self._apart = named, rows.store.meta("apart")
            self._means = file.means.elsewhere
        self.settle()

    def _changed_means(self) -> list[list[Any]]:
        """Return camera, epoch, number of people and sum of the means of other devices that changed."""
        now, before = self.gallery.file.means.elsewhere, self._means
        return [
            [*view, people, total.tolist()]
            for view, (people, total) in (now.items() if now is not before else ())
            if view not in before or before[view][0] != people or (before[view][1] != total).any()
        ]

    def _put(self, rows: Rows, changed: set[int], means: list[list[Any]], *, foreign: bool) -> None:
        people, vectors, gone = [], [], []
        for number in sorted(changed):
            if number not in self.gallery.file.revisions:
                id_ = self._ids.pop(number, None)
                gone.append([number, None if id_ is None else rows.number_of(id_)])
                continue
            person, own = described(rows, number)
            self._ids[number] = person["id"]
            people.append(person)
            vectors.append(own)
        apart = rows.store.rows("SELECT first, second, reason FROM apart ORDER BY first, second")
        body = {"foreign": foreign, "gone": gone, "people": people, "apart": apart, "means": means}
        stacked = np.concatenate(vectors) if vectors else None
        self.recorder.put(Entry("change", self.clock.now(), body=body, vectors=stacked))

    def frame(
        self, at: float, update: TrackUpdate, decisions: list[Decision], notes: Sequence[Note] = ()
    ) -> None:
        """Record a frame with what others replied; one without tracks led to nothing."""
        for body, vectors in notes:
            self.recorder.put(Entry("change", at, body=body, vectors=vectors))
        for decision in decisions:
            if decision.number is not None and decision.identity is not None:
                self._ids[decision.number] = decision.identity
        if update.seen or update.ended or decisions:
            self.recorder.put(Entry("frame", at, update, tuple(decisions)))

    def call(self, name: str, **arguments: Any) -> None:  # noqa: ANN401 - JSON values
        """Record a call of the identifier."""
        self.recorder.put(Entry("call", self.clock.now(), body={"call": name, "arguments": arguments}))


class RecordedIdentifier(Identifier):
    """An identifier whose inputs and decisions are recorded."""

    journal: Journal | None = None
    elsewhere: RecordedElsewhere | None = None
    _nested = False

    def update(self, update: TrackUpdate) -> list[Decision]:
        """See `Identifier.update`."""
        if (journal := self.journal) is None or journal.recorder.problem:
            if self.elsewhere is not None:
                self.elsewhere.notes()  # they are not recorded any more
            return super().update(update)
        with journal.gallery.exclusive():
            journal.others()
            at = journal.clock.now()
            self._nested = True
            try:
                decisions = super().update(update)
            finally:
                self._nested = False
            journal.frame(at, update, decisions, () if self.elsewhere is None else self.elsewhere.notes())
            journal.settle()
        return decisions

    def reload(self, settings: IdentifySettings) -> None:
        """See `Identifier.reload`."""
        self._recorded(partial(super().reload, settings), "reload", settings=settings.model_dump(mode="json"))

    def calibrate(self, calibrated: Calibrated | None) -> None:
        """See `Identifier.calibrate`."""
        values = None if calibrated is None else asdict(calibrated)
        self._recorded(partial(super().calibrate, calibrated), "calibrate", calibrated=values)

    def recalibrate(self) -> None:
        """See `Identifier.recalibrate`."""
        self._recorded(super().recalibrate, "recalibrate")

    def set_threshold(self, value: float | None) -> None:
        """See `Identifier.set_threshold`."""
        self._recorded(partial(super().set_threshold, value), "set_threshold", value=value)

    def merged(self, keep: int, absorb: int) -> None:
        """See `Identifier.merged`."""
        self._recorded(partial(super().merged, keep, absorb), "merged", keep=keep, absorb=absorb)

    def split(self, number: int, new: int) -> None:
        """See `Identifier.split`."""
        self._recorded(partial(super().split, number, new), "split", number=number, new=new)

    def forgotten(self, number: int) -> None:
        """See `Identifier.forgotten`."""
        self._recorded(partial(super().forgotten, number), "forgotten", number=number)

    def enrol_track(self, camera: str, track_id: int, name: str | None) -> int:
        """See `Identifier.enrol_track`."""
        return self._recorded(
            partial(super().enrol_track, camera, track_id, name),
            "enrol_track",
            camera=camera,
            track_id=track_id,
            named=name is not None,  # a recording contains no more of a person than it needs
        )

    def _recorded(self, do: Callable[[], T], name: str, **arguments: Any) -> T:  # noqa: ANN401
        if (journal := self.journal) is None or journal.recorder.problem or self._nested:
            return do()
        with journal.gallery.exclusive():
            journal.others()
            self._nested = True
            try:
                found = do()
            finally:
                self._nested = False
                journal.call(name, **arguments)
                journal.settle()
        return found


def shadow_entry(state: Mapping[str, Any], at: float) -> Entry:
    """Return the entry with what a second network found, see `agent.shadow`."""
    return Entry("call", at, body={"call": SHADOW, "arguments": dict(state)})


def open_recorder(
    settings: Settings,
    gallery: Gallery,
    identifier: RecordedIdentifier,
    engine: EngineInfo,
    prior: Prior | None,
    calibrated: Calibrated | None,
    clock: Clock,
    session: str,
    stack: ExitStack,
) -> Recorder:
    """Return the recorder of a run, entered until `stack` is closed; before the first frame."""
    key = database_key(settings.storage)
    path = settings.state_dir / GALLERY_FILE
    header = {
        "session": session,
        "agent": __version__,
        "axis": clock.id,
        "space": engine.space,
        "dimension": engine.dimension,
        "model": engine.model,
        "backend": engine.backend,
        "prior": None if prior is None else prior.to_json(),
        "calibrated": None if calibrated is None else asdict(calibrated),
        "gallery": settings.gallery.model_dump(mode="json"),
        "asks": identifier.elsewhere is not None,
        "shares": identifier.shares,
    }
    begun = 0

    def begin(continues: bool) -> None:
        nonlocal begun
        with gallery.exclusive():
            snapshot = Snapshot(path, key)
            now, label = clock.now(), clock.label()
            if not continues:
                journal.begin(snapshot.numbers())
            moment = datetime.fromtimestamp(label, timezone.utc)
            own = {
                **header,
                "name": f"{moment:%Y%m%dT%H%M%S}-{session[:8]}-{begun:04}",
                "index": begun,
                "continues": continues,
                "cold": begun == 0,
                "at": now,
                "created": label,
                "identify": identifier.tracks.settings.model_dump(mode="json"),
            }
            begun += 1
            recorder.put(Begin(own, _Start(snapshot)))

    recorder = Recorder(settings.state_dir / FOLDER, key, limits_of(settings), begin, partial(age_of, clock))
    journal = Journal(gallery, clock, recorder)
    identifier.journal = journal
    return stack.enter_context(recorder)


def age_of(clock: Clock, header: Mapping[str, Any]) -> float:
    """Return the age of a file in seconds by its header."""
    if header.get("axis") == clock.id:
        return clock.age(float(header["at"]))
    return max(0.0, clock.label() - float(header["created"]))


def remove_old_recordings(settings: Settings, clock: Clock) -> None:
    """Remove recordings beyond the limits while nothing is recorded."""
    folder = settings.state_dir / FOLDER
    if folder.is_dir():
        remove_old(folder, database_key(settings.storage), limits_of(settings), partial(age_of, clock), None)


@dataclass(slots=True)
class UnwantedPictures:
    """Erases the pictures of all recordings once the gallery keeps none, also those of earlier runs."""

    settings: Settings
    gallery: Gallery
    recorder: Recorder | None
    _erased: int | None = None
    """Frames with pictures that this run had recorded when they were erased; None: not yet."""

    def erase(self) -> None:
        """Erase them if there may be some. StorageError: not all could be; call it again."""
        if self.gallery.crops.most:
            return
        recorder = self.recorder
        recorded = 0 if recorder is None else recorder.frames_with_pictures
        if recorded == self._erased:
            return
        if recorder is not None:
            gone = recorder.erase_pictures()
        else:
            gone = erase_pictures(self.settings.state_dir / FOLDER, database_key(self.settings.storage))
        self._erased = recorded
        if gone:
            _log.info("recorded_pictures_erased", pictures=gone)


def limits_of(settings: Settings) -> Limits:
    """Return the limits of the settings; a recording keeps nobody longer than the gallery does."""
    hours = settings.record.hours
    if settings.gallery.ttl_hours is not None:
        hours = min(hours, settings.gallery.ttl_hours)
    return Limits(settings.record.max_mb << 20, hours * HOUR_S)


@dataclass(slots=True)
class RecordedCrops:
    """Adds crops of the tracks to a recording, now and then; only while the gallery keeps crops."""

    recorder: Recorder
    gallery: Gallery
    observe: Callable[[FrameOutcome], None] | None
    """Called with every outcome, too."""
    _due: dict[tuple[str, int], float] = field(default_factory=dict)

    def __call__(self, outcome: FrameOutcome) -> None:
        """Copy the crops that are due; on the driving thread."""
        if self.gallery.crops.most and not self.recorder.problem:
            self._take(outcome)
        if self.observe is not None:
            self.observe(outcome)

    def _take(self, outcome: FrameOutcome) -> None:
        update, crops = outcome.update, {}
        for row, seen in enumerate(update.seen):
            key = seen.camera, seen.track_id
            if seen.vector is None or seen.time < self._due.get(key, -math.inf):
                continue
            if (crop := outcome.pixels(row)) is not None:
                crops[seen.track_id] = crop.copy()
                self._due[key] = seen.time + CROP_INTERVAL_S
        if crops:
            self.recorder.put(Pictures(update.camera, crops))
        for track in update.ended:
            self._due.pop((update.camera, track), None)


def _named(rows: Rows) -> dict[int, str | None]:
    return dict(rows.store.rows("SELECT number, name FROM identity WHERE kind = 'enrolled'"))
