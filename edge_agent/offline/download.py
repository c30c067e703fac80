"""Download of a file with a known digest; an interrupted download is continued."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.core.errors import DownloadError, DownloadInterrupted, InputError, StorageError
from edge_agent.core.files import sha256_file
from edge_agent.core.manifest import atomic_file
from edge_agent.core.redaction import parse_address, public_address, redact

TIMEOUT_S = 30.0
"""Longest time without data from the server."""

_Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_COMPLETE = 416  # "range not satisfiable": the partial file is complete


def download(url: str, target: Path, *, sha256: str, progress: _Progress | None = None) -> None:
    """Fetch `url` to `target`.

    The bytes go to `.NAME.part` in the same folder, which is kept when the connection is lost: the next call
    requests only the rest. The complete file is moved to `target` if its digest is right. Proxies are taken
    from the environment (`https_proxy`, `no_proxy`). `progress` is called with bytes so far and in all, None
    where the server does not state the size.

    Raises:
        InputError: neither http nor https, or no digest.
        DownloadInterrupted: the connection failed or was lost; received bytes are kept.
        DownloadError: the server refuses, or the file has another digest; it is removed.
        StorageError: `target` cannot be written.
    """
    address = parse_address(url)
    if address is None or address.scheme.lower() not in {"http", "https"}:
        raise InputError(f"{public_address(url)}: only http:// and https:// are supported")
    if address.host is None or address.login is not None:
        raise InputError(f"{address}: not an address, or one with a login, which is not supported")
    if len(sha256) != hashlib.sha256().digest_size * 2:
        raise InputError(f"{sha256!r} is no SHA-256 digest: 64 hexadecimal digits")
    part = target.with_name(f".{target.name}.part")
    _receive(url, part, progress)
    found = sha256_file(part)
    if found != sha256.lower():
        part.unlink()
        raise DownloadError(
            f"{public_address(url)}: the file has sha256 {found} instead of {sha256.lower()}; "
            "nothing is kept. Try again, or name another file with --url and --sha256"
        )
    with part.open("rb") as source, atomic_file(target) as file:
        shutil.copyfileobj(source, file, _CHUNK)
    part.unlink()


def _receive(url: str, part: Path, progress: _Progress | None) -> None:
    """Append the missing bytes to `part`."""
    have = part.stat().st_size if part.exists() else 0
    try:
        with _response(url, have) as response:
            if response is not None:
                _store(url, response, part, have, progress)
    except (http.client.HTTPException, TimeoutError, ConnectionError) as problem:
        have = part.stat().st_size if part.exists() else 0
        raise DownloadInterrupted(_lost(url, have, str(problem) or type(problem).__name__)) from problem
    except OSError as problem:
        raise StorageError(f"cannot write {part}: {problem.strerror or problem}") from problem


def _store(url: str, response: Any, part: Path, have: int, progress: _Progress | None) -> None:  # noqa: ANN401 - urllib's response has no public type
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        have = 0  # the server sends the whole file
    total = have + response.length if response.length is not None else None
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        file.truncate()
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            if progress is not None:
                progress(have, total)
    if total is not None and have < total:
        raise DownloadInterrupted(_lost(url, have, "the server closed the connection"))


@contextlib.contextmanager
def _response(url: str, have: int) -> Iterator[Any]:
    """The server's response from byte `have` on; None where nothing is left."""
    headers = {"User-Agent": f"edge-agent/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        # a new opener: the shared one keeps the proxies of its first use
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as refused:
        with refused:
            if refused.code == _COMPLETE and have:
                yield None
                return
        raise DownloadError(
            f"{public_address(url)}: the server responds {refused.code} {_hidden(refused.reason, url)}"
        ) from None
    except urllib.error.URLError as problem:
        raise DownloadInterrupted(_lost(url, have, str(problem.reason))) from problem
    with response:
        yield response


def _lost(url: str, have: int, why: str) -> str:
    kept = f"{have:,} bytes are kept, the same command continues there"
    return f"{public_address(url)}: {_hidden(why, url)}; {kept}"


def _hidden(reason: str, url: str) -> str:
    """Mask what an error repeats of the address, or of a proxy's."""
    addresses = map(parse_address, (url, *urllib.request.getproxies().values()))
    return redact(reason, {secret for one in addresses if one is not None for secret in one.secrets})
