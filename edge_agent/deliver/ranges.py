"""Ranges of sequence numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges `(first, last)`, in ascending order, where one begins right after another."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and found[-1][1] == first - 1:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def between(present: Iterable[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of numbers from `first` to `last` that are in none of the ranges `present`."""
    for begin, end in (*sorted(present), (last + 1, last + 1)):
        if first < begin:
            yield first, min(begin - 1, last)
        first = max(first, end + 1)
