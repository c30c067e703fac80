"""What another threshold would have changed in the last hours, estimated from the recorded scores.

It judges the latest decision on each track alone, which takes milliseconds where a replay takes minutes; what
follows from a changed decision in later ones, only `replay` shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.offline.replay.recording import decision_of
from edge_agent.record.file import RecordingFile
from edge_agent.record.recorder import recordings

MOST_DECISIONS = 20_000
"""The newest ones are judged."""
LONGEST_HOURS = 24.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Flip:
    """A track on which another threshold decides otherwise.

    Attributes:
        change: `unmatched`: it is matched, and would be somebody new; `matched`: the other way round.
        number: its identity as decided.
    """

    change: Literal["unmatched", "matched"]
    camera: str
    track: int
    time: float
    number: int | None
    score: float
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Preview:
    """The effect of a threshold on `tracks` with a score, and the tracks that it changes, by time."""

    threshold: float
    since: float | None
    until: float | None
    tracks: int
    matched_before: int
    matched_after: int
    flips: tuple[Flip, ...]
    scores: tuple[float, ...]
    """Best score of each track, ascending."""


def preview(folder: Path, key: bytes | None, threshold: float, *, hours: float = LONGEST_HOURS) -> Preview:
    """Estimate the effect of a fixed threshold (a cosine of raw embeddings) on the newest decisions.

    `hours` count back from the newest recorded decision, at most `LONGEST_HOURS`. Files that cannot be read
    are left out.

    Raises:
        InputError: there is no recording.
    """
    if not recordings(folder):
        raise InputError(f"there is no recording in {folder}; record.enabled makes the agent record")
    latest: dict[tuple[str, str, int], tuple[Mapping[str, Any], float]] = {}
    until = since = None
    for one, session, margin in _newest_first(folder, key):
        until = one["time"] if until is None else until
        if one["time"] < until - HOUR_S * min(hours, LONGEST_HOURS):
            continue
        since = one["time"] if since is None else min(since, one["time"])
        if one["kind"] != "departed" and one["score"] is not None:
            latest.setdefault((session, one["camera"], one["track"]), (one, margin))
    flips, before, after = [], 0, 0
    for one, margin in latest.values():
        was = one["kind"] == "matched" or (one["kind"] == "corrected" and one["reason"] != "contested")
        lead = one["score"] - (-1.0 if one["runner_up"] is None else one["runner_up"])
        would = one["score"] >= threshold and (was or lead >= margin)
        before, after = before + was, after + would
        if was != would:
            flips.append(
                Flip(
                    "matched" if would else "unmatched",
                    one["camera"], one["track"], one["time"], one["number"], one["score"], one["threshold"],
                )
            )  # fmt: skip
    return Preview(
        threshold,
        since,
        until,
        len(latest),
        before,
        after,
        tuple(sorted(flips, key=lambda flip: flip.time)),
        tuple(sorted(one["score"] for one, _ in latest.values())),
    )


def _newest_first(folder: Path, key: bytes | None) -> Iterator[tuple[Mapping[str, Any], str, float]]:
    """Yield decisions, newest first, with the run and its margin."""
    left = MOST_DECISIONS
    for path in reversed(recordings(folder)):
        try:
            with RecordingFile.existing(path, key, check=False) as file:
                header = file.header
                bodies = file.decisions(left)
            margin = float(header["identify"]["margin"])
            found = [decision_of(body) for body in reversed(bodies)]
        except (EdgeAgentError, KeyError, TypeError, ValueError):
            continue
        left -= len(found)
        yield from ((one, str(header["session"]), margin) for one in found)
        if left <= 0:
            return
