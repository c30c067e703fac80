"""The one place that turns settings into stages.

The daemon, the benchmarks, evaluation and calibration all get their stages here, so they run the same code.
Nothing heavy is imported before the stage that needs it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from edge_agent.core.config import (
    Settings,
)
from edge_agent.core.errors import StorageError

if TYPE_CHECKING:
    from edge_agent.core.events import Event, TelemetryData
    from edge_agent.core.heartbeat import HeartbeatState
    from edge_agent.core.structures import SourceStatus
    from edge_agent.deliver.connection import ConnectionState
    from edge_agent.deliver.outbox import Outbox
    from edge_agent.deliver.publisher import Counters as Delivered
    from edge_agent.deliver.publisher import State
    from edge_agent.gallery.erasure import Erasure, Removed
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.source.base import Source

__all__ = [
    "Publish",
    "erase_at_rest",
    "make_erasure",
    "rekey",
]


class Publish(Protocol):
    """What the agent needs of delivery; see `edge_agent.deliver.publisher`."""

    def publish(self, event: Event) -> int:
        """Deliver an event at least once."""

    def set_status(self, state: State, reason: str = "") -> None:
        """Say how the agent is."""

    def set_camera_status(self, status: SourceStatus) -> None:
        """Say how a camera is."""

    def send_telemetry(self, data: TelemetryData) -> None:
        """Send thermals and load, once."""

    def drain(self, timeout: float) -> bool:
        """Wait until everything is delivered."""

    @property
    def counters(self) -> Delivered:
        """What was delivered."""

    @property
    def state(self) -> ConnectionState:
        """Where the connection to the broker stands."""

    @property
    def heartbeat(self) -> HeartbeatState:
        """When delivery last got on, and why it does not if it does not."""


def rekey(settings: Settings, old: bytes | None) -> dict[str, bool]:
    """Write gallery and outbox anew under the configured key; the agent must not run.

    Args:
        settings: with the key that they shall have, or none.
        old: the key that they were made with; None: they are plain.

    Returns:
        by path: whether it was written, False where it had that key already; files that are not there are not
        named.

    Raises:
        ConfigError: the configured key is none, or SQLCipher is not installed.
        StorageError: an agent runs, or the old key is not the one.
    """
    from edge_agent.core.encryption import database_key, rewrite
    from edge_agent.deliver import recovery
    from edge_agent.deliver.outbox import OUTBOX_FILE
    from edge_agent.gallery.gallery import GALLERY_FILE
    from edge_agent.gallery.sync import owner_lock

    new = database_key(settings.storage)
    gallery, events = settings.state_dir / GALLERY_FILE, settings.state_dir / OUTBOX_FILE
    lock = owner_lock(gallery)
    if gallery.exists() and not lock.acquire():
        raise StorageError(f"{gallery} is in use by a running agent (process {lock.holder()}); stop it first")
    try:
        made = {
            str(path): do(path, old, new)
            for path, do in ((gallery, rewrite), (events, recovery.rekey))
            if path.exists()
        }
    finally:
        lock.release()
    return made


def make_erasure(
    settings: Settings, gallery: Gallery, outbox: Outbox | None, sources: Sequence[Source]
) -> Erasure:
    """What removes events and pictures of people who are gone.

    Args:
        settings: all settings.
        gallery: open.
        outbox: open; None where there is no broker: one of an earlier run is opened when something has to go.
        sources: all that are read.
    """
    from edge_agent.deliver.outbox import OUTBOX_FILE, make_outbox
    from edge_agent.gallery.erasure import Erasure
    from edge_agent.source.crops import CropFolderSource

    def erase_at_rest(word: str) -> int:
        if not (settings.state_dir / OUTBOX_FILE).exists():
            return 0
        with make_outbox(settings) as kept:
            return kept.erase(word)

    folders = [source for source in sources if isinstance(source, CropFolderSource)]
    return Erasure(gallery, outbox.erase if outbox is not None else erase_at_rest, folders)


def erase_at_rest(settings: Settings, gallery: Gallery) -> Removed | None:
    """Remove what is kept of people who are gone, while no agent runs; None where one does, which will do it.

    Raises:
        StorageError: some could not be removed; the agent will, at its next start.
    """
    from edge_agent.gallery.gallery import GALLERY_FILE
    from edge_agent.gallery.sync import owner_lock
    from edge_agent.source.opening import open_sources

    state = settings.state_dir
    lock = owner_lock(state / GALLERY_FILE)
    if not lock.acquire():
        return None
    try:
        enabled = any(source.enabled for source in settings.sources)
        return make_erasure(
            settings, gallery, None, open_sources(settings.sources, state) if enabled else ()
        ).run()
    finally:
        lock.release()
