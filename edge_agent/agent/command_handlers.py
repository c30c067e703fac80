"""Handlers of commands, over MQTT and of the page; people are changed by `agent.operations`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.agent.operations import Operations, compared_threshold
from edge_agent.core.commands import (
    EnrolCommand,
    ForgetCommand,
    KeepCommand,
    MergeCommand,
    NameCommand,
    RecalibrateCommand,
    RejectCommand,
    SplitCommand,
    StatsCommand,
    SuggestionsCommand,
    ThresholdCommand,
)
from edge_agent.core.errors import InputError
from edge_agent.core.pictures import MAX_CROP_PIXELS, decode_picture, encode_kept
from edge_agent.core.setting_types import LONGEST_TTL_HOURS, SHORTEST_TTL_HOURS
from edge_agent.embed.quality import QualityGate, grade_picture
from edge_agent.gallery import audit
from edge_agent.gallery.crop_rows import Shot
from edge_agent.gallery.erasure import Erasure, Removed

if TYPE_CHECKING:
    from edge_agent.agent.tasks import TaskQueue
    from edge_agent.deliver.local import Counters as DeliveryCounters
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.identify import Identifier


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
    requester: str = "mqtt"
    """Where the commands come from, for the audit file; after a colon the user, if known."""

    def table(self) -> dict[str, Callable[[Any], Mapping[str, Any] | None]]:
        """Return the handler of each command."""
        return {
            "enrol": self.enrol,
            "name": self.name,
            "merge": self.merge,
            "split": self.split,
            "reject": self.reject,
            "keep": self.keep,
            "suggestions": self.suggestions,
            "forget": self.forget,
            "reload": lambda _: {"restart_required": self.reload()},
            "stats": self.counters,
            "recalibrate": self.recalibrate,
            "threshold": self.set_threshold,
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
        audit.record(self.state, "enrol", self.requester, exemplars=identity.exemplars)
        return {"identity_id": identity.id, "name": identity.name, "exemplars": identity.exemplars}

    @property
    def operations(self) -> Operations:
        """The operations on people, run on the driving thread."""
        return Operations(
            self.gallery,
            self.state,
            self.requester,
            erase=self.erasure.forget,
            threshold=lambda: compared_threshold(self.identifier.thresholds, self.gallery),
            together=self.identifier.together,
            run=self.tasks.call,
            follow=self.people,
        )

    def name(self, command: NameCommand) -> Mapping[str, Any]:
        """Set or remove the name of a person."""
        identity = self.operations.name(command.identity_id, command.name)
        return {"identity_id": identity.id, "name": identity.name}

    def merge(self, command: MergeCommand) -> Mapping[str, Any]:
        """Merge two identities."""
        identity = self.operations.merge(command.identity_id, command.absorbed_id)
        return {"identity_id": identity.id, "exemplars": identity.exemplars}

    def split(self, command: SplitCommand) -> Mapping[str, Any]:
        """Make a new identity of what one track contributed to another."""
        identity = self.operations.split(command.identity_id, command.origin, command.name)
        return {"identity_id": identity.id, "name": identity.name, "exemplars": identity.exemplars}

    def reject(self, command: RejectCommand) -> Mapping[str, Any]:
        """Keep two identities apart."""
        one, other = self.operations.reject(command.identity_id, command.other_id)
        return {"identity_id": one.id, "other_id": other.id}

    def keep(self, command: KeepCommand) -> Mapping[str, Any]:
        """Set the time to live of one person."""
        if (command.hours is not None) != (command.keep == "hours"):
            raise InputError("hours belongs to keep: hours, and to no other")
        hours = command.hours
        if hours is not None and not SHORTEST_TTL_HOURS <= hours <= LONGEST_TTL_HOURS:
            raise InputError(f"hours must be {SHORTEST_TTL_HOURS:g} to {LONGEST_TTL_HOURS:g}")
        ttl_s = 0.0 if command.keep == "forever" else None if hours is None else hours * 3600
        identity = self.operations.keep(command.identity_id, ttl_s)
        return {"identity_id": identity.id, "expires": identity.expires}

    def suggestions(self, command: SuggestionsCommand) -> Mapping[str, Any]:
        """Return pairs that are probably one person."""
        pairs = self.operations.suggestions(command.most)
        return {
            "pairs": [
                {"identity_id": pair.one.id, "other_id": pair.other.id, "score": round(pair.score, 4)}
                for pair in pairs
            ]
        }

    def forget(self, command: ForgetCommand) -> Mapping[str, Any]:
        """Erase a person from gallery, outbox and crop folders."""
        erased, removed = self.operations.forget([command.identity_id])
        return {"exemplars": erased[0].exemplars, **asdict(removed or Removed())}

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
        audit.record(self.state, "recalibrate", self.requester, pairs=pairs)
        return {"forgotten_pairs": pairs}

    def set_threshold(self, command: ThresholdCommand) -> Mapping[str, Any]:
        """Set the threshold of a match by hand, or remove it."""
        if command.threshold is not None and not -1 <= command.threshold <= 1:
            raise InputError("threshold must be a number from -1 to 1, or null")
        self.tasks.call(lambda: self.identifier.set_threshold(command.threshold))
        audit.record(self.state, "threshold", self.requester)
        in_force = self.identifier.thresholds.in_force
        return {"threshold": in_force.stated, "rule": in_force.rule}

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
        vectors, origin = self.embed([image]), f"{self.requester.partition(':')[0]}:{command.transaction}"
        identity = self.gallery.enrol(
            vectors,
            np.array([quality], np.float32),
            name=command.name,
            kind="enrolled",
            origin=origin,
            camera="",
            time=command.issued,
        )
        if self.gallery.crops.most:
            shot = Shot(origin, "", command.issued, quality, vectors[0], encode_kept(image))
            self.gallery.crops.add(identity.number, [shot])
        return identity.number
