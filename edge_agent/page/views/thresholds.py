"""The view Thresholds: the scores of the site, the threshold in force, and what another one would change."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge_agent.core.encryption import database_key
from edge_agent.core.errors import InputError
from edge_agent.page.api import Call, Endpoint
from edge_agent.page.errors import Refused

if TYPE_CHECKING:
    from edge_agent.offline.replay.preview import Preview

MOST_FLIPS = 50
"""Changed decisions that are listed; all are counted."""


async def thresholds(call: Call) -> object:
    """Return the threshold in force, and scores: of people seen together, and of the kept events.

    `matched` are scores of recognised people, `others` the best scores of people who were new or unknown.
    """
    found, _ = await call.page.link.ask("thresholds")
    scores: dict[str, list[float]] = {"matched": [], "enrolled": [], "unknown": []}
    for event in call.page.events.newest():
        data = event["data"]
        if data.get("score") is not None and data["kind"] in scores:
            scores[data["kind"]].append(data["score"])
    return found | {"matched": scores["matched"], "others": scores["enrolled"] + scores["unknown"]}


async def preview(call: Call) -> object:
    """Return what a threshold would have changed in the recorded decisions of the last hours."""
    threshold = _cosine(call.text("threshold"))
    async with call.page.previews:
        found = await asyncio.to_thread(_preview, call, threshold)
    shown = asdict(found)
    flips = shown.pop("flips")
    return shown | {"flips": flips[-MOST_FLIPS:][::-1], "changed": len(flips)}


def _preview(call: Call, threshold: float) -> Preview:
    from edge_agent.offline.replay.preview import preview as estimate
    from edge_agent.record.recorder import FOLDER

    key = database_key(call.page.storage)
    try:
        return estimate(call.page.link.state / FOLDER, key, threshold)
    except InputError as problem:
        raise Refused(404, "no-recording", str(problem)) from problem


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise Refused(400, "malformed", "threshold must be a number from -1 to 1")
    return value


async def apply(call: Call) -> object:
    """Set the threshold by hand; null returns to the rules."""
    given: dict[str, Any] = await call.json()
    if given.keys() != {"threshold"}:  # without the key it would be taken for null
        raise Refused(400, "malformed", "the body has one key, threshold")
    return await call.command("threshold", given)


ENDPOINTS = (
    Endpoint("GET", "/api/thresholds", "viewer", thresholds),
    Endpoint("GET", "/api/thresholds/preview", "viewer", preview),
    Endpoint("POST", "/api/thresholds", "operator", apply),
)
