"""The documents match the code: links resolve, commands and options exist, the example event is valid."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from edge_agent.cli import app
from tests.conftest import REPO

DOCUMENTS = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(REPO)))
def test_links_resolve(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name}: {target} is not there"


def commands_of(document: Path) -> list[list[str]]:
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("edge-agent ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(REPO)))
def test_commands_and_options_exist(document: Path) -> None:
    for words in commands_of(document):
        command = get_command(app)
        rest = words[1:]
        while rest and hasattr(command, "commands") and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known | {"--help"}, f"{document.name}: {' '.join(words)}"


def test_the_readme_opens_with_two_commands() -> None:
    readme = (REPO / "README.md").read_text()
    first = re.search(r"```sh\n(.*?)```", readme, re.DOTALL)
    assert first is not None
    assert [line.split()[:2] for line in first[1].strip().splitlines()] == [
        ["./install.sh", "--demo"],
        ["./install.sh", "--test"],
    ]


def test_the_event_of_the_readme_has_real_fields() -> None:
    from edge_agent.core.codec import data_schema, envelope_schema

    readme = (REPO / "README.md").read_text()
    event = json.loads(re.search(r"```json\n(.*?)```", readme, re.DOTALL)[1])
    assert set(event) <= set(envelope_schema("identity")["properties"])
    assert set(event["data"]) <= set(data_schema("identity")["properties"])


def test_the_readme_lists_every_document() -> None:
    readme = (REPO / "README.md").read_text()
    pages = {str(path.relative_to(REPO)) for path in (REPO / "docs").glob("*.*")}
    assert {page for page in pages if f"({page})" not in readme} == set()


def test_the_source_map_names_existing_files_and_every_folder() -> None:
    text = (REPO / "docs" / "source-map.md").read_text()
    named = set(re.findall(r"`([\w./-]+(?:\.\w+|/))`", text))
    bases = (REPO, REPO / "edge_agent", REPO / "tests")
    assert {name for name in named if not any((base / name).exists() for base in bases)} == set()
    packages = {
        path.parent.relative_to(REPO / "edge_agent") for path in REPO.glob("edge_agent/*/**/__init__.py")
    }
    assert {str(package) for package in packages if f"`{package}/" not in text} == set()
