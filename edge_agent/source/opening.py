"""Sources from the settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_agent.core.errors import ConfigError, SourceError
from edge_agent.source.address import (
    SourceKind,
    device_number,
    local_path,
    sensor_name,
    source_id,
    source_kind,
)

if TYPE_CHECKING:
    from edge_agent.core.config import Settings, SourceSettings
    from edge_agent.source.base import Source
    from edge_agent.source.messages import MessageReceiver

Options = TypeVar("Options")

_NOT_FOR_MESSAGES = {"detector", "motion"}
"""Common keys that mean nothing for a source without pictures."""
_COMMON = {"id", "url", "enabled", "detector", "motion", "priority"}
"""Keys of `SourceSettings` that are not for the source itself."""


def open_sources(
    chosen: Sequence[SourceSettings],
    state: Path,
    *,
    settings: Settings | None = None,
    now: Callable[[], float] = time.time,
) -> list[Source]:
    """Return the enabled sources, in their order; none is opened before it is read.

    All recorded files start at the same time, so that their frames can be put in order. Crop folders store in
    the folder `state` which crops were read. `settings` are all settings, for sources without pictures. `now`
    gives the time of a frame that arrives, Unix seconds.

    Raises:
        SourceError: an address is not understood, or an option is not for its kind.
        ConfigError: every source is disabled, or a source without pictures lacks a setting.
    """
    begin = now()
    # Explicit ids come first, so that a generated one cannot take them.
    given = {one.id for one in chosen if one.id is not None}
    sources: list[Source] = []
    receiver = _receiver(chosen, settings)
    for one in chosen:
        if one.enabled:
            taken = {source.id for source in sources} | (given - {one.id})
            sources.append(
                open_source(one, taken=taken, state=state, file_start=begin, receiver=receiver, now=now)
            )
    if not sources:
        raise ConfigError("every source is disabled; set enabled = true for one of [[sources]]")
    return sources


def open_source(
    settings: SourceSettings,
    *,
    taken: Collection[str] = (),
    state: Path | None = None,
    file_start: float | None = None,
    receiver: MessageReceiver | None = None,
    now: Callable[[], float] = time.time,
) -> Source:
    """Return one source; it is not opened before it is read.

    Args:
        settings: of the source.
        taken: ids of other sources.
        state: folder in which a crop folder stores which crops were read.
        file_start: Unix time of the first frame of a file whose settings have none.
        receiver: of the messages of sources without pictures.
        now: gives the time of a frame that arrives, Unix seconds.

    Raises:
        SourceError: unknown kind, an id that is taken, or an option that this kind does not have.
        ConfigError: a source without pictures lacks a setting.
    """
    url = settings.url
    kind = source_kind(url)
    name = source_id(url, taken=taken) if settings.id is None else settings.id
    if name in taken:
        raise SourceError(f"two sources have the id {name!r}")

    options = partial(_options, settings, name, kind)
    if kind == "file":
        from edge_agent.source.file import FileOptions, FileSource

        if settings.start_time is None:
            settings = settings.model_copy(update={"start_time": file_start})
        return FileSource(name, local_path(url), options(FileOptions))
    if kind == "crops":
        from edge_agent.source.crops import CropFolderOptions, CropFolderSource

        if state is None:
            raise SourceError(f"source {name}: a folder of crops needs a state folder (--state)")
        return CropFolderSource(
            name, local_path(url), state / f"crops-{name}.sqlite", options(CropFolderOptions), now=now
        )
    if kind == "deepstream":
        from edge_agent.source.messages import MessageOptions, MessageSource

        if receiver is None:
            raise SourceError(f"source {name}: a source without pictures can only be read by the agent")
        size = options(MessageOptions).size or receiver.size
        return MessageSource(name, sensor_name(url), receiver, size, now=now)
    from edge_agent.source import cameras

    if kind == "stream":
        return cameras.StreamSource(name, url, options(cameras.StreamOptions), now=now)
    if kind == "csi":
        return cameras.CsiSource(name, device_number(url), options(cameras.CsiOptions), now=now)
    device = f"/dev/video{device_number(url)}" if url.startswith("usb:") else url
    return cameras.UsbSource(name, device, options(cameras.UsbOptions), now=now)


def _options(settings: SourceSettings, name: str, kind: SourceKind, of_kind: type[Options]) -> Options:
    """Return the options of a source; SourceError for one that its kind does not have."""
    common = _COMMON - _NOT_FOR_MESSAGES if kind == "deepstream" else _COMMON
    chosen = settings.model_dump(exclude=common, exclude_none=True)
    valid = {field.name for field in fields(of_kind)}  # type: ignore[arg-type] # a dataclass
    for option in (one for one in chosen if one not in valid):
        raise SourceError(
            f"source {name}: option {option!r} is not for this kind of source ({kind}); "
            f"it takes {', '.join(sorted(valid))}"
        )
    return of_kind(**chosen)


def _receiver(chosen: Sequence[SourceSettings], settings: Settings | None) -> MessageReceiver | None:
    """Return what receives the messages of sources without pictures, None where there are none."""
    kinds = [(one, source_kind(one.url)) for one in chosen if one.enabled]
    if settings is None or all(kind != "deepstream" for _, kind in kinds):
        return None
    from edge_agent.source.messages import MessageReceiver

    others = [one.id or source_id(one.url) for one, kind in kinds if kind != "deepstream"]
    return MessageReceiver(settings, others)
