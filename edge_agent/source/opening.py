"""Sources from the settings."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.core.errors import ConfigError, SourceError
from edge_agent.source.address import device_number, local_path, source_id, source_kind
from edge_agent.source.options import options_of

if TYPE_CHECKING:
    from edge_agent.core.config import SourceSettings
    from edge_agent.source.base import Source

__all__ = ["open_source", "open_sources"]


def open_sources(settings: Sequence[SourceSettings], state: Path) -> list[Source]:
    """Return the enabled sources, in their order; none is opened before it is read.

    All recorded files start at the same time, so that their frames can be put in order.

    Args:
        settings: of all sources.
        state: folder in which crop folders store which crops were read.

    Raises:
        SourceError: an address is not understood, or an option is not for its kind.
        ConfigError: every source is disabled.
    """
    begin = time.time()
    # Explicit ids come first, so that a generated one cannot take them.
    given = {one.id for one in settings if one.id is not None}
    sources: list[Source] = []
    for one in settings:
        if one.enabled:
            taken = {source.id for source in sources} | (given - {one.id})
            sources.append(open_source(one, taken=taken, state=state, file_start=begin))
    if not sources:
        raise ConfigError("every source is disabled; set enabled = true for one of [[sources]]")
    return sources


def open_source(
    settings: SourceSettings,
    *,
    taken: Collection[str] = (),
    state: Path | None = None,
    file_start: float | None = None,
) -> Source:
    """Return one source; it is not opened before it is read.

    Args:
        settings: of the source.
        taken: ids of other sources.
        state: folder in which a crop folder stores which crops were read.
        file_start: Unix time of the first frame of a file whose settings have none.

    Raises:
        SourceError: unknown kind, an id that is taken, or an option that this kind does not have.
    """
    url = settings.url
    kind = source_kind(url)
    name = source_id(url, taken=taken) if settings.id is None else settings.id
    if name in taken:
        raise SourceError(f"two sources have the id {name!r}")
    if kind == "file" and settings.start_time is None:
        settings = settings.model_copy(update={"start_time": file_start})
    options = options_of(kind, name, settings)
    if kind == "crops":
        from edge_agent.source.crops import CropFolderSource

        if state is None:
            raise SourceError(f"source {name}: a folder of crops needs a state folder (--state)")
        return CropFolderSource(name, local_path(url), state / f"crops-{name}.sqlite", options)
    if kind == "stream":
        from edge_agent.source.stream import StreamSource

        return StreamSource(name, url, options)
    if kind == "usb":
        from edge_agent.source.usb import UsbSource

        device = f"/dev/video{device_number(url)}" if url.startswith("usb:") else url
        return UsbSource(name, device, options)
    if kind == "csi":
        from edge_agent.source.csi import CsiSource

        return CsiSource(name, device_number(url), options)
    from edge_agent.source.file import FileSource

    return FileSource(name, local_path(url), options)
