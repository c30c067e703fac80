"""The store of a fleet, as devices see it; `fleet.postgres` is the one that exists.

All calls have a deadline of the program: a frozen server or a cut network ends them with `StoreDown`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from edge_agent.core.errors import EdgeAgentError
from edge_agent.fleet.records import (
    Answer,
    Candidate,
    DeviceState,
    Page,
    Pair,
    Push,
    PushResult,
    SiteState,
    Vectors,
    Welcome,
)


class StoreDown(EdgeAgentError):
    """The store cannot be reached, or did not answer in time; a later call may succeed."""


class StoreRefused(EdgeAgentError):
    """The store refuses this device until somebody changes something; the message says what."""


class StaleMark(EdgeAgentError):
    """The device was away for longer than erased people are known, or the site was restored."""


class FleetStore(Protocol):
    """A site's share of a store, for one device. Every call may raise StoreDown and StoreRefused."""

    async def hello(self, mark: int, receipts: Collection[str]) -> Welcome:
        """Connect; `receipts` are the latest random texts that this device gave to `confirm`.

        Those are the last that was acknowledged, and the one that was sent after it. A device without any
        and with mark 0 is known where the store has none either.

        StoreRefused: wrong role or certificate, another embedding space, a schema that is older or newer
        than this program's, or a device that left.
        """

    async def close(self) -> None:
        """End the connection."""

    async def push(self, push: Push, mark: int) -> PushResult:
        """Merge changes of this device into the site; StaleMark: its mark is below the horizon.

        A change counts as sent when a later `confirm` was answered, not before: a store that was restored
        from an older copy without the change is noticed by the receipt.
        """

    async def pull(self, mark: int, most: int, *, full: bool = False) -> Page:
        """Return what changed after `mark`, about `most` people or contributions.

        StaleMark as in `push`, except with mark 0, and with `full`: later pages of a full copy.
        """

    async def confirm(self, mark: int, receipt: str) -> None:
        """Note that this device has applied everything up to `mark`, and erased what had to be."""

    async def ask(self, vectors: Vectors, most: int) -> Answer:
        """Return the nearest people to evidence `(Q, D)`, approximate beyond some size."""

    async def lease(self, name: str, seconds: float) -> bool:
        """Take, or keep, the right to do a task of the whole site; False: another device has it."""

    async def alike(
        self, after: int, most: int
    ) -> tuple[int, Sequence[tuple[Candidate, Sequence[Candidate]]]]:
        """Return people whose exemplars changed after a version, each with those nearest to it (raw).

        The first value is the version up to which they are complete, for the next call.
        """

    async def join(self, pairs: Collection[Pair]) -> int:
        """Merge pairs of people, unless they are kept apart, erased, or have two names; return how many.

        Nothing is done without the lease `reconcile`. Pairs with two names are noted as conflicts.
        """

    async def tidy(self, tombstone_s: float) -> None:
        """Erase people who were seen by no device for their time to live; drop tombstones older than this.

        Nothing is done without the lease `reconcile`.
        """

    async def erased(self, id_: str) -> tuple[int | None, Sequence[DeviceState]]:
        """Return the version at which a person was erased (None: it was not), and all devices with marks.

        A device has erased the person when its mark has reached that version. InputError: an unknown id.
        """

    async def state(self) -> SiteState:
        """Return the site for `status`."""
