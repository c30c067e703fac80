"""Each change alone: the agent with single changes turned off, in this process only.

No setting turns them off, since no user needs that; here their constants and functions are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

from benchmarks.identity.cases import Case, Material

__all__ = ["LEVERS", "SITUATIONS", "each"]

SITUATIONS = (
    "70 people, 3 cameras",
    "70 people, no boxes",
    "70 people, one at a time",
    "vtest.avi, plain",
    "street, 3 cameras, 12 people",
)
Off = Callable[[], AbstractContextManager[Any]]


def _without_means() -> AbstractContextManager[Any]:
    """No mean of a camera has a weight."""
    from edge_agent.gallery import means

    return mock.patch.object(means, "PEOPLE_FOR_HALF", float("inf"))


def _without_prior() -> AbstractContextManager[Any]:
    """A new site knows nothing of the network's scores."""
    from edge_agent.agent import stages

    return mock.patch.object(stages, "load_or_measure", return_value=None)


def _without_gallery() -> AbstractContextManager[Any]:
    """The target rate is that of a pair, however many people are known."""
    from edge_agent.identify import site

    return mock.patch.object(site, "pair_rate", lambda target, _: target)


LEVERS: dict[str, Off] = {
    "camera means": _without_means,
    "prior": _without_prior,
    "rate per search": _without_gallery,
}


def each(case: Case, material: Material, detector: str, network: str) -> dict[str, Any]:
    """Run with all changes, none of them, each alone, and all but each."""
    tried: dict[str, Iterable[str]] = {"all": (), "none": LEVERS}
    for name in LEVERS:
        tried[f"{name} alone"] = [other for other in LEVERS if other != name]
        tried[f"all but {name}"] = [name]
    found = {}
    for label, off in tried.items():
        with ExitStack() as stack:
            for name in off:
                stack.enter_context(LEVERS[name]())
            result = case.run(material, detector, network)
            found[label] = {part: result[part] for part in ("online", "final")}
    return found
