"""Builds the search index of a very large gallery in a background thread."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.errors import ConfigError
from edge_agent.gallery.shortlist import LIBRARY, SAMPLE, Codes

if TYPE_CHECKING:
    from edge_agent.core.config import GallerySettings
    from edge_agent.gallery.sync import SyncedFile

__all__ = ["IndexBuilder"]

_log = structlog.get_logger(__name__)

_PAUSE_S = 0.002
"""Between two batches, for threads that wait for the lock."""
_NICE = 10
_SHRUNK = 0.8
"""Share of `exact_up_to` below which a gallery is searched exactly again."""


class IndexBuilder:
    """Gives the index of `file` its shortlist when there are more than `exact_up_to` identities.

    `settings.index`: `faiss` needs the library (else ConfigError); `auto` searches exactly, with a warning,
    where it is missing; `exact` always does.
    """

    def __init__(self, settings: GallerySettings, file: SyncedFile) -> None:
        self._settings = settings
        self._file = file
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._disabled = settings.index == "exact"
        if settings.index == "faiss" and not _installed():
            raise ConfigError(
                "gallery.index = faiss needs the faiss library, which is not installed: "
                "pip install 'edge-agent[index]', or set gallery.index to auto or exact"
            )

    def close(self) -> None:
        """Stop building; takes two seconds at most."""
        self._closing.set()
        self.wait()

    def wait(self) -> None:
        """Wait for the end of the build, if one runs."""
        if self._thread is not None:
            self._thread.join()

    @property
    def exact(self) -> bool:
        """Whether the next search compares with every identity."""
        with self._file.reading():
            return not self._file.index.listed

    def update(self) -> None:
        """Start to build the shortlist of a gallery that grew; drop that of one that shrank."""
        index, limit = self._file.index, self._settings.exact_up_to
        if index.shortlist is not None and len(index) < _SHRUNK * limit:
            index.shortlist = None
        if len(index) <= limit or self._disabled or index.shortlist is not None:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        if not _installed():
            self._disabled = True
            _log.warning(
                "gallery_searched_exactly",
                identities=len(index),
                reason="no faiss: pip install 'edge-agent[index]'",
            )
            return
        self._closing.clear()
        self._thread = threading.Thread(target=self._build, name="gallery-index", daemon=True)
        self._thread.start()

    def _build(self) -> None:
        """Make the codes batch by batch; the lock is free in between."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        began = time.monotonic()
        index, lock = self._file.index, self._file.lock
        try:
            with lock:
                sample = index.sample(SAMPLE)
            codes = Codes(sample)
            del sample
            with lock:
                index.shortlist = codes
            more = True
            while more and not self._closing.wait(_PAUSE_S):
                with lock:
                    more = index.encode()
        except Exception as error:  # noqa: BLE001 - whatever the library raises: search stays exact
            with lock:
                index.shortlist = None
                self._disabled = True
            _log.error("gallery_index_failed", error=str(error), outcome="the gallery is searched exactly")
            return
        _log.info("gallery_index_built", identities=len(index), seconds=time.monotonic() - began)


def _installed() -> bool:
    return importlib.util.find_spec(LIBRARY) is not None
