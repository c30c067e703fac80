"""Where pictures come from: cameras, streams, files, crop folders, external boxes.

`open_source` turns what a person types after `--source` into one of them:

====================================  =============================================
what is typed                          what it is
====================================  =============================================
`clip.mp4`, `file:///data/clip.mp4`    `FileSource`
`rtsp://`, `rtsps://`, `http(s)://`    `StreamSource`
`/dev/video0`, `usb:0`                 `UsbSource`
`csi:0`                                `CsiSource`
`crops:FOLDER`                         `CropFolderSource`
====================================  =============================================
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from edge_agent.core.errors import SourceError
from edge_agent.source.redact import redact_url

if TYPE_CHECKING:
    from edge_agent.source.base import Source

__all__ = ["SourceKind", "open_source", "source_id", "source_kind"]

SourceKind = Literal["file", "stream", "usb", "csi", "crops"]

_ID_LENGTH = 64
_ID = re.compile(rf"[a-z0-9_-]{{1,{_ID_LENGTH}}}")
_STREAM_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https"})
_VALID = "a file, rtsp://, rtsps://, http://, https://, /dev/videoN or usb:N, csi:N, crops:FOLDER"


def source_kind(spec: str) -> SourceKind:
    """What kind of source was typed.

    Raises:
        SourceError: none that is known; names those that are.
    """
    if re.fullmatch(r"usb:\d+|/dev/.+", spec):
        return "usb"
    if re.fullmatch(r"csi(:\d+)?", spec):
        return "csi"
    if spec.startswith("crops:") and len(spec) > len("crops:"):
        return "crops"
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", spec)
    if scheme is None or scheme[1].lower() == "file":
        if not spec:
            raise SourceError(f"an empty source; expected {_VALID}")
        return "file"
    if scheme[1].lower() in _STREAM_SCHEMES and _host(spec):
        return "stream"
    if Path(spec).exists():  # a file may well be called `a:b.mp4`
        return "file"
    raise SourceError(f"cannot tell what source {redact_url(spec)!r} is; expected {_VALID}")


def source_id(spec: str, *, taken: Collection[str] = ()) -> str:
    """An id for a source that was not given one, made of what was typed; never of its credentials.

    Args:
        spec: what was typed.
        taken: ids in use; a number makes the new one differ.

    Raises:
        SourceError: see `source_kind`.
    """
    kind = source_kind(spec)
    # A password with an unquoted slash, as people write them, would otherwise be taken for a path.
    shown = redact_url(spec)
    words = {
        "file": lambda: _local(spec).stem,
        "stream": lambda: f"{_host(shown)}-{urlsplit(shown).path}",
        "usb": lambda: spec.replace("usb:", "usb").removeprefix("/dev/"),
        "csi": lambda: f"csi{_number(spec)}",
        "crops": lambda: _local(spec.removeprefix("crops:")).absolute().name,
    }[kind]()
    plain = re.sub(r"[^a-z0-9_]+", "-", words.lower()).strip("-")[:_ID_LENGTH].strip("-") or kind
    found, count = plain, 1
    while found in taken:
        count += 1
        found = f"{plain[: _ID_LENGTH - len(str(count)) - 1]}-{count}"
    return found


def open_source(
    spec: str,
    *,
    id: str | None = None,  # noqa: A002 - the name that every source has
    taken: Collection[str] = (),
    state_dir: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """The source that was typed; it is not opened before it is read.

    Args:
        spec: see the table of this module.
        id: `[a-z0-9_-]{1,64}`; made from `spec` when None.
        taken: ids of other sources.
        state_dir: folder in which a crop folder remembers what was read.
        options: keyword arguments of the source's class; see `source_kind` for which it will be.

    Raises:
        SourceError: unknown kind, an id that is not valid or taken, or an option that this kind has not.
    """
    kind = source_kind(spec)
    name = source_id(spec, taken=taken) if id is None else id
    if not _ID.fullmatch(name):
        raise SourceError(f"source id {name!r} must be 1 to {_ID_LENGTH} of a-z, 0-9, _ and -")
    if name in taken:
        raise SourceError(f"two sources have the id {name!r}")
    maker, target, fixed = _maker(kind, spec, name, state_dir)
    chosen = dict(options or {})
    valid = set(inspect.signature(maker).parameters) - {"self", "id", *fixed}
    for option in chosen:
        if option not in valid:
            raise SourceError(
                f"source {name}: option {option!r} is not for this kind of source ({kind}); "
                f"it takes {', '.join(sorted(valid))}"
            )
    found: Source = maker(name, target, **fixed, **chosen)
    return found


def _maker(
    kind: SourceKind, spec: str, name: str, state_dir: Path | None
) -> tuple[Callable[..., Source], str | int | Path, dict[str, Any]]:
    """Class of a source, what it reads, and the arguments that only this module knows."""
    if kind == "crops":
        from edge_agent.source.crops import CropFolderSource

        if state_dir is None:
            raise SourceError(f"source {name}: a folder of crops needs a state folder (--state)")
        folder = _local(spec.removeprefix("crops:"))
        return CropFolderSource, folder, {"state_path": state_dir / f"crops-{name}.sqlite"}
    from edge_agent.source.capture import CsiSource, FileSource, StreamSource, UsbSource

    if kind == "stream":
        return StreamSource, spec, {}
    if kind == "usb":
        return UsbSource, _number(spec) if spec.startswith("usb:") else spec, {}
    if kind == "csi":
        return CsiSource, _number(spec), {}
    return FileSource, _local(spec), {}


def _local(spec: str) -> Path:
    """A path, typed as such or as `file://` URL; `~` is the user's home."""
    if spec.lower().startswith("file:"):
        return Path(unquote(urlsplit(spec).path))
    try:
        return Path(spec).expanduser()
    except RuntimeError:  # ~nobody
        return Path(spec)


def _host(spec: str) -> str | None:
    try:
        return urlsplit(spec).hostname
    except ValueError:  # e.g. a broken IPv6 address
        return None


def _number(spec: str) -> int:
    return int(spec.rpartition(":")[2]) if ":" in spec else 0
