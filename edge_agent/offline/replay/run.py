"""Makes the decisions of a recording again: the agent's own identifier on a copy of the gallery.

People whom the replay numbers differently are followed: what an operator did to a person is done to the
person who has the same founding track.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge_agent.agent.recording import SHADOW
from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.errors import InputError, StorageError
from edge_agent.core.pictures import decode_picture
from edge_agent.core.sections import Section
from edge_agent.core.structures import Decision, TrackUpdate
from edge_agent.gallery.gallery import GALLERY_FILE, Gallery
from edge_agent.gallery.snapshot import restore
from edge_agent.identify import Identifier
from edge_agent.identify.prior import Prior
from edge_agent.identify.site import Calibrated
from edge_agent.offline.replay.others import Others
from edge_agent.offline.replay.recording import Recording, Step
from edge_agent.offline.replay.replies import Replies
from edge_agent.record.entries import Decisions

Vectors = NDArray[np.float32]
Track = tuple[str, int]
_TICK_S = 1e-7
"""Between two readings of the clock of a replay, so that times differ as they did."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder in it


@dataclass(frozen=True, slots=True)
class Network:
    """A network for the tracks with pictures: its space, and what it gives for crops `(h, w, 3)`.

    `embed` gives `(N, D)` rows of length 1; None: those that were recorded, for a fair comparison.
    """

    name: str
    space: str
    dimension: int
    prior: Prior | None
    embed: Callable[[Sequence[NDArray[np.uint8]]], Vectors] | None


def recorded_network(recording: Recording) -> Network:
    """Return the network of a recording."""
    header = recording.header
    return Network(str(header["model"]), header["space"], header["dimension"], recording.prior(), None)


@dataclass(slots=True)
class Outcome:
    """What a replay led to.

    Attributes:
        decisions: as JSON values, see `record.entries.Decisions`.
        recorded: those of the recording, in the same form.
        numbers: last identity of each track, None without one.
        times: first and last time of each track.
        not_repeated: what others did to people who do not exist in the replay.
        frames: frames with tracks.
    """

    decisions: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[Mapping[str, Any]] = field(default_factory=list)
    numbers: dict[Track, int | None] = field(default_factory=dict)
    times: dict[Track, tuple[float, float]] = field(default_factory=dict)
    founders: dict[int, Track] = field(default_factory=dict)
    """Founding track of each identity that the replay made."""
    known: set[int] = field(default_factory=set)
    """Identities of the gallery at the start."""
    shadow: dict[str, Any] | None = None
    """What a second network found by the end of the recording, see `agent.shadow`."""
    not_repeated: int = 0
    frames: int = 0
    embedded: int = 0
    """Crops that another network embedded."""

    @property
    def differs_at(self) -> int | None:
        """Place of the first decision that is not exactly the recorded one; None: all are."""
        for place, (own, recorded) in enumerate(zip(self.decisions, self.recorded, strict=False)):
            if own != recorded:
                return place
        shorter = min(len(self.decisions), len(self.recorded))
        return None if len(self.decisions) == len(self.recorded) else shorter


class _Time:
    """The clock of a replay: it shows the recorded instants."""

    boot = "replay"

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def set(self, instant: float) -> None:
        self._now = max(self._now, instant)

    def running(self) -> float:
        self._now += _TICK_S
        return self._now

    def wall(self) -> float:
        return self._now

    def synchronised(self) -> bool:
        return True


def replay(
    recording: Recording,
    changes: Mapping[str, Any],
    *,
    key: bytes | None = None,
    network: Network | None = None,
) -> Outcome:
    """Make the decisions of a recording again.

    Args:
        recording: an open one; it is read from its start.
        changes: settings that differ from the recorded ones, e.g. `{"identify": {"margin": 0.05}}`.
        key: encrypts the copy of the gallery, which is removed at the end.
        network: the network for a recording with pictures; only crops with a picture count then, and the
            gallery begins empty, since its embeddings may be of another network.

    Raises:
        ConfigError: a setting is not valid.
        StorageError: the recording is damaged.
    """
    try:
        return _replay(recording, changes, key, network)
    except ValidationError as problem:  # of settings in the recording: `changes` were checked
        first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise recording.files[0].damage(f"its settings, {where}: {first['msg']}") from problem


def _replay(
    recording: Recording, changes: Mapping[str, Any], key: bytes | None, network: Network | None
) -> Outcome:
    time = _Time()
    clock = Clock(time)
    outcome = Outcome()
    with _gallery(recording, changes, key, clock, network) as (gallery, another):
        outcome.known = gallery.present()
        prior = recording.prior() if network is None else network.prior
        calibrated = recording.calibrated() if network is None or network.embed is None else None
        replies = Replies(time.now) if recording.header.get("asks") is True else None
        identifier = Identifier(
            gallery,
            recording.header["session"],
            _identify(recording.header["identify"], changes),
            calibrated,
            prior,
            replies,
            shares=recording.header.get("shares") is True,
        )
        Player(recording, changes, gallery, identifier, time, outcome, network, another, replies).play()
    return outcome


@dataclass(slots=True)
class Player:
    """Gives the entries of a recording to an identifier."""

    recording: Recording
    changes: Mapping[str, Any]
    gallery: Gallery
    identifier: Identifier
    time: _Time
    outcome: Outcome
    network: Network | None
    another: Callable[[], Gallery]
    """Describes the gallery again, as another process opens it."""
    replies: Replies | None = None
    """What others replied about strangers; None where nobody was asked."""
    _plain: Decisions = field(init=False)
    _founders: dict[int, Track] = field(default_factory=dict)
    """Founding track of an identity by the number in the recording."""
    _given: dict[int, int] = field(default_factory=dict)
    """Number here of an identity that somebody else added, by the number in the recording."""

    def __post_init__(self) -> None:
        ids = {one.id: one.number for one in self.gallery.identities()}
        self._plain = Decisions(ids)
        if self.replies is not None:
            self.replies.others = self._others(self.gallery)

    def play(self) -> None:
        """Make all decisions."""
        for step in self.recording.steps():
            self.time.set(step.at)
            self.outcome.recorded += step.decided
            if step.update is not None:
                self._frame(step)
            elif step.kind == "call":
                self._call(step)
            else:
                self._change(step)
        self._finish()

    def _frame(self, step: Step) -> None:
        update = step.update
        assert update is not None  # a frame has one
        if self.network is not None:
            update = self._embedded(step, self.network)
        self.outcome.frames += bool(update.seen)
        for seen in update.seen:
            track = (seen.camera, seen.track_id)
            first, _ = self.outcome.times.get(track, (seen.time, 0.0))
            self.outcome.times[track] = first, seen.time
        decided = self.identifier.update(update)
        self._note(decided)
        _found(self._founders, step.decided)

    def _note(self, decided: Sequence[Decision]) -> None:
        plain = [self._plain.plain(decision) for decision in decided]
        self.outcome.decisions += plain
        _found(self.outcome.founders, plain)

    def _embedded(self, step: Step, network: Network) -> TrackUpdate:
        """Return the tracks of a frame with embeddings of a network, where there is a picture."""
        update = step.update
        assert update is not None  # a frame has one
        stored = step.file.pictures(step.seq)
        if network.embed is None:
            vectors = {one.track_id: one.vector for one in update.seen if one.track_id in stored}
        else:
            crops = [decode_picture(data, "a recorded crop") for data in stored.values()]
            vectors = dict(zip(stored, network.embed(crops) if crops else (), strict=True))
        self.outcome.embedded += len(vectors)
        seen = tuple(replace(one, vector=vectors.get(one.track_id)) for one in update.seen)
        return replace(update, seen=seen)

    # --- calls and changes --------------------------------------------------------------------------------

    def _call(self, step: Step) -> None:
        name, given = step.body.get("call"), step.body.get("arguments")
        if not isinstance(given, dict):
            raise step.file.damage(f"entry {step.seq}: a call without arguments")
        try:
            self._repeat(str(name), given)
        except InputError:
            self.outcome.not_repeated += 1
        except (KeyError, TypeError) as problem:
            raise step.file.damage(f"entry {step.seq}: {problem!r}") from problem

    def _repeat(self, name: str, given: Mapping[str, Any]) -> None:
        identifier = self.identifier
        if name == SHADOW:
            self.outcome.shadow = dict(given)
        elif name == "reload":
            identifier.reload(_identify(given["settings"], self.changes))
        elif name == "calibrate":
            stored = given["calibrated"]
            if self.network is None:
                identifier.calibrate(
                    None if stored is None else Calibrated(stored["value"], stored["pair_rate"])
                )
        elif name == "recalibrate":
            identifier.recalibrate()
        elif name == "set_threshold":
            identifier.set_threshold(given["value"])
        elif name == "enrol_track":
            identifier.enrol_track(given["camera"], given["track_id"], None)
        elif name == "merged":
            keep, absorb = self._number(given["keep"]), self._number(given["absorb"])
            if keep != absorb:
                identifier.merged(keep, absorb)
        elif name == "split":
            identifier.split(self._number(given["number"]), self._number(given["new"]))
        elif name == "forgotten":
            identifier.forgotten(self._number(given["number"]))

    def _number(self, recorded: int) -> int:
        """Return the number here of an identity of the recording; InputError where there is none."""
        if recorded in self._given:
            return self._given[recorded]
        track = self._founders.get(recorded)
        if recorded in self.outcome.known or (
            track is not None and self.outcome.founders.get(recorded) == track
        ):
            return recorded
        number = None if track is None else self.identifier.number(*track)
        if number is None:
            raise InputError(f"nobody is number {recorded} here")
        return number

    def _change(self, step: Step) -> None:
        """Do what others did to the gallery."""
        try:
            if "reply" in step.body or "taken" in step.body:
                if self.replies is not None and self.network is None:
                    self.replies.note(step.body, step.vectors)
            elif step.body[
                "foreign"
            ]:  # as another process does it: the agent's gallery reads it from the file
                with self.another() as gallery:
                    self._repeat_change(gallery, step)
            else:
                self._repeat_change(self.gallery, step)
        except (KeyError, TypeError, ValueError) as problem:
            raise step.file.damage(f"entry {step.seq}: {problem!r}") from problem

    def _others(self, gallery: Gallery) -> Others:
        return Others(gallery, self._number, self._given, self._plain)

    def _repeat_change(self, gallery: Gallery, step: Step) -> None:
        others, with_vectors = self._others(gallery), self.network is None
        self.outcome.not_repeated += others.repeat(step.body, step.vectors, with_vectors=with_vectors)

    def _finish(self) -> None:
        for track in self.outcome.times:
            self.outcome.numbers[track] = self.identifier.number(*track)


def _found(founders: dict[int, Track], decided: Sequence[Mapping[str, Any]]) -> None:
    """Note the tracks from which decisions made new identities."""
    for one in decided:
        if one["number"] is not None and one["kind"] in ("enrolled", "corrected"):
            founders.setdefault(one["number"], (one["camera"], one["track"]))


@contextmanager
def _gallery(
    recording: Recording, changes: Mapping[str, Any], key: bytes | None, clock: Clock, network: Network | None
) -> Iterator[tuple[Gallery, Callable[[], Gallery]]]:
    """Open a copy of the gallery at the start, in memory where the system has such a folder.

    The function describes it once more.
    """
    wanted = _values(GallerySettings, "gallery", recording.header["gallery"], changes)
    settings = GallerySettings.model_validate(wanted)
    space, dimension = recording.header["space"], recording.header["dimension"]
    with ExitStack() as stack:
        room = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="edge-agent-replay-", dir=room)))
        path = scratch / GALLERY_FILE
        if network is None:
            try:
                restore(
                    path,
                    key,
                    ((one.table, one.columns, one.rows) for one in recording.start()),
                    axis=clock.id,
                )
            except StorageError as problem:
                raise recording.files[0].damage("its copy of the gallery") from problem
        else:
            space, dimension = network.space, network.dimension
        describe = partial(Gallery, path, settings, space=space, dimension=dimension, key=key, clock=clock)
        gallery = describe(owner=True)
        try:
            stack.enter_context(gallery)
        except StorageError as problem:
            raise recording.files[0].damage("its copy of the gallery") from problem
        yield gallery, describe


def _identify(recorded: Any, changes: Mapping[str, Any]) -> IdentifySettings:  # noqa: ANN401 - JSON
    return IdentifySettings.model_validate(_values(IdentifySettings, "identify", recorded, changes))


def _values(
    kind: type[Section],
    name: str,
    recorded: Any,  # noqa: ANN401 - JSON
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the recorded values that this version knows, with the changes."""
    known = recorded if isinstance(recorded, dict) else {}
    kept = {key: value for key, value in known.items() if key in kind.model_fields}
    return {**kept, **changes.get(name, {})}
