"""A real run with logins in every place of an address: no password in any output of the agent."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import find_free_port, started
from tests.deliver.deliver_fixtures import Listener, configured_mosquitto, until

CLOSED = [
    "rtsp://127.0.0.1:{port}/user=admin_password={}_channel=0_stream=0.sdp?real_stream",
    "rtsp://admin:12/{}@127.0.0.1:{port}/s",
    "rtsp://admin:12#{}@127.0.0.1:{port}/s",
    "rtsp://admin:1?{}@127.0.0.1:{port}/s",
    "rtsp://admin:my {}@127.0.0.1:{port}/s",
    "rtsp://admin:pa'{}<\\\">@127.0.0.1:{port}/s",
    "rtsp://user@mail.example:pa/{}@127.0.0.1:{port}/s",
    "rtsp://127.0.0.1:{port}/s?loginuse=admin&loginpas={}",
    "rtsp://127.0.0.1:{port}/admin/{}/ch1",
    "http://127.0.0.1:{port}/cgi?u=admin&p={}",
]
"""Nothing listens on these ports."""
ANSWERED = [
    "http://admin:{}@127.0.0.1:{http}/login.m3u8",
    "http://127.0.0.1:{http}/{}/list.m3u8",
    "http://127.0.0.1:{http}/list.m3u8?token={}",
    "rtsp://admin:{}@127.0.0.1:{http}/s",
]


class Playlists(http.server.BaseHTTPRequestHandler):
    """Playlists of segments that do not exist: FFmpeg reports the addresses that it cannot open."""

    def do_GET(self) -> None:
        if "m3u8" not in self.path:
            self.send_error(403, self.path)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.apple.mpegurl")
        self.end_headers()
        query = self.path.partition("?")[2]
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", f"#EXTINF:2,\nsegment1.ts?{query}"]
        lines += [f'#EXT-X-KEY:METHOD=AES-128,URI="key?{query}"', f"#EXTINF:2,\nsegment2.ts?{query}"]
        self.wfile.write("\n".join(lines).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def playlists() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Playlists) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def command_lines(process: int) -> bytes:
    """Arguments of a process and of all that it started."""
    found = b""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{process}/cmdline").read_bytes()
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            found += b"".join(command_lines(int(child)) for child in children.read_text().split())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forms", "reported"), [(CLOSED, b"failed: Connection refused"), (ANSWERED, b"segment")]
)
def test_a_run_shows_no_password(tmp_path: Path, playlists: int, forms: list[str], reported: bytes) -> None:
    words = [f"Zq{secrets.token_hex(3)}W{number}x" for number in range(len(forms) + 1)]
    broker_word, state = words[-1], tmp_path / "state"
    urls = [
        form.format(word, port=find_free_port(), http=playlists)
        for form, word in zip(forms, words, strict=False)
    ]
    users = tmp_path / "broker" / "users"
    users.parent.mkdir()
    for user, word in (("agent", broker_word), ("tester", "tester")):
        create = [] if users.exists() else ["-c"]
        subprocess.run(
            ["mosquitto_passwd", "-b", *create, users, user, word], check=True, capture_output=True
        )
    lines = "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {folder}/users"
    with (
        configured_mosquitto(users.parent, lines) as broker,
        Listener(broker.port, user=("tester", "tester")) as listener,
    ):
        config = tmp_path / "config.toml"
        tables = "".join(f"[[sources]]\nurl = {json.dumps(url)}\nopen_timeout_ms = 500\n" for url in urls)
        config.write_text(
            f"state_dir = '{state}'\nlog_level = 'debug'\n{tables}"
            f"[mqtt]\nbroker = 'mqtt://agent:{broker_word}@127.0.0.1:{broker.port}'\nhome_assistant = true\n"
            "[telemetry]\ninterval_s = 0.5\n[gallery]\nindex = 'exact'\n"
        )
        shown = [run("config", "show", "--config", config), run("config", "check", "--config", config)]
        output = tmp_path / "output"
        with started([sys.executable, "-m", "edge_agent", "run", "--config", config], log=output) as process:
            until(lambda: len({one.topic for one in listener.heard if "/camera/" in one.topic}) >= len(forms))
            until(lambda: listener.of("/telemetry"))
            until(lambda: reported in output.read_bytes())  # by FFmpeg
            shown += [repr(command_lines(process.pid)), run("status", "--json", "--config", config)]
            process.send_signal(signal.SIGINT)
            process.wait(20)
        shown.append(output.read_text(errors="replace"))
        shown += [repr(listener.heard), *(f"{one!r} {one.read_bytes()!r}" for one in files(state))]
    everything = "\n".join(shown)
    assert '"source_lost"' in everything
    assert [word for word in words if word.lower() in everything.lower()] == []


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "edge_agent", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr
