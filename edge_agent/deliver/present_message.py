"""The retained message of who is present: made when it is sent, not more often than needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.deliver.connection import Connection
    from edge_agent.deliver.local import Origin
    from edge_agent.deliver.unnumbered import UnnumberedMessages

INTERVAL_S = 1.0
"""It is sent at most this often, except at a connect and at the end."""
_BESIDES = 512
"""Bytes of a packet besides the payload: the topic, and properties."""


class PresentMessage:
    """Queues the message when it has changed. Not thread-safe."""

    def __init__(self, origin: Origin, connection: Connection, unnumbered: UnnumberedMessages) -> None:
        self._origin = origin
        self._connection = connection
        self._unnumbered = unnumbered
        self._made_at = 0.0
        self._changes = 0
        unnumbered.retain(origin.topics.present, self._make)

    def queue(self, *, at_once: bool = False) -> None:
        """Queue the message when it is old, and the last one was sent a while ago."""
        if self._origin.presence.changes != self._changes and (
            at_once or time.monotonic() - self._made_at >= INTERVAL_S
        ):
            self._unnumbered.resend(self._origin.topics.present)

    def _make(self) -> bytes:
        """Return the message, without the tracks with the oldest events where it would be too large."""
        connection, presence = self._connection, self._origin.presence
        self._made_at, self._changes = time.monotonic(), presence.changes
        limit, data = connection.packet_limit, presence.snapshot()
        message, most = self._origin.message("present", data), len(data.people)
        while limit is not None and most and len(message) + _BESIDES > limit:
            most = max(0, min(most - 1, most * (limit - _BESIDES) // len(message)))
            message = self._origin.message("present", presence.snapshot(most))
        return message
