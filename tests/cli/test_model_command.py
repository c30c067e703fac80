"""`edge-agent model`: fetched over a line that breaks, from servers that lie, by a proxy; files added."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.cli.model import NGC_URL
from edge_agent.core.errors import DownloadError, DownloadInterrupted, InputError, Retryable
from edge_agent.core.loading import load
from edge_agent.engine.graph.stripes import write_stripe_model
from edge_agent.engine.profiles import NVIDIA_SHA256
from edge_agent.offline.download import download

BODY = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


@dataclass
class Server:
    """A web server on 127.0.0.1 that records requests, and may break off."""

    body: bytes = BODY
    ranges: bool = True
    break_after: int | None = None
    """Bytes of an answer after which the connection is closed."""
    status: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path (through a proxy: address) and Range."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/models/net.onnx?token=secret"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append((request.path, wanted))
        if self.status is not None:
            request.send_error(self.status)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0  # type: ignore[index]
        if begin >= len(self.body) > 0:
            request.send_error(416)
            return
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(self.body) - begin))
        request.end_headers()
        request.wfile.write(self.body[begin:][: self.break_after])
        request.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    reported = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                reported.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        reported.port = web.server_address[1]
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield reported
        finally:
            web.shutdown()
            thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    reported: list[tuple[int, int | None]] = []
    server.break_after = 700_000
    for kept in (700_000, 1_400_000):
        with pytest.raises(DownloadInterrupted, match=f"{kept:,} bytes are kept") as lost:
            download(server.url, target, sha256=DIGEST)
        assert isinstance(lost.value, Retryable)
        assert "secret" not in str(lost.value)
        assert names(tmp_path) == [".net.onnx.part"]
    server.break_after = None
    download(
        server.url, target, sha256=DIGEST.upper(), progress=lambda have, total: reported.append((have, total))
    )
    assert [wanted for _, wanted in server.asked] == [None, "bytes=700000-", "bytes=1400000-"]
    assert target.read_bytes() == BODY
    assert names(tmp_path) == ["net.onnx"]
    assert reported[-1] == (len(BODY), len(BODY))


def test_a_server_without_ranges_gives_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / ".net.onnx.part").write_bytes(b"other bytes" * 1000)
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert (tmp_path / "net.onnx").read_bytes() == BODY


def test_a_complete_partial_file_is_only_renamed(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the rename: the server has nothing to add."""
    (tmp_path / ".net.onnx.part").write_bytes(BODY)
    download(server.url, tmp_path / "net.onnx", sha256=DIGEST)
    assert names(tmp_path) == ["net.onnx"]


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


def test_refusals_have_a_reason(server: Server, tmp_path: Path, free_port: int) -> None:
    target = tmp_path / "net.onnx"
    server.status = 403
    with pytest.raises(DownloadError, match="the server responds 403"):
        download(server.url, target, sha256=DIGEST)
    with pytest.raises(DownloadInterrupted, match="refused"):
        download(f"http://127.0.0.1:{free_port}/net.onnx", target, sha256=DIGEST)
    with pytest.raises(InputError, match="http"):
        download("file:///etc/passwd", target, sha256=DIGEST)
    with pytest.raises(InputError, match="64 hexadecimal"):
        download(server.url, target, sha256="beef")
    assert names(tmp_path) == []


def test_a_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download("http://models.invalid/net.onnx", tmp_path / "net.onnx", sha256=DIGEST)
    assert server.asked == [("http://models.invalid/net.onnx", None)]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    write_stripe_model(path)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[[sources]]\nurl = "a.avi"  # the gate\n'
        '[engine] # fast\npreprocess = "swin"\nmax_batch = 8\n[mqtt]\nsite = "lab"\n'
    )
    path.chmod(0o640)
    return path


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_fetch_then_use(server: Server, network: Path, settings: Path, tmp_path: Path) -> None:
    server.body = network.read_bytes()
    digest = hashlib.sha256(server.body).hexdigest()
    folder = tmp_path / "models"
    with pytest.raises(InputError, match="needs --sha256"):
        run("model", "fetch", "--url", server.url, "--output", folder)
    assert server.asked == []
    words = ("--url", server.url, "--sha256", digest, "--output", folder, "--preprocess", "imagenet")
    code, output = run("model", "fetch", *words, "--use", settings)
    assert code == 0
    assert digest in output
    manifest = json.loads((folder / "net.json").read_text())
    assert manifest["preprocess"] == "imagenet"
    assert manifest["files"]["net.onnx"]["sha256"] == digest
    assert "secret" not in json.dumps(manifest)
    after = load(settings)
    assert after.engine.model == folder / "net.onnx"
    assert (after.engine.preprocess, after.engine.max_batch, after.mqtt.site) == (None, 8, "lab")
    assert "# the gate" in settings.read_text()
    assert settings.stat().st_mode & 0o777 == 0o640


def test_add_reads_the_profile_from_the_manifest_next_to_the_file(network: Path, tmp_path: Path) -> None:
    network.with_suffix(".json").write_text('{"preprocess": "imagenet"}')
    for _ in range(2):
        code, output = run("model", "add", network, "--output", tmp_path / "models")
        assert code == 0
    assert f'model = "{tmp_path / "models" / "net.onnx"}"' in output
    assert json.loads((tmp_path / "models" / "net.json").read_text())["preprocess"] == "imagenet"


def test_a_file_that_is_no_network_is_refused_and_nothing_changes(tmp_path: Path, settings: Path) -> None:
    from edge_agent.core.errors import ModelError

    (tmp_path / "page.onnx").write_text("<html>")
    before = settings.read_text()
    with pytest.raises(ModelError):
        run("model", "add", tmp_path / "page.onnx", "--output", tmp_path / "models", "--use", settings)
    assert not (tmp_path / "models").exists()
    assert settings.read_text() == before


def test_settings_without_the_section_get_one(network: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("log_level = 'warning'\n")
    run("model", "add", network, "--output", tmp_path / "models", "--use", path)
    assert load(path).engine.model == tmp_path / "models" / "net.onnx"
    assert load(path).log_level == "warning"


def test_the_documented_address_and_digest() -> None:
    """As on the page of the model in NVIDIA's catalogue; the same digest is in docs/training.md."""
    assert "nvidia/team/tao/reidentificationnet/deployable_v1.2" in NGC_URL
    assert re.fullmatch(r"[0-9a-f]{64}", NVIDIA_SHA256)
