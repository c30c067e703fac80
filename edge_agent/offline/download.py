"""Download of a file with a known digest; an interrupted download is continued."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from edge_agent import __version__
from edge_agent.core.errors import DiskFull, DownloadError, DownloadInterrupted, InputError
from edge_agent.core.files import MAX_MODEL_BYTES
from edge_agent.core.manifest import sync_folder, write_error
from edge_agent.core.redaction import parse_address, public_address, redact

TIMEOUT_S = 30.0
"""Longest time without data from the server."""

_Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18
_COMPLETE = 416  # "range not satisfiable": the partial file is complete, or the server takes no ranges
_SCHEMES = frozenset({"http", "https"})


def download(
    url: str, target: Path, *, sha256: str, size: int | None = None, progress: _Progress | None = None
) -> None:
    """Fetch `url` to `target`.

    The bytes go to `.NAME.part` in the same folder, which is kept when the connection is lost, or the process
    ends: the next call requests only the rest. The complete file is moved to `target` if its digest is right.
    Where it is wrong after a continued download, the file is fetched once more from its beginning. `size` in
    bytes, where it is known: a server that has another file is noticed at once. Proxies are taken from the
    environment (`https_proxy`, `no_proxy`). `progress` is called with bytes so far and in all, None where the
    server does not state the size.

    Raises:
        InputError: neither http nor https, or no digest.
        DownloadInterrupted: the connection failed or was lost; received bytes are kept.
        DownloadError: the server refuses, or the file has another size or digest, and is removed; or another
            process fetches it now.
        DiskFull, StorageError: `target` cannot be written; received bytes are kept.
    """
    address = parse_address(url)
    if address is None or address.scheme.lower() not in _SCHEMES:
        raise InputError(f"{public_address(url)}: only http:// and https:// are supported")
    if address.host is None or address.login is not None:
        raise InputError(f"{address}: not an address, or one with a login, which is not supported")
    digest = checked_digest(sha256)
    path = target.with_name(f".{target.name}.part")
    try:
        with _locked(path, target.name) as part:
            _Reception(url, path, part, size, progress).until(digest)
            os.fsync(part.fileno())
            path.replace(target)
        sync_folder(target.parent)
    except OSError as problem:
        raise write_error(target, problem) from problem


def received(target: Path) -> int:
    """Return the bytes of an unfinished download of `target` that are kept."""
    with contextlib.suppress(OSError):
        return target.with_name(f".{target.name}.part").stat().st_size
    return 0


def checked_digest(sha256: str) -> str:
    """Return a SHA-256 digest in lower case; InputError where it is none."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"{sha256!r} is no SHA-256 digest: 64 hexadecimal digits")
    return sha256.lower()


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open the partial file for this process alone; it is removed where it stayed empty."""
    while True:
        part = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "r+b")
        with part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DownloadError(
                    f"{path.parent / name}: another process is fetching it now; wait until it is done"
                ) from None
            if not _is_still(path, part):  # the other process was done between opening and locking
                continue
            try:
                yield part
            finally:
                if os.fstat(part.fileno()).st_size == 0 and _is_still(path, part):
                    path.unlink()
            return


def _is_still(path: Path, part: IO[bytes]) -> bool:
    """Whether the open file has this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(part.fileno()))
    except FileNotFoundError:
        return False


class _Reception:
    """Fills the partial file."""

    def __init__(
        self, url: str, path: Path, part: BinaryIO, size: int | None, progress: _Progress | None
    ) -> None:
        self._url = url
        self._path = path
        self._part = part
        self._size = size
        self._progress = progress

    def until(self, digest: str) -> None:
        """Receive the file with this digest."""
        while True:
            continued = self._have()
            if continued != self._size:
                self._receive(continued)
            self._part.seek(0)
            found = _digest(self._part)
            if found == digest:
                return
            self._part.truncate(0)
            if not continued:
                raise DownloadError(
                    f"{public_address(self._url)}: the file has sha256 {found} instead of {digest}; "
                    "nothing is kept. Try again, or name another file with --url and --sha256"
                )

    def _have(self) -> int:
        return os.fstat(self._part.fileno()).st_size

    def _receive(self, have: int) -> None:
        """Append the missing bytes."""
        try:
            with _response(self._url, have) as response:
                if response is not None:
                    self._store(response, have)
        except (http.client.HTTPException, TimeoutError, ConnectionError) as problem:
            raise self._lost(str(problem) or type(problem).__name__) from problem
        except urllib.error.URLError as problem:
            raise self._lost(str(problem.reason)) from problem

    def _store(self, response: Any, have: int) -> None:  # noqa: ANN401 - urllib's response has no public type
        begin = _first_byte(response, have)
        if begin > have:
            raise DownloadError(f"{public_address(self._url)}: the server sends another part of the file")
        total = begin + response.length if response.length is not None else None
        if total is not None and self._size is not None and total != self._size:
            self._part.truncate(0)
            raise DownloadError(
                f"{public_address(self._url)}: the server has a file of {total:,} bytes instead of "
                f"{self._size:,}, perhaps a page that asks for a login; nothing is kept"
            )
        limit = self._size or total or MAX_MODEL_BYTES
        self._require_space(limit - begin if self._size or total else 0)
        self._part.seek(begin)
        self._part.truncate()
        have = begin
        while chunk := _read(response):
            have += len(chunk)
            if have > limit:
                self._part.truncate(0)
                raise DownloadError(
                    f"{public_address(self._url)}: the server sends over {limit:,} bytes; nothing is kept"
                )
            self._part.write(chunk)
            if self._progress is not None:
                self._progress(have, total or self._size)
        self._part.flush()
        if have < (total or self._size or 0):
            raise self._lost("the server closed the connection")

    def _require_space(self, missing: int) -> None:
        """Refuse before the transfer what cannot be stored."""
        free = shutil.disk_usage(self._path.parent).free
        if free < missing:
            raise DiskFull(
                f"{self._path.parent} has {free:,} bytes free, the download needs {missing:,}; "
                "free some, or choose another folder with --output"
            )

    def _lost(self, why: str) -> DownloadInterrupted:
        with contextlib.suppress(OSError):  # of a full disk: what is stored is kept
            self._part.flush()
        kept = f"{self._have():,} bytes are kept, the same command continues there"
        return DownloadInterrupted(f"{public_address(self._url)}: {_hidden(why, self._url)}; {kept}")


def _read(response: Any) -> bytes:  # noqa: ANN401 - urllib's response has no public type
    """Read some bytes; an error of the connection, of TLS too, as ConnectionError."""
    try:
        return bytes(response.read(_CHUNK))
    except (TimeoutError, ConnectionError):
        raise
    except OSError as problem:
        raise ConnectionError(str(problem)) from problem


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _first_byte(response: Any, asked: int) -> int:  # noqa: ANN401 - urllib's response has no public type
    """Return the place in the file of the first byte that the server sends; 0 for the whole file."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    return asked if found is None else int(found[1])


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to http and https only, and from https to https only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """See `HTTPRedirectHandler.redirect_request`."""
        address = parse_address(newurl)
        scheme = None if address is None else address.scheme.lower()
        if scheme not in _SCHEMES or (req.type == "https" and scheme != "https"):
            reason = f"and redirects to an address of {scheme or 'no'} scheme, which is not followed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _response(url: str, have: int) -> Iterator[Any]:
    """The server's response from byte `have` on; None where nothing is left."""
    headers = {"User-Agent": f"edge-agent/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    try:
        # a new opener: the shared one keeps the proxies of its first use
        response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as refused:
        with refused:
            if refused.code == _COMPLETE and have:
                yield None
                return
        raise DownloadError(
            f"{public_address(url)}: the server responds {refused.code} {_hidden(refused.reason, url)}"
        ) from None
    with response:
        yield response


def _hidden(reason: str, url: str) -> str:
    """Mask what an error repeats of the address, or of a proxy's."""
    addresses = map(parse_address, (url, *urllib.request.getproxies().values()))
    return redact(reason, {secret for one in addresses if one is not None for secret in one.secrets})
