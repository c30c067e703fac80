"""The browser's part: the project's own modules, no markup from texts, and every text in one file."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

STATIC = Path(str(resources.files("edge_agent.page") / "static"))
SCRIPTS = sorted(STATIC.rglob("*.js"))
TEXTS = (STATIC / "texts.js").read_text()
KEYS = set(re.findall(r'^  "([\w.-]+)":', TEXTS, re.MULTILINE))
SINKS = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style|srcdoc"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_text_can_become_markup_or_code(script: Path) -> None:
    assert re.findall(SINKS, script.read_text()) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_imports_and_addresses_stay_on_the_device(script: Path) -> None:
    text = script.read_text()
    for target in re.findall(r"""^(?:import|export)\b[^"']*["']([^"']+)["'];$""", text, re.MULTILINE):
        assert target.startswith(("./", "../")), target
        assert (script.parent / target).is_file(), target
    assert "import(" not in text
    assert set(re.findall(r"https?://[^\"'`\s]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_every_text_exists() -> None:
    used = {
        key for script in SCRIPTS for key in re.findall(r"""\bt\(["']([\w.-]+)["']""", script.read_text())
    }
    assert used - KEYS == set()
    assert len(re.findall(r'^  "[\w.-]+":', TEXTS, re.MULTILINE)) == len(KEYS), "a text is there twice"


def test_the_page_of_the_shell_has_no_script_or_style_of_its_own() -> None:
    text = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?! type=\"module\" src=\"/)", text) == []
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_every_file_is_served_and_typed() -> None:
    from edge_agent.page.app import static_routes

    paths = {route.path for route in static_routes()}  # type: ignore[attr-defined]
    expected = {f"/{path.relative_to(STATIC)}" for path in STATIC.rglob("*") if path.is_file()}
    assert paths == (expected - {"/index.html"}) | {"/"}
