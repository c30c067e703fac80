"""The state of a device's connection to the store of its fleet, as status, telemetry and alerts show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

FleetLink = Literal["connecting", "connected", "waiting", "refused", "stopped"]
"""`waiting`: the store is not reached, and tried again later; `refused`: it does not take this device."""


@dataclass(frozen=True, slots=True)
class FleetState:
    """What the worker knows; replaced as a whole, so any thread may read it.

    Attributes:
        site, store: the site, and `HOST:PORT` of its store.
        link: the connection.
        problem: why it is not connected, "" while it is.
        retry_s: seconds until the next attempt; None while connected.
        mark, version: of the changes of the site, the last that was applied here, and the last that is known
            to exist; None before the first exchange.
        pending: changes of this device that the store has not acknowledged.
        sent, received: people in changes sent and applied since the start.
        asked, known, late: strangers that the store was asked about since the start, those that it knew, and
            those without a usable answer within `fleet.ask_ms`.
        unasked: strangers that were enrolled without a question: the store is away, or too many wait.
        conflicts: pairs of people that are probably one but have two names, which an operator has to decide;
            None: unknown.
        exchanged: Unix seconds of the last complete exchange, by the device's clock; None: none yet.
    """

    site: str
    store: str
    link: FleetLink = "connecting"
    problem: str = ""
    retry_s: float | None = None
    mark: int | None = None
    version: int | None = None
    pending: int = 0
    sent: int = 0
    received: int = 0
    asked: int = 0
    known: int = 0
    late: int = 0
    unasked: int = 0
    conflicts: int | None = None
    exchanged: float | None = None

    @property
    def lag(self) -> int | None:
        """Changes of the site that are known to exist and are not applied here."""
        if self.mark is None or self.version is None:
            return None
        return max(0, self.version - self.mark)

    def document(self) -> dict[str, Any]:
        """Return JSON values for the status document."""
        return asdict(self) | {"lag": self.lag}


class FleetMember(Protocol):
    """What takes part in the fleet for this device."""

    @property
    def state(self) -> FleetState:
        """The state now, from any thread."""
