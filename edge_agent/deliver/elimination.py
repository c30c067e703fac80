"""Finds the message for which a broker closes the connection, so that it does not hold up all others.

A broker may close the connection at a message that it does not take: mosquitto does so above its
`max_packet_size`. MQTT 5 has reason codes for that, MQTT 3.1.1 has none, and up to `WINDOW` messages may be
under way. So after a loss each message that was under way is sent alone. One that is alone at a loss is the
cause

- at once, where the broker's DISCONNECT blames the message (`BLAMED`);
- never, where it names another cause (`NOT_BLAMED`);
- otherwise at the third such loss in a row, if the broker took another message on the same connection before:
  a broker or a network that fails by itself fails whatever is sent.

Two messages that were found without a reason, both larger than all that the broker took, show a limit of
size, and so does one with the reason 149: such large ones are then not sent any more, for a time.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence

from edge_agent.deliver.connection import Connection, Sent

LOSSES = 3
"""Losses of the connection, without a reason, after which the message that was alone is the cause."""
LIMIT_KEPT_S = 3600.0
"""How long a limit of size that was found out is kept to; then one larger message is tried again."""
PACKET_TOO_LARGE = 149
TAKEN_OVER = 142
BLAMED = frozenset({144, PACKET_TOO_LARGE, 153})
"""DISCONNECT codes that blame a message: topic name invalid, packet too large, payload format invalid."""
NOT_BLAMED = frozenset({137, 139, 141, TAKEN_OVER, 150, 151, 152, 156, 157, 159, 160})
"""DISCONNECT codes of another cause: server busy, shutting down, keep alive timeout, session taken over,
message rate, quota, administrative action, another server, server moved, connection rate, connect time."""


class Elimination:
    """What is known about messages at which the connection was lost. Not thread-safe."""

    def __init__(self) -> None:
        self._doubted: set[Hashable] = set()
        """Messages that were under way at a loss, and not settled since; without those of QoS 0."""
        self._losses: dict[Hashable, int] = {}
        """Losses at which a message was alone, that speak against it."""
        self._largest = 0
        """Bytes of the largest packet that the broker took."""
        self._found: list[int] = []
        """Bytes of the packets that were the cause, and are larger."""
        self._limit: int | None = None
        self._limit_until = 0.0

    @property
    def careful(self) -> bool:
        """Whether messages are sent one by one."""
        return bool(self._doubted)

    def room(self, connection: Connection) -> int:
        """Return how many more messages may be sent now."""
        return 1 - len(connection.in_doubt) if self.careful else connection.room

    @property
    def suspects(self) -> frozenset[Hashable]:
        """Messages that were alone at a loss: others are sent before them."""
        return frozenset(self._losses)

    @property
    def limit(self) -> int | None:
        """Largest packet (bytes) that the broker seems to take; None where no limit was found."""
        if self._limit is not None and time.monotonic() > self._limit_until:
            self._limit = None
        return self._limit

    def lost(self, in_doubt: Sequence[Sent], code: int | None, *, others_pass: bool) -> Sent | None:
        """Handle a loss; return the message that is the cause, if it is found.

        `code` is that of the broker's DISCONNECT, None without one; `others_pass`: whether the broker took a
        message on this connection.
        """
        if code in NOT_BLAMED or not in_doubt:
            return None
        self._doubted.update(sent.key for sent in in_doubt if not sent.is_plain)
        if len(in_doubt) > 1:
            return None
        (sent,) = in_doubt
        before = self._losses.setdefault(sent.key, 0)
        if code not in BLAMED:
            if not others_pass:
                return None
            self._losses[sent.key] = before + 1
            if before + 1 < LOSSES:
                return None
        self.settled([sent], taken=False)
        self._found = [size for size in (*self._found, sent.size) if size > self._largest]
        if self._found and (code == PACKET_TOO_LARGE or len(self._found) > 1):
            self._limit, self._limit_until = min(self._found) - 1, time.monotonic() + LIMIT_KEPT_S
        return sent

    def settled(self, messages: Iterable[Sent], *, taken: bool = True) -> None:
        """Note messages that the broker took or refused, or that are not sent any more."""
        for sent in messages:
            self._doubted.discard(sent.key)
            self._losses.pop(sent.key, None)
            if taken:
                self._largest = max(self._largest, sent.size)

    def end(self) -> None:
        """End the careful sending: nothing is left to send, so what was doubted and not sent is gone."""
        self._doubted.clear()
