"""People on the page, in a real browser and with a real agent."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.page.conftest import Client, Site, wait_until
from tests.page.test_page_browser import expect

pytestmark = pytest.mark.slow
Open = Callable[..., Any]
HALL = "spool-hall"


THRESHOLD = 0.93
"""Of `colour-stripes`: one person reaches .99 again, others .85. The rules may find 1, if all are alike."""


@pytest.fixture
def operator(site: Site) -> Client:
    client = site.operator()
    assert client.send("POST", "/api/thresholds", {"threshold": THRESHOLD})[1]["rule"] == "operator"
    return client


def decided(operator: Client, before: set[str]) -> list[dict[str, Any]]:
    """Return the decisions at the crop folder that are newer than those of `before`, oldest first."""
    found = operator.send("GET", f"/api/events?camera={HALL}&kind=identity")[1]["events"]
    return [
        one
        for one in reversed(found)
        if one["id"] not in before and one["data"]["kind"] in ("matched", "enrolled")
    ]


def walk(site: Site, operator: Client, *people: int) -> list[dict[str, Any]]:
    """Let people walk past; return their decisions, in the order of the people."""
    before = {one["id"] for one in decided(operator, set())}
    site.walk_past(*people)
    wait_until("decisions", lambda: len(decided(operator, before)) >= len(people))
    return sorted(decided(operator, before), key=lambda one: one["data"]["track_id"])


def fresh(site: Site, operator: Client, person: int) -> dict[str, Any]:
    """Return the decision on a person who is new: whoever looked so before is forgotten."""
    for _ in range(5):
        decision = walk(site, operator, person)[0]
        if decision["data"]["kind"] == "enrolled":
            return decision
        status, found, _ = operator.send("POST", f"/api/people/{decision['data']['identity_id']}/forget", {})
        assert status == 200, found
    raise AssertionError(f"somebody is always taken for person {person}")


def open_person(open_page: Open, identity: str) -> Any:
    page = open_page(f"#/people/{identity}")
    expect(page.locator(".person .summary h2")).to_be_visible()
    return page


def answer(page: Any, button: str) -> None:
    page.locator("dialog").get_by_role("button", name=button).click()


def test_a_person_named_here_has_the_name_in_the_next_event(
    open_page: Open, site: Site, operator: Client
) -> None:
    first = walk(site, operator, 0)[0]
    name = f"Ada {time.monotonic_ns()}"
    page = open_person(open_page, first["data"]["identity_id"])
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Save the name").click()
    expect(page.locator(".person .summary h2")).to_have_text(name)
    second = walk(site, operator, 0)[0]
    assert (second["data"]["kind"], second["data"]["name"]) == ("matched", name)
    lines = [json.loads(line) for line in (site.state / "audit.jsonl").read_text().splitlines()]
    assert any(line["action"] == "name" and line["by"].startswith("page:") for line in lines)


def test_names_of_an_attacker_are_text(open_page: Open, site: Site, operator: Client) -> None:
    first = walk(site, operator, 1)[0]
    name = "<img src=x onerror=alert(1)>'\"&"
    path = f"/api/people/{first['data']['identity_id']}/name"
    status, found, _ = operator.send("POST", path, {"name": name})
    assert status == 200, found
    page = open_page("#/people")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.get_by_label("Search for a name or number").fill("onerror")
    expect(page.locator("ul.people .name")).to_have_text([name])
    page.locator("ul.people a").click()
    expect(page.locator(".person .summary h2")).to_have_text(name)
    assert page.locator("img[src='x']").count() == 0
    operator.send("POST", path, {"name": None})


def test_two_people_become_one(open_page: Open, site: Site, operator: Client) -> None:
    keep, absorb = (fresh(site, operator, one)["data"] for one in (2, 4))
    name = f"Bea {time.monotonic_ns()}"
    status, found, _ = operator.send("POST", f"/api/people/{keep['identity_id']}/name", {"name": name})
    assert status == 200, found
    page = open_person(open_page, absorb["identity_id"])
    page.get_by_label("Search for a name or number").fill(name)
    page.get_by_role("button", name=name).click()
    expect(page.locator("dialog .pair img.crop").first).to_be_visible()
    expect(page.locator("dialog .likeness")).to_contain_text(re.compile(r"Likeness -?\d\.\d\d"))
    answer(page, "Same person, merge")
    expect(page.locator(".person .summary h2")).to_have_text(name)
    for person in (2, 4):  # one after the other: who is seen together is two people
        assert walk(site, operator, person)[0]["data"]["identity_id"] == keep["identity_id"]
    operator.send("POST", f"/api/people/{keep['identity_id']}/forget", {})


def test_a_track_of_somebody_else_is_taken_out(open_page: Open, site: Site, operator: Client) -> None:
    one, other = (fresh(site, operator, each)["data"] for each in (2, 4))
    merged = {"absorbed_id": other["identity_id"]}
    assert operator.send("POST", f"/api/people/{one['identity_id']}/merge", merged)[0] == 200
    page = open_person(open_page, one["identity_id"])
    expect(page.locator("ul.contributions li")).to_have_count(2)
    track = page.locator(f"li[data-origin$=':{other['track_id']}']")
    track.get_by_role("button", name="Somebody else").click()
    answer(page, "Somebody else, take out")
    expect(page.locator("ul.contributions li")).to_have_count(1)
    expect(page.get_by_text("Certainly other people")).to_be_visible()
    again = walk(site, operator, 4)[0]["data"]
    assert again["identity_id"] not in (one["identity_id"], None)


def test_an_event_shows_why(open_page: Open, site: Site, operator: Client) -> None:
    walk(site, operator, 0)
    latest = walk(site, operator, 0)[0]
    page = open_page(f"#/events/{latest['id']}")
    event = page.locator(f"li[data-event='{latest['id']}']")
    expect(event.locator(".why")).to_contain_text("Recognised as")
    expect(event.locator(".why")).to_contain_text("is needed")
    columns = event.locator(".evidence .columns > div")
    expect(columns).to_have_count(2)
    for column in columns.all():
        crop = column.locator("img.crop").first
        expect(crop).to_be_visible()
        expect(crop).to_have_js_property("complete", True)
        expect(crop).not_to_have_js_property("naturalWidth", 0)


def test_forget_asks_first_and_leaves_nothing(open_page: Open, site: Site, operator: Client) -> None:
    gone = fresh(site, operator, 3)["data"]["identity_id"]
    page = open_person(open_page, gone)
    page.get_by_role("button", name="Forget this person").click()
    answer(page, "Cancel")
    assert operator.send("GET", f"/api/people/{gone}")[0] == 200
    page.get_by_role("button", name="Forget this person").click()
    answer(page, "Forget for ever")
    expect(page.get_by_text("was forgotten")).to_be_visible()
    expect(page.locator("ul.people")).to_be_visible()
    status, found, _ = operator.send("GET", f"/api/people/{gone}")
    assert (status, "no identity" in found["error"]["text"]) == (400, True)
    events = operator.send("GET", f"/api/events?person={gone}")[1]["events"]
    assert [one["data"]["kind"] for one in events if one["type"].endswith("identity")] == []


def test_keep_for_ever_and_as_others(open_page: Open, site: Site, operator: Client) -> None:
    identity = walk(site, operator, 0)[0]["data"]["identity_id"]
    page = open_person(open_page, identity)

    def ttl() -> object:
        return operator.send("GET", f"/api/people/{identity}")[1]["person"]["ttl_s"]

    for choice, seconds in (("forever", 0), ("hours:24", 86400), ("as-others", None)):
        page.get_by_label("Keep for").select_option(choice)
        wait_until(choice, lambda seconds=seconds: ttl() == seconds)  # type: ignore[misc]
        expect(page.get_by_label("Keep for")).to_have_value(choice)


def test_enrol_from_a_picture(open_page: Open, site: Site, operator: Client) -> None:
    name = f"Cem {time.monotonic_ns()}"
    page = open_page("#/enrol")
    picture = {"name": "cem.png", "mimeType": "image/png", "buffer": site.pictures[1][0]}
    page.get_by_label("Picture", exact=True).set_input_files(picture)
    card = page.locator("section.card", has_text="From a picture")
    expect(card.get_by_alt_text("The chosen picture")).to_be_visible()
    card.get_by_label("Name (may stay empty)").fill(name)
    card.get_by_role("button", name="Enrol").click()
    card.get_by_role("link", name=name).click()
    expect(page.locator(".person .summary h2")).to_have_text(name)
    expect(page.locator(".person .strip img.crop").first).to_be_visible()


def test_enrol_from_a_person_in_view(open_page: Open, site: Site, operator: Client) -> None:
    name = f"Dan {time.monotonic_ns()}"
    page = open_page("#/enrol/cam-a")
    card = page.locator("section.card", has_text="From a person in view")
    card.get_by_label("Name (may stay empty)").fill(name)
    for _ in range(20):  # people of a video leave; a refusal says so
        card.locator(".chips button").first.click(timeout=30_000)
        card.get_by_role("button", name="Enrol").click()
        page.wait_for_timeout(500)
        if card.get_by_role("link", name=name).count():
            break
    expect(card.get_by_role("link", name=name)).to_be_visible()
    found = operator.send("GET", f"/api/people?text={name.replace(' ', '%20')}")[1]
    assert [(one["name"], one["kind"]) for one in found["people"]] == [(name, "enrolled")]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"no picture", "picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "crop"),
        (b"", "picture"),
    ],
)
def test_uploads_that_are_no_picture(operator: Client, body: bytes, text: str) -> None:
    before = operator.send("GET", "/api/people")[1]["count"]
    status, found, _ = operator.send("POST", "/api/enrol?name=x", body)
    assert status == 400
    assert text in found["error"]["text"]
    assert operator.send("GET", "/api/people")[1]["count"] == before


def test_a_large_upload(operator: Client) -> None:
    try:
        status = operator.send("POST", "/api/enrol", bytes((8 << 20) + 1))[0]
    except OSError:  # the page closes the connection while the client still sends
        return
    assert status == 413


def test_suggested_pairs_are_accepted_or_rejected(open_page: Open, site: Site, operator: Client) -> None:
    """The two halves of one person, entered as two, are suggested; the answer is remembered."""
    operator.send("POST", "/api/thresholds", {"threshold": 0.8})  # pairs from .1 below it on are suggested
    ids = []
    for place in (0, 1):
        status, found, _ = operator.send("POST", "/api/enrol", site.pictures[4][place])
        assert status == 200, found
        ids.append(found["identity_id"])
    pairs = operator.send("GET", "/api/suggestions")[1]["pairs"]
    wanted = [one for one in pairs if {one["one"]["id"], one["other"]["id"]} == set(ids)]
    assert len(wanted) == 1, operator.send("GET", f"/api/people/{ids[0]}/pair/{ids[1]}")
    page = open_page("#/people")
    item = page.locator(f"li[data-pair='{wanted[0]['one']['id']}|{wanted[0]['other']['id']}']")
    item.get_by_role("button", name="Two people").click()
    expect(item).to_have_count(0)
    pairs = operator.send("GET", "/api/suggestions")[1]["pairs"]
    assert not [one for one in pairs if {one["one"]["id"], one["other"]["id"]} == set(ids)]
    for identity in ids:
        operator.send("POST", f"/api/people/{identity}/forget", {})


def test_a_viewer_looks_and_changes_nothing(open_page: Open, site: Site, operator: Client) -> None:
    identity = walk(site, operator, 0)[0]["data"]["identity_id"]
    page = open_page(f"#/people/{identity}", role="viewer")
    expect(page.locator(".person .summary h2")).to_be_visible()
    assert page.locator("main button").count() == 0
    assert page.locator("nav a", has_text="Enrol").count() == 0
    viewer = site.viewer()
    for verb in ("name", "merge", "split", "reject", "keep", "forget"):
        assert viewer.send("POST", f"/api/people/{identity}/{verb}", {})[0] == 403


@pytest.mark.parametrize("path", ["/api/crops/0", "/api/crops/x", "/api/crops/-1", "/api/crops/" + "9" * 30])
def test_pictures_that_do_not_exist(operator: Client, path: str) -> None:
    status, found, _ = operator.send("GET", path)
    assert status in (400, 404)
    assert "error" in found


def test_the_slider_shows_what_changes_before_it_is_applied(
    open_page: Open, site: Site, operator: Client
) -> None:
    walk(site, operator, 0)
    walk(site, operator, 0)
    page = open_page("#/thresholds")
    slider = page.get_by_label("Threshold", exact=True)
    expect(slider).to_have_value(str(THRESHOLD))
    expect(page.locator("svg.histogram rect").first).to_be_attached()
    slider.fill("1")
    expect(page.get_by_text("recognised instead of")).to_be_visible(timeout=30_000)
    expect(page.locator("table", has_text="would be a new person")).to_be_visible()
    assert operator.send("GET", "/api/thresholds")[1]["in_force"]["value"] == pytest.approx(THRESHOLD)
    slider.fill("0.91")
    page.get_by_role("button", name="Apply").click()
    answer(page, "Apply")
    expect(page.get_by_text("The threshold was changed.")).to_be_visible()
    assert operator.send("GET", "/api/thresholds")[1]["in_force"]["value"] == pytest.approx(0.91)
    page.get_by_role("button", name="Back to the rules").click()
    answer(page, "Back to the rules")
    wait_until(
        "the rules", lambda: operator.send("GET", "/api/thresholds")[1]["in_force"]["rule"] != "operator"
    )


@pytest.mark.parametrize("value", ["", "x", "nan", "2", "-1.5", "1e400"])
def test_thresholds_that_are_none(operator: Client, value: str) -> None:
    assert operator.send("GET", f"/api/thresholds/preview?threshold={value}")[0] == 400


@pytest.mark.parametrize("value", [2, "high", True, [0.5]])
def test_thresholds_that_are_not_applied(operator: Client, value: object) -> None:
    assert operator.send("POST", "/api/thresholds", {"threshold": value})[0] == 400
    assert operator.send("GET", "/api/thresholds")[1]["in_force"]["value"] == pytest.approx(THRESHOLD)


@pytest.mark.parametrize("view", ["people", "enrol", "thresholds"])
def test_a_phone_shows_people_without_scrolling_sideways(open_page: Open, view: str) -> None:
    page = open_page(f"#/{view}", viewport={"width": 360, "height": 740}, has_touch=True)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
