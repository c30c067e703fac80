"""Write the results into docs/identity.md: before and after, ceilings, levers, and other projects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.identity.cases import CASES, kept
from edge_agent.core.manifest import write_atomic

__all__ = ["PAGE", "RESULTS", "page", "write_page"]

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "docs" / "identity.md"
RESULTS = REPO / "benchmarks" / "results" / "identity"

_PLACE = re.compile(r"(<!-- identity: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NONE = "Not measured yet."
Result = Mapping[str, Any]
Files = Mapping[str, Result]
"""Files of results by name."""
Section = Callable[[Files], list[str]]


def write_page() -> None:
    """Write the committed results into the page."""
    write_atomic(PAGE, page(PAGE.read_text()).encode())


def page(text: str) -> str:
    """Return the page with the tables of the committed results."""
    files = {path.stem: kept(path) for path in sorted(RESULTS.glob("*.json"))}

    def section(match: re.Match[str]) -> str:
        lines = _SECTIONS[match["name"]](files) or [_NONE]
        return match[1] + "\n" + "\n".join(lines) + "\n\n" + match[3]

    return _PLACE.sub(section, text)


def _table(*columns: str) -> Callable[[Callable[..., Iterator[tuple[str, ...]]]], Section]:
    """Make a section of a function that gives the cells of each row; no rows, no table."""

    def of(rows: Callable[[Files], Iterator[tuple[str, ...]]]) -> Section:
        def section(files: Files) -> list[str]:
            cells = list(rows(files))
            if not cells:
                return []
            return [_row(columns), "|" + "---|" * len(columns), *map(_row, cells)]

        return section

    return of


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _decimal(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _change(before: Result | None, after: Result | None, show: Callable[[Result], str]) -> str:
    """Return `before → after` of one figure, or what there is."""
    return " → ".join(show(one) for one in (before, after) if one is not None)


# --- before and after -------------------------------------------------------------------------


def _trials(files: Files, *kinds: str) -> Iterator[tuple[str, str, str, Result | None, Result | None]]:
    """Case, detector, network, result before and after of all trials of kinds of cases, in order."""
    before, after = (files.get(name, {}).get("results", {}) for name in ("before", "after"))
    for case in CASES.values():
        for detector, networks in case.tried.items():
            for network in networks:
                key = f"{case.name} / {detector} / {network}"
                if case.kind in kinds and (key in before or key in after):
                    yield case.name, detector, network, before.get(key), after.get(key)


def _after(files: Files, *kinds: str) -> Iterator[tuple[str, str, str, Result]]:
    for case, detector, network, _, after in _trials(files, *kinds):
        if after is not None:
            yield case, detector, network, after


def _figures(before: Result | None, after: Result | None) -> tuple[str, ...]:
    some = after or before
    assert some is not None  # one of them is there
    reentries = some["final"]["reentries"]
    return (
        _change(before, after, lambda one: _decimal(one["online"]["idf1"])),
        _change(before, after, lambda one: _decimal(one["final"]["idf1"])),
        _change(before, after, lambda one: str(one["final"]["recognised"])) + f" of {reentries}",
        _change(before, after, lambda one: str(one["final"]["merged"])),
        _change(before, after, lambda one: str(one["final"]["identities"])),
    )


FIGURES = ("IDF1 online", "final", "recognised", "pairs merged", "identities")


@_table("crops", "network", "people", *FIGURES)
def _sets(files: Files) -> Iterator[tuple[str, ...]]:
    for case, _, network, before, after in _trials(files, "set"):
        people = str((after or before or {})["final"]["people"])
        yield case, network, people, *_figures(before, after)


def _clips(kind: str) -> Section:
    @_table("clip", "detector", "network", *FIGURES)
    def section(files: Files) -> Iterator[tuple[str, ...]]:
        for case, detector, network, before, after in _trials(files, kind):
            yield case, detector, network, *_figures(before, after)

    return section


# --- why ---------------------------------------------------------------------------------------


@_table("clip", "detector", "network", "not found", "tracks broken or mixed", "identities", "known late")
def _lost_of_clips(files: Files) -> Iterator[tuple[str, ...]]:
    for case, detector, network, one in _after(files, "variant", "street"):
        bounds = one["ceilings"]
        steps = (1.0, bounds["boxes"], bounds["tracks"], one["final"]["idf1"], one["online"]["idf1"])
        yield case, detector, network, *(_decimal(max(0.0, a - b)) for a, b in pairwise(steps))


CAUSES = (
    "no identity: too few good crops", "no threshold yet", "below the threshold", "taken for another person",
    "other",
)  # fmt: skip


@_table("crops", "network", "not recognised", *CAUSES)
def _lost_of_sets(files: Files) -> Iterator[tuple[str, ...]]:
    for case, _, network, one in _after(files, "set"):
        lost = one.get("losses", {})
        yield case, network, str(sum(lost.values())), *(str(lost.get(cause, 0)) for cause in CAUSES)


@_table("crops", "network", "seconds: threshold (rule)")
def _thresholds(files: Files) -> Iterator[tuple[str, ...]]:
    for case, _, network, one in _after(files, "set"):
        steps = (
            f"{time:.0f}: {'none' if value is None else _decimal(value)} ({rule})"
            for time, value, rule in one["threshold"]
        )
        yield case, network, "; ".join(steps)


@_table(
    "crops", "network", "compared", "rank-1", "mAP", "threshold", "recognised", "pairs merged", "identities"
)
def _ceilings(files: Files) -> Iterator[tuple[str, ...]]:
    for key, result in files.get("ceilings", {}).get("results", {}).items():
        case, _, network = key.split(" / ")
        for how, one in result.items():
            ranks = (_decimal(one["rank1"]), _decimal(one["map"]), _decimal(one["threshold"]))
            recognised = f"{one['recognised']} of {one['reentries']}"
            yield case, network, how, *ranks, recognised, str(one["merged"]), str(one["identities"])


@_table("situation", "detector", "network", "with", *FIGURES)
def _levers(files: Files) -> Iterator[tuple[str, ...]]:
    for key, results in files.get("levers", {}).get("results", {}).items():
        for name, one in results.items():
            yield *key.split(" / "), name, *_figures(None, one)


@_table("project", "IDF1", "recognised", "people merged", "identities")
def _rivals(files: Files) -> Iterator[tuple[str, ...]]:
    for name, one in files.get("rivals", {}).get("results", {}).items():
        if "left_out" in one:
            yield name, f"not run: {one['left_out']}", "", "", ""
        else:
            recognised = f"{one['recognised']} of {one['reentries']}"
            yield name, _decimal(one["idf1"]), recognised, str(one["merged"]), str(one["identities"])


def _taken(files: Files) -> list[str]:
    """When and where the results of each file were measured."""
    lines = []
    for name, one in files.items():
        about, machine = one["about"], one["about"]["machine"]
        where = f"{machine['cores']} cores of {machine['cpu'] or machine['platform']}"
        lines.append(f"- `{name}`: agent of commit {about['agent']}, {about['taken'][:10]}, {where}")
    return lines


_SECTIONS: Mapping[str, Section] = {
    "sets": _sets,
    "variants": _clips("variant"),
    "streets": _clips("street"),
    "lost-of-clips": _lost_of_clips,
    "lost-of-sets": _lost_of_sets,
    "thresholds": _thresholds,
    "ceilings": _ceilings,
    "levers": _levers,
    "rivals": _rivals,
    "taken": _taken,
}
