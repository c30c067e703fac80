"""Protocol of the sources."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from edge_agent.core.structures import CropBatch, Frame, MessageFrame

Item = Frame | CropBatch | MessageFrame


class Source(Protocol):
    """A camera, a file or a folder, read by one `FrameReader`.

    Constructors are cheap and touch nothing; `frames()` opens the device and its `finally` releases it.
    A source whose `frames()` begins with the first item again, such as a file, has the attribute `rewinds`.
    A live source whose items are small may have the attribute `backlog`, the number of items that may wait.
    Between two frames a source keeps only counters, since a reader may abandon a call of `frames()` that
    hangs in a driver and make another one.
    """

    @property
    def id(self) -> str:
        """Matches `[a-z0-9_-]{1,64}`."""

    @property
    def live(self) -> bool:
        """Whether frames that the consumer does not take in time are dropped (True) or wait (False)."""

    @property
    def ends(self) -> bool:
        """Whether the end of `frames()` is the end of the source (a file), or an outage (a camera)."""

    @property
    def stall_seconds(self) -> float | None:
        """The longest silence of a healthy source, opening it included; None: any may be healthy."""

    def frames(self) -> Generator[Item | None, None, None]:
        """Numbered and time-stamped items, in order.

        A source that may have no items for a long time yields None about twice a second meanwhile, as a
        heartbeat, at which it can also be stopped.

        Raises:
            SourceLost: no frames at present; a later retry may help.
            SourceError: no frames, and a retry will not help.
        """
