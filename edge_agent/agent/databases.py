"""Gallery, outbox and crop folders together: erasure of people, and change of the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edge_agent.core.encryption import database_key, remove_unfinished, rewrite
from edge_agent.core.errors import StorageError
from edge_agent.deliver import storage
from edge_agent.deliver.copies import COPIES_FILE
from edge_agent.deliver.outbox import OUTBOX_FILE, Outbox, make_outbox
from edge_agent.gallery.erasure import Erasure, Removed
from edge_agent.gallery.gallery import GALLERY_FILE, Gallery
from edge_agent.gallery.sync import owner_lock
from edge_agent.record.recorder import FOLDER, recordings
from edge_agent.record.recorder import erase as erase_recorded
from edge_agent.source.crops import CropFolderSource
from edge_agent.source.opening import open_sources

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.deliver.recent import RecentEvents
    from edge_agent.record.recorder import Recorder
    from edge_agent.source.base import Source

OUTBOXES = (OUTBOX_FILE, COPIES_FILE)
"""Files of the state folder with events that wait."""


def make_erasure(
    settings: Settings,
    gallery: Gallery,
    outboxes: Mapping[str, Outbox],
    sources: Sequence[Source],
    recorder: Recorder | None = None,
    recent: Callable[[], RecentEvents] | None = None,
) -> Erasure:
    """Return what erases the events and pictures of erased people, also from recordings.

    `outboxes` are the open ones by file name; the others are opened when needed, where a run has left
    their file. `sources` are all that are read. The caller owns the state folder. A copy of a database that a
    killed `rekey` left there is deleted now: it would contain the people that are erased later. `recorder` is
    the open one; `recent` returns the events that this run keeps in memory.
    """
    recorded = settings.state_dir / FOLDER
    for path in (*(settings.state_dir / name for name in (GALLERY_FILE, *OUTBOXES)), *recordings(recorded)):
        remove_unfinished(path)

    def erase(word: str, name: str) -> int:
        if name in outboxes:
            return outboxes[name].erase(word)
        if not (settings.state_dir / name).exists():
            return 0
        with make_outbox(settings, name=name) as kept:
            return kept.erase(word)

    def erase_events(word: str) -> int:
        erased = sum(erase(word, name) for name in OUTBOXES)
        if recent is not None:
            recent().erase(word)
        if recorder is not None:
            recorder.erase(word)
        else:
            erase_recorded(recorded, database_key(settings.storage), word)
        return erased

    folders = [source for source in sources if isinstance(source, CropFolderSource)]
    return Erasure(gallery, erase_events, folders)


def erase_at_rest(settings: Settings, gallery: Gallery) -> Removed | None:
    """Erase the events and pictures of erased people; None where a running agent will do it.

    Raises:
        StorageError: some could not be erased; the agent will erase them at its next start.
    """
    state = settings.state_dir
    lock = owner_lock(state / GALLERY_FILE)
    if not lock.acquire():
        return None
    try:
        return erasure_at_rest(settings, gallery).run()
    finally:
        lock.release()


def erasure_at_rest(settings: Settings, gallery: Gallery) -> Erasure:
    """Return what erases the events and pictures of erased people; the caller owns the state folder."""
    if settings.mqtt.broker is None:  # no subscriber holds their ids from one run to the next
        gallery.notices.drop_forgotten()
    enabled = any(source.enabled for source in settings.sources)
    sources = open_sources(settings.sources, settings.state_dir, settings=settings) if enabled else []
    return make_erasure(settings, gallery, {}, sources)


def rekey(settings: Settings, old: bytes | None) -> dict[str, bool]:
    """Rewrite gallery, outboxes and recordings with the configured key, or without; the agent must not run.

    `old` is the present key, None where they are not encrypted. Returns by path of each existing file: True
    if it was rewritten, False if it already had the new key.

    Raises:
        ConfigError: the configured key is not valid, or SQLCipher is not installed.
        StorageError: an agent runs, or the old key does not fit.
    """
    new = database_key(settings.storage)
    gallery = settings.state_dir / GALLERY_FILE
    lock = owner_lock(gallery)
    if gallery.exists() and not lock.acquire():
        raise StorageError(f"{gallery} is in use by a running agent (process {lock.holder()}); stop it first")
    try:
        return {
            str(path): rewrite_file(path, old, new)
            for path, rewrite_file in (
                (gallery, rewrite),
                *((path, rewrite) for path in recordings(settings.state_dir / FOLDER)),
                *((settings.state_dir / name, storage.rekey) for name in OUTBOXES),
            )
            if path.exists()
        }
    finally:
        lock.release()
