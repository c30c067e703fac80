"""Downloads from servers that break off, lie, redirect, or never stop, and onto disks that are full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from edge_agent.core.errors import (
    DiskFull,
    DownloadError,
    DownloadInterrupted,
    InputError,
    Retryable,
    StorageError,
)
from edge_agent.offline import download as module
from edge_agent.offline.download import download, received
from tests.web_server import BODY, DIGEST, Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as reported:
        yield reported


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("place", [True, False])
def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, place: bool
) -> None:
    target = tmp_path / "net.onnx"
    reported: list[tuple[int, int | None]] = []
    server.break_after, server.place = 700_000, place
    for kept in (700_000, 1_400_000):
        with pytest.raises(DownloadInterrupted, match=f"{kept:,} bytes are kept") as lost:
            download(server.url, target, sha256=DIGEST)
        assert isinstance(lost.value, Retryable)
        assert "secret" not in str(lost.value)
        assert names(tmp_path) == [".net.onnx.part"]
        assert received(target) == kept
    server.break_after = None
    download(
        server.url, target, sha256=DIGEST.upper(), progress=lambda have, total: reported.append((have, total))
    )
    assert [wanted for _, wanted in server.asked] == [None, "bytes=700000-", "bytes=1400000-"]
    assert target.read_bytes() == BODY
    assert names(tmp_path) == ["net.onnx"]
    assert reported[-1] == (len(BODY), len(BODY))
    assert received(target) == 0


def test_a_server_without_ranges_gives_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / ".net.onnx.part").write_bytes(b"other bytes" * 1000)
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert (tmp_path / "net.onnx").read_bytes() == BODY


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_server_that_refuses_ranges_is_asked_for_all_of_it(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    server.refuse_ranges = 416
    (tmp_path / ".net.onnx.part").write_bytes(BODY[:1000])
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST, size=size)
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-", None]
    assert (tmp_path / "net.onnx").read_bytes() == BODY


def test_a_complete_partial_file_is_only_renamed(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the rename: the server has nothing to add, or is not asked."""
    (tmp_path / ".net.onnx.part").write_bytes(BODY)
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert names(tmp_path) == ["net.onnx"]
    (tmp_path / "net.onnx").rename(tmp_path / ".net.onnx.part")
    asked = len(server.asked)
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST, size=len(BODY))
    assert names(tmp_path) == ["net.onnx"]
    assert len(server.asked) == asked


def test_bytes_of_another_file_are_replaced_in_the_same_call(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".net.onnx.part").write_bytes(b"a page" * 1000)
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert (tmp_path / "net.onnx").read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == ["bytes=6000-", None]


def test_another_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"what was there before")
    server.body = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match=f"has sha256 [0-9a-f]{{64}} instead of {DIGEST}") as wrong:
        download(server.url, target, sha256=DIGEST)
    assert not isinstance(wrong.value, Retryable)
    assert target.read_bytes() == b"what was there before"
    assert names(tmp_path) == ["net.onnx"]
    server.body = BODY
    download(server.url, target, sha256=DIGEST)
    assert target.read_bytes() == BODY


def test_a_file_of_another_size_is_refused_before_it_is_received(server: Server, tmp_path: Path) -> None:
    server.body = BODY + b"more"
    with pytest.raises(
        DownloadError, match=r"a file of 2,097,156 bytes instead of 2,097,152, perhaps a page"
    ):
        download(server.url, tmp_path / "net.onnx", sha256=DIGEST, size=len(BODY))
    assert names(tmp_path) == []


def test_a_server_that_never_stops_is_stopped(server: Server, tmp_path: Path) -> None:
    server.body, server.length = BODY * 4, -1
    with pytest.raises(DownloadError, match="sends over 2,097,152 bytes"):
        download(server.url, tmp_path / "net.onnx", sha256=DIGEST, size=len(BODY))
    assert names(tmp_path) == []


def test_an_answer_without_length_that_is_too_short_is_continued(server: Server, tmp_path: Path) -> None:
    server.length, server.break_after = -1, 500_000
    with pytest.raises(DownloadInterrupted, match="500,000 bytes are kept"):
        download(server.url, tmp_path / "net.onnx", sha256=DIGEST, size=len(BODY))
    server.break_after = None
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST, size=len(BODY))
    assert (tmp_path / "net.onnx").read_bytes() == BODY


def test_redirections_keep_the_place_and_lead_to_web_addresses_only(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    (tmp_path / ".net.onnx.part").write_bytes(BODY[:1000])
    server.redirect = f"http://127.0.0.1:{server.port}/moved/net.onnx?signature=secret"
    download(server.url, target, sha256=DIGEST)
    assert server.asked[-1] == ("/moved/net.onnx?signature=secret", "bytes=1000-")
    for bad in ("file:///etc/passwd", "ftp://127.0.0.1/net.onnx", "//", "gopher://x"):
        server.redirect = bad
        with pytest.raises(DownloadError):
            download(server.url, target, sha256=DIGEST)
    server.redirect = "/models/net.onnx"
    with pytest.raises(DownloadError, match="302"):
        download(server.url, target, sha256=DIGEST)
    assert names(tmp_path) == ["net.onnx"]


def test_refusals_have_a_reason(server: Server, tmp_path: Path, free_port: int) -> None:
    target = tmp_path / "net.onnx"
    for status in (403, 404, 500):
        server.status = status
        with pytest.raises(DownloadError, match=f"the server responds {status}"):
            download(server.url, target, sha256=DIGEST)
    with pytest.raises(DownloadInterrupted, match="refused"):
        download(f"http://127.0.0.1:{free_port}/net.onnx", target, sha256=DIGEST)
    with pytest.raises(DownloadInterrupted, match="0 bytes are kept"):
        download("http://models.invalid/net.onnx", target, sha256=DIGEST)
    with pytest.raises(InputError, match="http"):
        download("file:///etc/passwd", target, sha256=DIGEST)
    for digest in ("beef", "g" * 64, "", DIGEST + "0"):
        with pytest.raises(InputError, match="64 hexadecimal"):
            download(server.url, target, sha256=digest)
    assert names(tmp_path) == []


def test_a_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download("http://models.invalid/net.onnx", tmp_path / "net.onnx", sha256=DIGEST)
    assert server.asked == [("http://models.invalid/net.onnx", None)]


def test_a_disk_without_space_is_named_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DiskFull, match=r"1,000,000 bytes free, the download needs 2,097,152"):
        download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_is_there(server: Server, tmp_path: Path) -> None:
    """With a limit on the size of files, as the disk's end."""
    program = (
        "import resource, sys\n"
        "from edge_agent.core.errors import EdgeAgentError\n"
        "from edge_agent.offline.download import download\n"
        "from pathlib import Path\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
        "try:\n    download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])\n"
        "except EdgeAgentError as problem:\n    print(type(problem).__name__, problem)\n"
    )
    target = tmp_path / "net.onnx"
    words = [sys.executable, "-c", program, server.url, str(target), DIGEST]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"StorageError cannot write {target}: ")
    assert 0 < received(target) <= 1_000_000
    download(server.url, target, sha256=DIGEST)
    assert target.read_bytes() == BODY


def test_folders_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "missing", Path("/proc/self")):
        with pytest.raises(StorageError, match="cannot write"):
            download(server.url, folder / "net.onnx", sha256=DIGEST)
    (tmp_path / ".net.onnx.part").symlink_to("/etc/passwd")
    with pytest.raises(StorageError):
        download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert server.asked == []


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    """The second is refused; the first is not disturbed."""
    target = tmp_path / "net.onnx"
    second: list[str] = []

    def again() -> None:
        server.before = None
        with pytest.raises(DownloadError, match="another process is fetching it now") as refused:
            download(server.url, target, sha256=DIGEST)
        second.append(str(refused.value))

    server.before = again
    download(server.url, target, sha256=DIGEST)
    assert len(second) == 1
    assert target.read_bytes() == BODY
    assert names(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_is_ended_is_continued(server: Server, tmp_path: Path, end: signal.Signals) -> None:
    target = tmp_path / "net.onnx"
    released = threading.Event()
    whole, server.body = server.body, BODY[:900_000]
    server.length = len(BODY)
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edge_agent.offline.download import download\n"
        "from pathlib import Path\n"
        "def show(*_): print('.', flush=True)\n"
        "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], progress=show)\n"
    )
    server_answer = server.answer

    def slow(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BODY)))
        request.end_headers()
        request.wfile.write(BODY[:900_000])
        request.wfile.flush()
        released.wait(20)

    server.answer = slow  # type: ignore[method-assign]
    words = [sys.executable, "-c", program, server.url, str(target), DIGEST]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            for _ in range(3):  # of 262,144 bytes
                process.stdout.readline()
            process.send_signal(end)
            process.wait(20)
        finally:
            process.kill()
            released.set()
    assert received(target) >= 500_000
    server.answer, server.body, server.length = server_answer, whole, None  # type: ignore[method-assign]
    download(server.url, target, sha256=DIGEST)
    assert server.asked[-1][1] is not None
    assert target.read_bytes() == BODY


def test_the_mode_of_the_file_does_not_depend_on_an_earlier_attempt(server: Server, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    finally:
        os.umask(before)
    assert (tmp_path / "net.onnx").stat().st_mode & 0o777 == 0o600
