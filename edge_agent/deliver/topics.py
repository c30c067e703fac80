"""Names of the MQTT topics, and the topic of each event.

::

    edge/v1/<site>/<device>/status                 retained
    edge/v1/<site>/<device>/info                   retained
    edge/v1/<site>/<device>/telemetry
    edge/v1/<site>/<device>/camera/<camera>/status retained
    edge/v1/<site>/<device>/identity/<kind>        outbox
    edge/v1/<site>/<device>/person/<kind>          outbox
    edge/v1/<site>/<device>/present                retained
    edge/v1/<site>/<device>/gap                    outbox
    edge/v1/<site>/<device>/alert/<kind>           outbox
    edge/v1/<site>/<device>/cmd/<verb>             in
    edge/v1/<site>/<device>/cmd/<verb>/result
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edge_agent.core.errors import ConfigError
from edge_agent.core.events import DATA_TYPES, Event

PREFIX = "edge/v1"
_FIRST_LEVELS = frozenset(DATA_TYPES) - {"command-result"}
"""First levels of the topics of events and states."""
_NAME = re.compile(r"[a-z0-9_-]{1,64}")


def kind_of(topic: str) -> str:
    """The kind of event that a topic of a device carries, whatever the name of the device; "" for others.

    Events that wait keep the topic of the name that the device had.
    """
    parts = topic.split("/")
    return parts[4] if topic.startswith(f"{PREFIX}/") and len(parts) > 4 else ""


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one device.

    Raises:
        ConfigError: site or device is not of `[a-z0-9_-]{1,64}`.
    """

    site: str
    device: str
    root: str = field(init=False)
    """`edge/v1/<site>/<device>`: the source of every event, and the beginning of every topic."""
    status: str = field(init=False)
    info: str = field(init=False)
    telemetry: str = field(init=False)
    gap: str = field(init=False)
    present: str = field(init=False)
    doctor: str = field(init=False)
    """For the test message of `edge-agent doctor --try`."""
    commands: str = field(init=False)
    """Filter for the commands to this device, without their results."""

    def __post_init__(self) -> None:
        for what, name in (("site", self.site), ("device", self.device)):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{what} {name!r} cannot be part of a topic: use 1 to 64 of a-z, 0-9, _ and -"
                )
        object.__setattr__(self, "root", f"{PREFIX}/{self.site}/{self.device}")
        object.__setattr__(self, "commands", f"{self.root}/cmd/+")
        for name in ("status", "info", "telemetry", "gap", "present", "doctor"):
            object.__setattr__(self, name, f"{self.root}/{name}")

    def alert(self, kind: str) -> str:
        """Alerts of one kind."""
        return f"{self.root}/alert/{kind}"

    def camera_status(self, camera: str) -> str:
        """State of one camera."""
        return f"{self.root}/camera/{camera}/status"

    def is_taken(self, topic: str) -> bool:
        """Whether a topic of this device is one of events, states or commands, not free for results."""
        first, *rest = topic.removeprefix(f"{self.root}/").split("/")
        return topic.startswith(f"{self.root}/") and (
            first in _FIRST_LEVELS or (first == "cmd" and len(rest) < 2)
        )

    def verb_of(self, topic: str) -> str:
        """The verb of a command's topic."""
        return topic.removeprefix(f"{self.root}/cmd/")

    def result(self, verb: str) -> str:
        """Topic of the result of a command without response topic."""
        return f"{self.root}/cmd/{verb}/result"

    def of(self, event: Event) -> str:
        """Topic of a numbered event: identity, person, gap or alert."""
        return f"{self.root}/{event.kind}/{event.detail}" if event.detail else f"{self.root}/{event.kind}"
