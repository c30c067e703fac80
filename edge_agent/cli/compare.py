"""`edge-agent evaluate --compare`: two networks side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.output import table

if TYPE_CHECKING:
    from edge_agent.offline.evaluate.compare import Difference
    from edge_agent.offline.evaluate.embedding import Network


def named_network(text: str, backend: str, precision: str) -> Network:
    """Return the network of `FILE.onnx:PROFILE`, or of a file whose profile is known (docs/models.md).

    Raises `ConfigError` where neither the whole text nor what stands before its last colon fits.
    """
    from edge_agent.core.errors import ConfigError
    from edge_agent.engine.graph.prepared import PROFILES
    from edge_agent.offline.evaluate.embedding import Network

    path, colon, profile = text.rpartition(":")
    if not colon or profile not in PROFILES:
        if Path(path).is_file() and not Path(text).is_file():
            raise ConfigError(
                f"{path}: no preprocess profile {profile!r}; write one of {', '.join(PROFILES)}"
            )
        path, profile = text, ""
    return Network(Path(path), profile or None, backend, precision)


def comparison(found: list[Difference], documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return both documents and the differences, as JSON values."""
    from edge_agent.offline.evaluate.compare import DRAWS

    return {
        "networks": documents,
        "differences": {
            one.figure: asdict(one) | {"difference": one.second - one.first, "certain": one.certain}
            for one in found
        },
        "interval_method": f"95 %, paired bootstrap over people, {DRAWS} draws",
    }


def rows(document: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: figure, both values, difference and interval in percentage points."""
    found = []
    for figure, one in document["differences"].items():
        low, high, step = (100 * one[key] for key in ("low", "high", "difference"))
        verdict = "" if one["certain"] else "within chance"
        values = (f"{100 * one[key]:.1f} %" for key in ("first", "second"))
        found.append([figure, *values, f"{step:+.1f}", f"{low:+.1f} to {high:+.1f}", verdict])
    eer = [one["eer"] for one in document["networks"]]
    if None not in eer:
        found.append(
            ["EER", *(f"{100 * rate:.2f} %" for rate in eer), f"{100 * (eer[1] - eer[0]):+.2f}", "", ""]
        )
    return found


def heads(document: dict[str, Any]) -> list[str]:
    """Return the table's titles."""
    first, second = (f"{one['model']['name']} ({one['model']['preprocess']})" for one in document["networks"])
    return ["", f"A: {first}", f"B: {second}", "B - A", "95 % interval", ""]


def comparison_lines(document: dict[str, Any]) -> list[str]:
    """Return the comparison as lines of text."""
    first = document["networks"][0]
    titles = heads(document)
    shown = table(titles, rows(document), right=titles[1:5], wrap=titles[5])
    queries = first["queries"] + first["queries_dropped"]
    facts = f"{first['queries_evaluated']} of {queries} queries against {first['gallery']} gallery crops"
    warnings = [f"warning: {note}" for note in first["notes"]]
    return [f"{facts}; differences in percentage points, {document['interval_method']}", *shown, *warnings]
