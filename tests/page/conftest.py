"""A running agent, its page, and a real browser.

A test with a browser is slow. It uses `open_page`, which logs in and returns a page of playwright; a script
that fails also fails the test:

    @pytest.mark.slow
    def test_something(open_page, site):
        page = open_page("#/live")
        expect(page.locator("section.camera")).to_have_count(2)

`site` is the agent with its page; `site.walk_past` makes people appear, on demand. One agent serves all tests
of a run, so a test makes the people that it changes, with names of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.conftest import find_free_port, started

OPERATOR, VIEWER = ("olga", "correct horse battery"), ("vera", "staple only looking")
CHROMIUM = Path("/usr/bin/chromium")
START_S = 60.0
LOOPS = 45
"""Times that the rendered street is repeated: 15 minutes, so that no camera ends before the last test."""


def edge_agent(*arguments: object, given: str = "") -> str:
    """Run a command; return its output."""
    words = [sys.executable, "-m", "edge_agent", *map(str, arguments)]
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Client:
    """A client that sends what a browser or an attacker sends, one connection for each request."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    csrf: str = ""

    def send(
        self, method: str, path: str, body: object = None, **headers: str | None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Return status, body (parsed where it is JSON) and headers; `x_csrf` becomes `x-csrf`."""
        given: dict[str, str | None] = {"x-csrf": self.csrf, **self.headers}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given["content-type"] = "application/json"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            sent = {name: value for name, value in given.items() if value}
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text, answer.headers
        finally:
            connection.close()

    def log_in(self, user: str, password: str) -> Client:
        """Return a client with a session."""
        status, found, headers = self.send("POST", "/api/login", {"user": user, "password": password})
        assert status == 200, found
        cookie = headers["set-cookie"].partition(";")[0]
        return Client(self.port, {"cookie": cookie}, found["csrf"])


@dataclass
class Site:
    """An agent, or none, and the page of its state folder."""

    folder: Path
    port: int
    page: subprocess.Popen[bytes] | None = None
    agent: subprocess.Popen[bytes] | None = None
    pictures: dict[int, list[bytes]] = field(default_factory=dict)
    _walks: int = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def client(self) -> Client:
        return Client(self.port)

    def operator(self) -> Client:
        return self.client.log_in(*OPERATOR)

    def viewer(self) -> Client:
        return self.client.log_in(*VIEWER)

    def link(self, role: str = "operator") -> str:
        """Return the token of a link."""
        text = edge_agent("page", "link", "--role", role, "--config", self.config)
        return text.strip().partition("#link=")[2]

    def walk_past(self, *people: int) -> None:
        """Let rendered people 0, 1, ... walk past the camera `spool` together; decided within a second."""
        from tests.agent.test_agent import put

        self._walks += 1
        tracks = {100 * self._walks + person: person for person in people}
        put(self.folder / "crops", self.pictures, 1000.0 * self._walks, tracks)


def wait_until(what: str, condition: Callable[[], object], seconds: float = START_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def answers(port: int) -> bool:
    try:
        return Client(port).send("GET", "/api/start")[0] == 200
    except OSError:
        return False


def make_site(folder: Path, stack: ExitStack, *sources: str) -> Site:
    """Return a page with two users, and an agent with these sources; none without one."""
    site = Site(folder, find_free_port())
    lines = [f'state_dir = "{site.state}"', *sources, "[page]", f"port = {site.port}"]
    lines += ["[engine]", 'model = "colour-stripes"', "threads = 1", "[telemetry]", "interval_s = 1.0"]
    lines += ["[gallery]", "keep_crops = 4", "[record]", "enabled = true"]
    site.config.write_text("\n".join(lines) + "\n")
    for (name, password), role in ((OPERATOR, "operator"), (VIEWER, "viewer")):
        edge_agent("page", "password", name, "--role", role, "--config", site.config, given=f"{password}\n")
    command = [sys.executable, "-m", "edge_agent"]
    if sources:
        words = [*command, "run", "--config", site.config]
        site.agent = stack.enter_context(started(words, log=folder / "agent.log"))
    words = [*command, "page", "--config", site.config]
    site.page = stack.enter_context(started(words, log=folder / "page.log"))
    wait_until("the page", lambda: answers(site.port))
    return site


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page without an agent."""
    with ExitStack() as stack:
        yield make_site(tmp_path_factory.mktemp("page"), stack)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, pictures: dict[int, list[bytes]]) -> Iterator[Site]:
    """An agent with two cameras of a rendered street and a crop folder, and its page."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "crops").mkdir()
    sources = [
        f'[[sources]]\nid = "{video.stem}"\nurl = "{video}"\nrealtime = true\nfps = 3'
        for video in street_videos(folder)
    ]
    spool = f'[[sources]]\nid = "spool"\nurl = "crops:{folder / "crops"}"'
    sources.append(f"{spool}\npoll_seconds = 0.1\nsettle_seconds = 0.0")
    with ExitStack() as stack:
        made = make_site(folder, stack, *sources)
        made.pictures = pictures
        operator = made.operator()
        wait_until("the agent", lambda: operator.send("GET", "/api/session")[1]["online"])
        yield made


@pytest.fixture(scope="session")
def pictures() -> dict[int, list[bytes]]:
    """Crops of rendered people, as PNG."""
    from tests.agent.test_agent import pictures

    return pictures.__wrapped__()


def street_videos(folder: Path) -> list[Path]:
    """Return videos of a rendered street, repeated, so that they last as long as the tests."""
    from edge_agent.offline.synthetic.street import Street, write_videos

    videos = []
    for one in write_videos(Street(4, people=3, seconds=20.0, fps=5.0, visits=3), folder):
        read = cv2.VideoCapture(str(one.video))
        frames = []
        while (found := read.read())[0]:
            frames.append(found[1])
        path = folder / f"{one.camera}.mp4"
        size = (frames[0].shape[1], frames[0].shape[0])
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, size)
        for frame in frames * LOOPS:
            writer.write(frame)
        writer.release()
        videos.append(path)
    return videos


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium; playwright downloads none.

    While it is open, nothing else in this process can run an event loop, so it closes with the module.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(
            executable_path=str(CHROMIUM),
            headless=True,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any, site: Site) -> Iterator[Callable[..., Any]]:
    """`open_page(HASH, role=..., **options)`: a logged-in page; an error of a script fails the test."""
    problems: list[str] = []
    contexts = []

    def note(message: Any) -> None:
        if message.type == "error":
            problems.append(message.text)

    def open_(address: str = "", *, role: str | None = "operator", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", note)
        if role is not None:
            page.goto(f"{site.url}#link={site.link(role)}", wait_until="domcontentloaded")
            page.wait_for_selector("nav a")
        page.goto(f"{site.url}{address}", wait_until="domcontentloaded")
        return page

    yield open_
    for context in contexts:
        context.close()
    # Chromium logs a refused request itself.
    assert [one for one in problems if "Failed to load resource" not in one] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, from npm; it is used here only."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-agent-tests" / "axe"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core is not installed, and there is no npm")
        folder.mkdir(parents=True, exist_ok=True)
        words = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "axe-core@4"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0 or not script.exists():
            pytest.skip(f"axe-core cannot be fetched by npm: {done.stderr.strip()[-200:]}")
    return script.read_text()
