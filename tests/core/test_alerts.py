"""Every kind of alert is listed once, raised somewhere, and documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from edge_agent.core.alerts import AlertKind, alerts_table
from edge_agent.core.codec import data_schema
from tests.conftest import REPO

PACKAGE = REPO / "edge_agent"
RAISERS = {"alert_event", "_alert"}


def trees() -> Iterator[ast.AST]:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "alerts.py":
            yield ast.parse(path.read_text())


def test_every_kind_is_raised() -> None:
    used = {
        node.attr
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "AlertKind"
    }
    missing = {kind.name for kind in AlertKind} - used
    assert not missing, f"no code raises the alerts {sorted(missing)}: raise them or remove them"


def test_every_raised_kind_is_listed() -> None:
    """No alert is raised with a text that is not a member of `AlertKind`."""
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in RAISERS and node.args:
                    assert not isinstance(node.args[0], ast.Constant), ast.unparse(node)


def test_schema_and_page_list_every_kind() -> None:
    kinds = [kind.value for kind in AlertKind]
    assert data_schema("alert")["properties"]["kind"]["enum"] == kinds
    page = (REPO / "docs" / "subscribers.md").read_text()
    assert alerts_table() in page, "run python -m edge_agent.deliver.contract docs"
    assert all(f"| `{kind}` |" in alerts_table() for kind in kinds)
