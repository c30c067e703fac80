"""Networks of `core.published` on this machine: where they are, fetched or copied, and which are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import MAX_MODEL_BYTES, open_regular, sha256_file, shown
from edge_agent.core.installed import detector_of, model_folders
from edge_agent.core.manifest import atomic_file
from edge_agent.core.published import PUBLISHED, Published
from edge_agent.core.text import visible
from edge_agent.offline.download import checked_digest, download

_Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 20


def published(name: str) -> Published:
    """Return a network by name; InputError where none has it."""
    if name not in PUBLISHED:
        raise InputError(f"no network is called {visible(name, 60)!r}; there are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def wanted_digest(network: Published, given: str | None) -> str:
    """Return the digest that the file must have: the given one, else the known one.

    InputError: neither is there, or the given one is none.
    """
    if given is not None:
        return checked_digest(given)
    if network.sha256 is None:
        raise InputError(
            f"{network.name}: its publisher states no checksum, and none is known here, so a download cannot "
            "be verified. Download the file yourself, compare its digest with a source that you trust, then: "
            f"edge-agent model fetch {network.name} --from FILE --sha256 DIGEST"
        )
    return network.sha256


def obtain(
    network: Published,
    target: Path,
    digest: str,
    *,
    source: Path | None = None,
    url: str | None = None,
    progress: _Progress | None = None,
) -> bool:
    """Make `target` the file with this digest: copy it from `source`, or fetch it; False: it was there.

    Raises:
        InputError: `source` cannot be read, or has another digest.
        DownloadError, StorageError: as in `download`.
    """
    if target.is_file() and sha256_file(target, MAX_MODEL_BYTES) == digest:
        return False
    if source is not None:
        _copy(source, target, digest)
        return True
    size = network.bytes if digest == network.sha256 else None
    download(url or network.url, target, sha256=digest, size=size, progress=progress)
    return True


def _copy(source: Path, target: Path, digest: str) -> None:
    """Copy a file with this digest; `target` stays as it is where it has another one."""
    found = hashlib.sha256()
    with open_regular(source) as file, atomic_file(target) as copy:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
            copy.write(chunk)
        if found.hexdigest() != digest:
            raise InputError(
                f"{shown(source)} has sha256 {found.hexdigest()} instead of {digest}: it is not the "
                f"published file. If you trust it, repeat with --sha256 {found.hexdigest()}"
            )


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of `edge-agent model list`.

    Attributes:
        name, role, licence, bytes, url: of `Published`; the name of another file is its own.
        file: where it is installed; None where it is not.
        default: whether it is the detector that is used by default.
        problem: why an installed detector cannot be used.
    """

    name: str
    role: str
    licence: str
    bytes: int | None
    url: str
    file: Path | None
    default: bool = False
    problem: str | None = None


def listed(state: Path) -> list[Listed]:
    """Return the published networks, and other networks in the folders of installed ones."""
    folders = model_folders(state)
    named: dict[Path, str] = {}
    problems: dict[Path, str] = {}
    default: Path | None = None
    for folder in folders:
        try:
            detector = detector_of(folder)
        except ConfigError as problem:
            problems[folder] = str(problem)
            continue
        if detector is not None:
            named[detector.file] = detector.name
            if default is None and not problems:
                default = detector.file
    rows = []
    seen: set[Path] = set()
    for one in PUBLISHED.values():
        file = next((folder / one.file for folder in folders if _is(folder / one.file, one, named)), None)
        rows.append(
            Listed(one.name, one.role, one.licence, one.bytes, one.url, file, file == default is not None)
        )
        seen.update({file} if file is not None else ())
    for folder in folders:
        rows += [
            Listed(
                file.name,
                "detector" if file in named else "",
                "",
                file.stat().st_size,
                "",
                file,
                file == default,
            )
            for file in sorted(folder.glob("*.onnx"))
            if file not in seen
        ]
        if folder in problems:
            rows.append(Listed(str(folder), "detector", "", None, "", None, problem=problems[folder]))
    return rows


def _is(file: Path, network: Published, named: dict[Path, str]) -> bool:
    """Whether a file is this network: by its digest, or as the user installed it under its name."""
    if not file.is_file():
        return False
    return named.get(file) == network.name or sha256_file(file, MAX_MODEL_BYTES) == network.sha256
