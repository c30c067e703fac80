"""The documents that subscribers build on: up to date, valid, and never taken back."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from edge_agent.core.codec import data_schema
from edge_agent.core.commands import COMMAND_TYPES
from edge_agent.deliver import commands, contract
from tests.conftest import REPO

DOCS = REPO / "docs"
RELEASED = Path(__file__).parent / "contract" / "v1"
"""The schemas as last released: written again (`python -m edge_agent.deliver.contract`) with each release."""
SPECS = "@asyncapi/specs@6.11.1"


def test_documents_are_up_to_date(tmp_path: Path) -> None:
    for made in contract.write(tmp_path):
        kept = DOCS / made.relative_to(tmp_path)
        assert kept.read_text() == made.read_text(), (
            f"{kept.name} is old: run python -m edge_agent.deliver.contract docs"
        )
    names = {path.name for path in (DOCS / "schemas").iterdir()}
    assert names == set(contract.schemas())


def test_yaml_matches_the_document() -> None:
    assert yaml.safe_load((DOCS / "asyncapi.yaml").read_text()) == contract.asyncapi()


ODD = [{}, [], "", "a: b # c", "yes", "1", None, True, 1.5, {"on": {"x": []}, "é": ["\n", {}]}]


@pytest.mark.parametrize("value", ODD)
def test_yaml_of_odd_values(value: Any) -> None:
    assert yaml.safe_load(contract.to_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize("name", contract.schemas())
def test_schemas_are_valid(name: str) -> None:
    Draft202012Validator.check_schema(contract.schemas()[name])


@pytest.fixture(scope="session")
def asyncapi_schema(pytestconfig: pytest.Config) -> dict[str, Any]:
    """The schema of AsyncAPI documents from npm, kept in pytest's cache."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("asyncapi")
    schema = folder / "node_modules/@asyncapi/specs/schemas/3.0.0.json"
    if not schema.exists():
        words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), SPECS]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch {SPECS}")
    return json.loads(schema.read_text())


def test_asyncapi_document_is_valid(asyncapi_schema: dict[str, Any]) -> None:
    Draft7Validator(asyncapi_schema).validate(contract.asyncapi())


def test_asyncapi_schema_would_find_a_fault(asyncapi_schema: dict[str, Any]) -> None:
    document = contract.asyncapi()
    document["operations"]["send-identity"]["bindings"]["mqtt"]["qos"] = 7
    assert list(Draft7Validator(asyncapi_schema).iter_errors(document))


def test_every_reference_leads_somewhere() -> None:
    document = contract.asyncapi()
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for entry in value.values():
            yield from references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from references(entry)


def test_the_page_lists_topics_verbs_reasons_and_codes() -> None:
    """docs/subscribers.md lists every topic, verb, reason and code, and its links resolve."""
    page = (DOCS / "subscribers.md").read_text()
    for verb in COMMAND_TYPES:
        assert f"| `{verb}` |" in page
    for channel in contract.asyncapi()["channels"].values():
        kind = channel["address"].removeprefix("edge/v1/{site}/{device}/").replace("{", "<").replace("}", ">")
        assert kind.startswith("cmd/") or f"`{kind}`" in page
    reasons = "rows bytes age disk-full no-subscriber rejected erased corrupt power-loss"
    for word in reasons.split():
        assert f"`{word}`" in page
        assert word in data_schema("gap")["properties"]["reason"]["description"]
    for code in re.findall(r'_Refused\("([a-z-]+)"', Path(commands.__file__).read_text()):
        assert f"`{code}`" in page
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert link.startswith("https://") or (DOCS / link).exists(), link


# --- compatibility ----------------------------------------------------------------------------------------


def taken_back(old: Any, new: Any, *, command: bool, path: str = "") -> list[str]:
    """The breaking changes from `old` to `new` for a program.

    A message that the agent sends may get keys and values of an enumeration, and must keep what it promised;
    a command may get keys that are not required, and must take what it took.
    """
    problems = []
    types_old, types_new = types(old), types(new)
    if types_old and not (types_old <= types_new if command else types_new and types_new <= types_old):
        problems.append(f"{path}: type {sorted(types_old)} became {sorted(types_new)}")
    if "enum" in old and not set(old["enum"]) <= set(new.get("enum", old["enum"])):
        problems.append(f"{path}: a value of the enumeration is gone")
    for key in ("unit", "format", "const"):
        if old.get(key) != new.get(key):
            problems.append(f"{path}: {key} {old.get(key)!r} became {new.get(key)!r}")
    required_old, required_new = set(old.get("required", [])), set(new.get("required", []))
    if not (required_new <= required_old if command else required_old <= required_new):
        problems.append(f"{path}: required keys changed: {sorted(required_old ^ required_new)}")
    for name, schema in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            problems.append(f"{path}/{name}: is gone")
        else:
            problems += taken_back(schema, new["properties"][name], command=command, path=f"{path}/{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict):
            problems += taken_back(old[key], new.get(key, {}), command=command, path=f"{path}/{key}")
    return problems


def types(schema: Any) -> set[str]:
    if "anyOf" in schema:
        return set().union(*(types(one) for one in schema["anyOf"]))
    found = schema.get("type", [])
    return {found} if isinstance(found, str) else set(found)


@pytest.mark.parametrize("path", sorted(RELEASED.glob("*.json")), ids=lambda path: path.stem)
def test_only_additions_since_the_release(path: Path) -> None:
    now = contract.schemas()
    assert path.name in now, "a message is gone"
    old = json.loads(path.read_text())
    command = path.name.startswith("command-") and "result" not in path.name
    assert taken_back(old, now[path.name], command=command) == []


def test_the_released_schemas_exist() -> None:
    assert {path.name for path in RELEASED.glob("*.json")} <= set(contract.schemas())
    assert (RELEASED / "identity.json").exists()


def changed(file: str, /, **changes: Any) -> tuple[Any, Any]:
    old = contract.schemas()[file]
    new = copy.deepcopy(old)
    for key, value in changes.items():
        if value is None:
            del new["properties"][key]
        else:
            new["properties"][key] = value
    return old, new


def test_additions_are_allowed() -> None:
    old, new = changed("identity.json", hat={"type": "string"})
    new["properties"]["kind"]["enum"].append("revoked")
    assert taken_back(old, new, command=False) == []
    old, new = changed("command-name.json", note={"type": "string"})
    assert taken_back(old, new, command=True) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("identity.json", {"score": None}),
        ("identity.json", {"score": {"type": ["number", "string", "null"]}}),
        ("identity.json", {"frame_time": {"type": "string"}}),
        ("identity.json", {"kind": {"type": "string", "enum": ["matched"]}}),
        ("telemetry.json", {"hottest_c": {"type": ["number", "null"], "unit": "degF"}}),
        ("command-name.json", {"name": {"type": "string"}}),
    ],
)
def test_breaking_changes_are_found(name: str, changes: dict[str, Any]) -> None:
    old, new = changed(name, **changes)
    assert taken_back(old, new, command=name.startswith("command"))


def test_a_required_field_may_not_become_optional() -> None:
    old, new = changed("identity.json")
    new["required"].remove("camera")
    assert taken_back(old, new, command=False)
    old, new = changed("command-name.json")
    new["required"].append("reason")
    assert taken_back(old, new, command=True)
