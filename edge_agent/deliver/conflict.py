"""Another client with the same id: recognised, reported, and left its turn."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.deliver.elimination import TAKEN_OVER

if TYPE_CHECKING:
    from edge_agent.core.events import Details
    from edge_agent.core.mqtt import BrokerSettings
    from edge_agent.deliver.connection import Connection

log = structlog.get_logger(__name__)

CONFLICT_WAIT_S = 30.0
LONGEST_CONFLICT_WAIT_S = 900.0
CONFLICT_OVER_S = 1800.0
"""A connection that lasts this long ends a conflict: longer than the other client waits."""
EARLY_S = 90.0
"""A connection that is closed within this time may have been closed for another client with its id."""
EARLY_LOSSES = 4
"""So many such losses in a row, without any other sign of a fault, mean another client with the same id; more
than `elimination` needs to find a message with QoS 0 at which the broker closes the connection.
"""


class Conflict:
    """Recognises another client with the same id, and returns how long to wait, so that each gets its turn.

    A broker closes a connection when another client with the same id connects. With MQTT 5 it gives the
    reason 142, otherwise none. Each client then connects again: so both wait longer each time.
    """

    def __init__(self) -> None:
        self._early = 0
        self.count = 0
        """Losses for this reason."""

    @property
    def is_known(self) -> bool:
        """Whether there is another client with the same id, as far as is known."""
        return self.count > 0

    def lost(self, lasted_s: float, *, taken_over: bool, unexplained: bool) -> float | None:
        """Handle the loss of a working connection; return the seconds to wait, None without a conflict.

        `taken_over`: the broker has given that reason; `unexplained`: it closed the connection without any,
        and no message waited for its acknowledgement.
        """
        self.connected_for(lasted_s)
        self._early = self._early + 1 if unexplained and lasted_s < EARLY_S else 0
        if not taken_over and self._early < (1 if self.is_known else EARLY_LOSSES):
            return None
        self.count += 1
        bound = min(CONFLICT_WAIT_S * 2.0 ** min(self.count - 1, 30), LONGEST_CONFLICT_WAIT_S)
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 - both clients must not wait equally long

    def not_connected(self) -> None:
        """Handle a failed attempt to connect: the losses before it had another reason."""
        self._early = 0

    def connected_for(self, seconds: float) -> bool:
        """Handle a connection that lasts so long; return True when it ends a known conflict."""
        if not self.is_known or seconds < CONFLICT_OVER_S:
            return False
        self.count = self._early = 0
        return True


class Alert(Protocol):
    """Publishes an alert."""

    def __call__(self, kind: AlertKind, text: str, details: Details, *, active: bool) -> None: ...  # noqa: D102


class ConflictWatch:
    """Looks for a conflict at the losses of a connection, and reports its beginning and its end."""

    def __init__(self, broker: BrokerSettings, client_id: str, alert: Alert) -> None:
        self._broker = broker
        self._client_id = client_id
        self._alert = alert
        self._conflict = Conflict()

    @property
    def text(self) -> str:
        """The conflict, for people; "" without one."""
        if not self._conflict.is_known:
            return ""
        return (
            f"another client with the id {self._client_id} takes the connection to broker {self._broker.url}:"
            " probably another agent with the same mqtt.site and mqtt.device, as after copying a disk; give"
            " each its own"
        )

    def not_connected(self) -> None:
        """Handle a failed attempt to connect."""
        self._conflict.not_connected()

    def lost(self, connection: Connection, lasted_s: float) -> float | None:
        """Handle the loss of a working connection; return the seconds to wait, None without a conflict."""
        known = self._conflict.is_known
        wait_s = self._conflict.lost(
            lasted_s,
            taken_over=connection.loss_code == TAKEN_OVER,
            unexplained=connection.was_closed and not connection.unsettled,
        )
        if wait_s is not None and not known:
            log.warning(
                "another client has the id of this agent", broker=self._broker.url, id=self._client_id
            )
            self._report(self.text, active=True)
        return wait_s

    def connected_for(self, seconds: float) -> None:
        """Handle a connection that lasts so long."""
        if self._conflict.connected_for(seconds):
            self._report("no other client has taken the connection for a while", active=False)

    def _report(self, text: str, *, active: bool) -> None:
        self._alert(AlertKind.CLIENT_ID_CONFLICT, text, {"client_id": self._client_id}, active=active)
