"""Handlers of the MQTT commands; they call the same gallery methods as the command line."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.commands import (
    EnrolCommand,
    ForgetCommand,
    MergeCommand,
    NameCommand,
    RecalibrateCommand,
    StatsCommand,
)
from edge_agent.core.errors import InputError
from edge_agent.core.pictures import MAX_CROP_PIXELS, decode_picture
from edge_agent.embed.quality import QualityGate, grade_picture
from edge_agent.gallery import audit
from edge_agent.gallery.erasure import Erasure, forget

if TYPE_CHECKING:
    from edge_agent.agent.pipeline import TaskQueue
    from edge_agent.deliver.local import Counters as DeliveryCounters
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.rows import Identity
    from edge_agent.identify import Identifier

_REQUESTER = "mqtt"
"""Name in the audit file."""


@dataclass(frozen=True, slots=True)
class CommandHandlers:
    """One method per command; it takes the command and returns JSON values for the answer."""

    gallery: Gallery
    identifier: Identifier
    embed: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]
    """Embeds N pictures: `(N, D)` float32; called on the driving thread."""
    gate: QualityGate
    tasks: TaskQueue
    """Runs changes of the gallery on the driving thread."""
    erasure: Erasure
    reload: Callable[[], list[str]]
    """Reloads the settings; returns the keys that need a restart."""
    delivery: Callable[[], DeliveryCounters]
    state: Path
    """Folder of the audit file."""
    people: Callable[[], None] = lambda: None
    """Publishes what changed in the gallery; on the driving thread."""

    def table(self) -> dict[str, Callable[[Any], Mapping[str, Any] | None]]:
        """Return the handler of each command."""
        return {
            "enrol": self.enrol,
            "name": self.name,
            "merge": self.merge,
            "forget": self.forget,
            "reload": lambda _: {"restart_required": self.reload()},
            "stats": self.counters,
            "recalibrate": self.recalibrate,
        }

    def enrol(self, command: EnrolCommand) -> Mapping[str, Any]:
        """Enrol the person of a track or a picture, with a name if one is given."""
        by_track = command.camera is not None and command.track_id is not None
        if by_track == (command.crop is not None):
            raise InputError("enrol takes either camera and track_id, or crop")
        # Decoded and judged here, on the thread of the commands: the driving thread has cameras to serve.
        picture = None if command.crop is None else self._usable_picture(command.crop)
        number = self.tasks.call(lambda: self._enrol(command, picture))
        self.tasks.put(self.people)
        identity = self.gallery.get(number)
        audit.record(self.state, "enrol", _REQUESTER, exemplars=identity.exemplars)
        return {"identity_id": identity.id, "name": identity.name, "exemplars": identity.exemplars}

    def name(self, command: NameCommand) -> Mapping[str, Any]:
        """Set or remove the name of a person."""
        number = self.gallery.get(command.identity_id).number
        identity = self.tasks.call(lambda: self.gallery.rename(number, command.name))
        self.tasks.put(self.people)
        audit.record(self.state, "name", _REQUESTER)
        return {"identity_id": identity.id, "name": identity.name}

    def merge(self, command: MergeCommand) -> Mapping[str, Any]:
        """Merge two identities."""

        def merge() -> Identity:
            keep = self.gallery.get(command.identity_id).number
            absorb = self.gallery.get(command.absorbed_id).number
            identity = self.gallery.merge(keep, absorb)
            self.identifier.merged(keep, absorb)
            self.people()
            return identity

        identity = self.tasks.call(merge)
        audit.record(self.state, "merge", _REQUESTER)
        return {"identity_id": identity.id, "exemplars": identity.exemplars}

    def forget(self, command: ForgetCommand) -> Mapping[str, Any]:
        """Erase a person from gallery, outbox and crop folders."""
        identity = self.gallery.get(command.identity_id)
        erased, removed = self.erasure.forget(
            lambda: self.tasks.call(lambda: forget(self.gallery, identity.number))
        )
        self.tasks.put(self.people)
        counts = {"exemplars": erased.exemplars, **asdict(removed)}
        audit.record(self.state, "forget", _REQUESTER, **counts)
        return counts

    def counters(self, _command: StatsCommand) -> Mapping[str, Any]:
        """Return the statistics of gallery, threshold, drift and delivery."""
        threshold = asdict(self.identifier.thresholds.in_force)
        threshold["value"] = threshold.pop("stated")  # as in events
        return {
            "gallery": asdict(self.gallery.stats()),
            "threshold": threshold,
            "drift": self.identifier.thresholds.site.drift(),
            "delivery": asdict(self.delivery()),
        }

    def recalibrate(self, _command: RecalibrateCommand) -> Mapping[str, Any]:
        """Discard the site's scores; the threshold is estimated again, after a warm-up."""
        pairs = len(self.identifier.thresholds.site)
        self.tasks.call(self.identifier.recalibrate)
        audit.record(self.state, "recalibrate", _REQUESTER, pairs=pairs)
        return {"forgotten_pairs": pairs}

    def _usable_picture(self, text: str) -> tuple[NDArray[np.uint8], float]:
        """Decode a base64 JPEG or PNG to `(H, W, 3)` uint8 BGR; return it and its quality, 0..1."""
        try:
            encoded = base64.b64decode(text, validate=True)
        except ValueError:  # binascii.Error is one
            raise InputError("crop is not base64") from None
        picture = decode_picture(encoded, "crop", max_pixels=MAX_CROP_PIXELS)
        quality, reason = grade_picture(self.gate, picture)
        if reason:
            raise InputError(f"the picture is not a usable picture of one person: {reason}")
        return picture, quality

    def _enrol(self, command: EnrolCommand, picture: tuple[NDArray[np.uint8], float] | None) -> int:
        if picture is None:
            return self.identifier.enrol_track(command.camera or "", command.track_id or 0, command.name)
        image, quality = picture
        identity = self.gallery.enrol(
            self.embed([image]),
            np.array([quality], np.float32),
            name=command.name,
            kind="enrolled",
            origin=f"mqtt:{command.transaction}",
            camera="",
            time=command.issued,
        )
        return identity.number
