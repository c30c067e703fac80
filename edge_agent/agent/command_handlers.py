"""What commands over MQTT do; the gallery's own methods do the work, as for the command line."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.events import (
    EnrolCommand,
    ForgetCommand,
    MergeCommand,
    NameCommand,
    RecalibrateCommand,
    ReloadCommand,
    StatsCommand,
)
from edge_agent.embed.quality import QualityGate, grade_picture
from edge_agent.gallery import audit
from edge_agent.gallery.erasure import Erasure, forget
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier

__all__ = ["Operations"]

T = TypeVar("T")

MAX_CROP_PIXELS = 4_000_000
"""Largest picture that a command may bring, decoded."""

BY = "mqtt"


@dataclass(frozen=True, slots=True)
class Operations:
    """Carries out commands; every method takes one command and returns JSON values for its answer.

    Args:
        gallery: open.
        identifier: the running decision stage.
        embed: N pictures -> `(N, D)` float32; called between two frames.
        gate: grades pictures.
        between_frames: runs a function on the driving thread and gives what it returns.
        erasure: removes what else is kept of people who are gone.
        reload: reads the settings again; returns the keys that need a restart.
        stats: counters of delivery.
        state: folder of the audit file.
    """

    gallery: Gallery
    identifier: Identifier
    embed: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]
    gate: QualityGate
    between_frames: Callable[[Callable[[], Any]], Any]
    erasure: Erasure
    reload: Callable[[], list[str]]
    stats: Callable[[], Mapping[str, Any]]
    state: Path

    def table(self) -> dict[str, Callable[[Any], Mapping[str, Any] | None]]:
        """The function of each verb."""
        return {
            "enrol": self.enrol,
            "name": self.name,
            "merge": self.merge,
            "forget": self.forget,
            "reload": self.reload_settings,
            "stats": self.counters,
            "recalibrate": self.recalibrate,
        }

    def enrol(self, command: EnrolCommand) -> Mapping[str, Any]:
        """Put whoever a track or a picture shows into the gallery, under a name if one is given."""
        by_track = command.camera is not None and command.track_id is not None
        if by_track == (command.crop is not None):
            raise InputError("enrol takes either camera and track_id, or crop")
        number = self.between_frames(lambda: self._enrol(command))
        identity = self.gallery.get(number)
        audit.record(self.state, "enrol", BY, exemplars=identity.exemplars)
        return {"identity_id": identity.id, "name": identity.name, "exemplars": identity.exemplars}

    def name(self, command: NameCommand) -> Mapping[str, Any]:
        """Give a person a name, or take it away."""
        number = self.gallery.get(command.identity_id).number
        identity = self.between_frames(lambda: self.gallery.rename(number, command.name))
        audit.record(self.state, "name", BY)
        return {"identity_id": identity.id, "name": identity.name}

    def merge(self, command: MergeCommand) -> Mapping[str, Any]:
        """Make two identities one."""

        def join() -> Any:  # noqa: ANN401  an Identity, through a Future
            keep = self.gallery.get(command.identity_id).number
            absorb = self.gallery.get(command.absorbed_id).number
            merged = self.gallery.merge(keep, absorb)
            self.identifier.merged(keep, absorb)
            return merged

        identity = self.between_frames(join)
        audit.record(self.state, "merge", BY)
        return {"identity_id": identity.id, "exemplars": identity.exemplars}

    def forget(self, command: ForgetCommand) -> Mapping[str, Any]:
        """Erase a person from gallery, outbox and crop folders."""
        identity = self.gallery.get(command.identity_id)
        erased, removed = self.erasure.forget(
            lambda: self.between_frames(lambda: forget(self.gallery, identity.number))
        )
        counts = {"exemplars": erased.exemplars, **asdict(removed)}
        audit.record(self.state, "forget", BY, **counts)
        return counts

    def reload_settings(self, _command: ReloadCommand) -> Mapping[str, Any]:
        """Apply what may change while running."""
        return {"restart_required": self.reload()}

    def counters(self, _command: StatsCommand) -> Mapping[str, Any]:
        """Tell what gallery and delivery hold."""
        threshold = self.identifier.threshold()
        return {
            "gallery": asdict(self.gallery.stats()),
            "threshold": {"value": threshold.value, "rule": threshold.rule, "pairs": threshold.pairs},
            "drift": self.identifier.site.drift(),
            **self.stats(),
        }

    def recalibrate(self, _command: RecalibrateCommand) -> Mapping[str, Any]:
        """Forget the site's scores: the threshold is learnt anew, from a warm-up on."""
        pairs = len(self.identifier.site)
        self.between_frames(self.identifier.recalibrate)
        audit.record(self.state, "recalibrate", BY, pairs=pairs)
        return {"forgotten_pairs": pairs}

    def _enrol(self, command: EnrolCommand) -> int:
        if command.crop is None:
            return self.identifier.enrol_track(command.camera or "", command.track_id or 0, command.name)
        picture = _decode(command.crop)
        quality, reason = grade_picture(self.gate, picture)
        if reason:
            raise InputError(f"the picture is no usable picture of one person: {reason}")
        identity = self.gallery.enrol(
            self.embed([picture]),
            np.array([quality], np.float32),
            name=command.name,
            kind="enrolled",
            origin=f"mqtt:{command.transaction}",
            camera="",
            time=command.issued,
        )
        return identity.number


def _decode(text: str) -> NDArray[np.uint8]:
    """A picture from base64 JPEG or PNG: `(H, W, 3)` uint8 BGR."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise InputError("crop is not base64") from None
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if found is None:
        raise InputError("crop is no JPEG or PNG picture")
    if found.shape[0] * found.shape[1] > MAX_CROP_PIXELS:
        raise InputError(f"crop is larger than {MAX_CROP_PIXELS} pixels; cut it to the person")
    picture: NDArray[np.uint8] = found.astype(np.uint8, copy=False)
    return picture
