"""The browser's part: the project's own modules, no markup from texts, and every text in one file."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

STATIC = Path(str(resources.files("edge_agent.page") / "static"))
SCRIPTS = sorted(STATIC.rglob("*.js"))
TEXTS = (STATIC / "texts.js").read_text()
KEYS = re.findall(r'^  "([\w.-]+)":', TEXTS, re.MULTILINE)
SINKS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc")
SINKS += ('setAttribute("style"', "import(")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_text_can_become_markup_or_code(script: Path) -> None:
    assert [sink for sink in SINKS if sink in script.read_text()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_imports_and_addresses_stay_on_the_device(script: Path) -> None:
    text = script.read_text()
    for target in re.findall(r'^import .*"([^"]+)";$', text, re.MULTILINE):
        assert target.startswith(("./", "../")), target
        assert (script.parent / target).is_file(), target
    assert set(re.findall(r"https?://[^\"'`\s]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_every_text_exists() -> None:
    used = {
        key for script in SCRIPTS for key in re.findall(r"""\bt\(["']([\w.-]+)["']""", script.read_text())
    }
    assert used - set(KEYS) == set()
    assert len(KEYS) == len(set(KEYS)), "a text is there twice"


def test_the_shell_has_no_script_or_style_of_its_own() -> None:
    text = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?! type=\"module\" src=\"/)", text) == []
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_every_file_is_served() -> None:
    from edge_agent.page.app import static_routes

    paths = {getattr(route, "path", None) for route in static_routes()}
    expected = {f"/{path.relative_to(STATIC)}" for path in STATIC.rglob("*") if path.is_file()}
    assert paths == (expected - {"/index.html"}) | {"/"}
