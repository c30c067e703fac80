"""The page in a real browser: log in, live pictures, events, health, on a desk and on a phone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.page.conftest import OPERATOR, Site, wait_until

pytestmark = pytest.mark.slow
Open = Callable[..., Any]


def expect(thing: Any) -> Any:
    from playwright.sync_api import expect as found

    return found(thing)


def test_log_in_and_out_by_password(open_page: Open, site: Site) -> None:
    page = open_page(role=None)
    page.get_by_label("Name").fill(OPERATOR[0])
    page.get_by_label("Password").fill("wrong password")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    page.get_by_label("Password").fill(OPERATOR[1])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Live", level=1)).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()


def test_pictures_change_and_boxes_have_people(open_page: Open) -> None:
    page = open_page("#/live")
    card = page.locator("section.camera[data-camera=cam-a]")
    expect(card).to_have_attribute("data-frame", re.compile(r"^\d+$"))
    first = int(card.get_attribute("data-frame"))
    page.wait_for_function(
        "least => Number(document.querySelector('[data-camera=cam-a]').dataset.frame) >= least", arg=first + 5
    )
    drawn = card.locator("canvas").evaluate(
        "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    )
    assert drawn > 50, "the canvas shows no picture"


def test_an_event_appears_within_a_second(open_page: Open, site: Site) -> None:
    page, operator = open_page("#/events"), site.operator()

    def spool() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = operator.send("GET", "/api/events?camera=spool-hall")[1]["events"]
        return found

    expect(page.locator("ol.events li").first).to_be_visible()
    former = {one["id"] for one in spool()}
    site.walk_past(0, 1)
    wait_until("an event", lambda: {one["id"] for one in spool()} - former)
    new = next(one["id"] for one in spool() if one["id"] not in former)
    expect(page.locator(f"li[data-event='{new}']")).to_be_visible(timeout=1000)


def test_filters_and_details(open_page: Open, site: Site) -> None:
    page = open_page("#/events")
    site.walk_past(2)
    expect(page.locator("ol.events .where", has_text="spool-hall").first).to_be_visible(timeout=30_000)
    page.get_by_label("Camera", exact=True).select_option("spool-hall")
    expect(page.locator("ol.events .where").filter(has_not_text="spool-hall")).to_have_count(0)
    expect(page.locator("ol.events li").first).to_be_visible()
    page.locator("ol.events summary").first.click()
    expect(page.locator("ol.events .details dl").first).to_contain_text("Threshold")
    page.get_by_label("Person: name or number").fill("nobody of this name")
    expect(page.get_by_text("No event passes these filters.")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("ol.events li").first).to_be_visible()


def test_health_shows_cameras_and_the_check_up(open_page: Open) -> None:
    page = open_page("#/health")
    expect(page.locator(".tile").first).to_contain_text("working")
    expect(page.locator("table").first).to_contain_text("cam-b")
    page.get_by_role("button", name="Run the check-up").click()
    expect(page.locator("table", has_text="numpy")).to_be_visible(timeout=60_000)


def test_a_viewer_sees_no_buttons_that_change_something(open_page: Open) -> None:
    page = open_page("#/health", role="viewer")
    expect(page.get_by_text("Check-up")).to_be_visible()
    expect(page.get_by_role("button", name="Run the check-up")).to_have_count(0)


@pytest.mark.parametrize("view", ["live", "events", "health"])
def test_a_phone_shows_every_view_without_scrolling_sideways(open_page: Open, view: str) -> None:
    page = open_page(f"#/{view}", viewport={"width": 360, "height": 740}, has_touch=True)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_timeout(800)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for link in page.locator("nav a").all():
        box = link.bounding_box()
        assert box["height"] >= 44, "too small for a finger"


def test_by_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_role("heading", name="Live", level=1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).not_to_have_text("Live")


class Elsewhere(BaseHTTPRequestHandler):
    """Another program's page on this host: for cookies, it is of the same site."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>elsewhere</title>")

    def log_message(self, *_: object) -> None:
        pass


ATTACK = """async url => {
    const options = {credentials: "include", mode: "no-cors", method: "POST", body: "{}"};
    const include = {credentials: "include"};
    const read = await fetch(url + "api/session", include).then(r => r.status, () => "failed");
    const sent = await fetch(url + "api/logout", options).then(r => r.type, () => "failed");
    const socket = await new Promise(done => {
        const one = new WebSocket(url.replace("http", "ws") + "ws");
        one.onopen = () => done("open");
        one.onclose = () => done("closed");
    });
    const frame = document.createElement("iframe");
    frame.src = url;
    document.body.append(frame);
    return [read, sent, socket];
}"""


def test_another_program_on_this_host_can_neither_read_nor_change_nor_connect(
    open_page: Open, site: Site
) -> None:
    page = open_page()
    elsewhere = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    try:
        other = page.context.new_page()
        other.goto(f"http://127.0.0.1:{elsewhere.server_port}/")
        read, _, socket = other.evaluate(ATTACK, site.url)
        assert (read, socket) == ("failed", "closed")
    finally:
        elsewhere.shutdown()
        elsewhere.server_close()
    page.reload()
    expect(page.get_by_role("heading", name="Live", level=1)).to_be_visible()  # the session goes on


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(open_page: Open, axe: str, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    views = [link.get_attribute("href") for link in page.locator("nav a").all()]
    found = []
    for view in views:
        page.goto(page.url.partition("#")[0] + view, wait_until="domcontentloaded")
        page.wait_for_timeout(700)
        page.evaluate(axe)
        for one in page.evaluate("axe.run().then(found => found.violations)"):
            if one["impact"] in ("serious", "critical"):
                found += [f"{view}: {one['id']}: {node['html'][:160]}" for node in one["nodes"][:3]]
    assert found == []


def test_a_malformed_address_shows_the_view(open_page: Open) -> None:
    page = open_page("#/people/%E0%A4%A")
    expect(page.locator(".problem")).to_be_visible()
    page.goto(page.url.partition("#")[0] + "#/events")
    expect(page.get_by_role("heading", name="Events", level=1)).to_be_visible()


def test_a_dialog_does_not_outlive_its_view(open_page: Open) -> None:
    page = open_page("#/thresholds")
    expect(page.get_by_role("button", name="Apply")).to_be_enabled()
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.evaluate("location.hash = '#/live'")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_socket_that_is_refused_asks_for_the_session(browser: Any, site: Site) -> None:
    with browser.new_context() as context:  # of its own: chromium logs the refusal as an error
        page = context.new_page()
        page.goto(site.url)
        page.evaluate(
            "async () => { const { Socket } = await import('/socket.js');"
            " new Socket(() => {}, () => {}, () => (window.refused = true)); }"
        )
        page.wait_for_function("window.refused")


def test_long_names_fit_on_a_phone(open_page: Open, site: Site) -> None:
    operator = site.operator()
    site.walk_past(3)
    wait_until("a person", lambda: operator.send("GET", "/api/people")[1]["people"])
    identity = operator.send("GET", "/api/people")[1]["people"][0]["id"]
    assert operator.send("POST", f"/api/people/{identity}/name", {"name": "W" * 128})[0] == 200
    try:
        page = open_page(viewport={"width": 360, "height": 740})
        for address in ("#/people", f"#/people/{identity}", "#/events", "#/enrol"):
            page.evaluate("address => location.hash = address", address)
            if address.endswith(identity):
                page.get_by_role("button", name="Forget").click()
                dialog = page.get_by_role("dialog")
                expect(dialog).to_be_visible()
                assert dialog.evaluate("one => one.scrollWidth <= one.clientWidth"), (
                    "the dialog is too narrow"
                )
                page.keyboard.press("Escape")
            page.wait_for_timeout(400)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, f"{address} is {wide} wide"
        wide = page.evaluate(
            """() => { document.querySelector(".chips.choose").innerHTML =
            `<li><button class="chip matched">${"W".repeat(128)}</button></li>`;
            return document.documentElement.scrollWidth; }"""
        )
        assert wide <= 360, "a person in view"
    finally:
        operator.send("POST", f"/api/people/{identity}/name", {"name": None})
