"""What differs between two replays of one recording: people, and the decisions on each track.

Numbers of two replays are not comparable: a person of the second is named after the person of the first with
whom the most tracks are shared, or who has the same founding track. People of the gallery at the start keep
their number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.offline.replay.run import Outcome, Track


@dataclass(frozen=True, slots=True)
class TrackChange:
    """A track whose decisions differ.

    Attributes:
        before, after: its decisions, e.g. `enrolled 4`, in order; departures aside.
        score: of the first decision that differs, in the second replay; None without one.
        threshold: of the same.
    """

    camera: str
    track: int
    first: float
    last: float
    before: tuple[str, ...]
    after: tuple[str, ...]
    score: float | None
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What the second of two replays changes.

    Attributes:
        joined: groups of people of the first that are one person in the second.
        split: people of the first, by the number of people that they are in the second.
        lost, gained: tracks that have an identity only in the first, or only in the second.
        people, decisions, expected_false_matches: of both; see `expected_false_matches`.
    """

    changed: tuple[TrackChange, ...]
    joined: tuple[tuple[int, ...], ...]
    split: Mapping[int, int]
    lost: int
    gained: int
    people: tuple[int, int]
    decisions: tuple[int, int]
    expected_false_matches: tuple[float | None, float | None]


def compare(before: Outcome, after: Outcome) -> Difference:
    """Compare two replays."""
    names = _names(before, after)
    groups, parts = defaultdict(set), defaultdict(set)
    lost = gained = 0
    for track, number in before.numbers.items():
        other = after.numbers.get(track)
        lost += number is not None and other is None
        gained += number is None and other is not None
        if number is not None and other is not None:
            groups[other].add(number)
            parts[number].add(other)
    return Difference(
        changed=tuple(_changes(before, after, names)),
        joined=tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)),
        split={number: len(others) for number, others in sorted(parts.items()) if len(others) > 1},
        lost=lost,
        gained=gained,
        people=(_people(before), _people(after)),
        decisions=(len(before.decisions), len(after.decisions)),
        expected_false_matches=(expected_false_matches(before), expected_false_matches(after)),
    )


def expected_false_matches(outcome: Outcome) -> float | None:
    """Return how many tracks would be taken for somebody else, if each showed somebody new.

    It is the sum of the probabilities that were estimated at the last decision on each track with a search.
    None where there was no estimate.
    """
    rates = {
        (one["camera"], one["track"]): one["search_rate"]
        for one in outcome.decisions
        if one["search_rate"] is not None and one["kind"] != "departed"
    }
    return sum(rates.values()) if rates else None


def _people(outcome: Outcome) -> int:
    return len({number for number in outcome.numbers.values() if number is not None})


def _names(before: Outcome, after: Outcome) -> dict[int, str]:
    """Return a name for each person of the second replay."""
    shared: Counter[tuple[int, int]] = Counter()
    for track, number in before.numbers.items():
        other = after.numbers.get(track)
        if number is not None and other is not None:
            shared[other, number] += 1
    names = {number: str(number) for number in after.known}
    taken = set(after.known)
    for (other, number), _ in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
        if other not in names and number not in taken:
            names[other] = str(number)
            taken.add(number)
    founded = {track: number for number, track in before.founders.items()}
    for other, track in after.founders.items():  # people who were joined with others later
        if other not in names and founded.get(track) not in {None, *taken}:
            names[other] = str(founded[track])
    return names


def _changes(before: Outcome, after: Outcome, names: Mapping[int, str]) -> list[TrackChange]:
    first, second = _stories(before, None), _stories(after, names)
    found = []
    for track in sorted(
        before.times.keys() | after.times.keys(), key=lambda one: before.times.get(one, (0, 0))
    ):
        told, other = first.get(track, []), second.get(track, [])
        texts, others = tuple(text for text, _ in told), tuple(text for text, _ in other)
        if texts == others:
            continue
        at = next(
            (place for place, pair in enumerate(zip(texts, others, strict=False)) if pair[0] != pair[1]),
            min(len(texts), len(others)),
        )
        decided = other[at][1] if at < len(other) else told[at][1]
        begin, end = (after.times if track in after.times else before.times)[track]
        found.append(TrackChange(*track, begin, end, texts, others, decided["score"], decided["threshold"]))
    return found


def _stories(
    outcome: Outcome, names: Mapping[int, str] | None
) -> dict[Track, list[tuple[str, Mapping[str, Any]]]]:
    """Return the decisions on each track: whom they state, by `names` or the own numbers."""
    stories: dict[Track, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    for one in outcome.decisions:
        if one["kind"] == "departed":
            continue
        number = one["number"]
        person = "nobody" if number is None else str(number)
        if names is not None and number is not None:
            person = names.get(number, f"new-{number}")
        stories[one["camera"], one["track"]].append((f"{one['kind']} {person}", one))
    return stories
