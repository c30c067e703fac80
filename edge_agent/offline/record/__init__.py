"""Records of a run that people look at: a video with boxes and identities, and a report of the people.

Both show people: protect them as the recordings are protected. Their files are readable by their owner only.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

from edge_agent.core.names import person_title
from edge_agent.core.structures import Decision

Number = Callable[[str, int, float], int | None]
"""Returns the identity number, as known now, that a camera's track had at a time."""


def colour(number: int) -> tuple[int, int, int]:
    """Return the RGB colour of an identity number; neighbouring numbers differ in hue."""
    red, green, blue = colorsys.hls_to_rgb(number * 0.61803 % 1, 0.45, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


class Names:
    """The latest name of each person, from the decisions."""

    def __init__(self) -> None:
        self._names: dict[int, str | None] = {}

    def note(self, decisions: tuple[Decision, ...]) -> None:
        """Take in the names of decisions."""
        self._names.update({one.number: one.name for one in decisions if one.number is not None})

    def title(self, number: int) -> str:
        """Return how a person is called: by name, else by number."""
        return person_title(number, self._names.get(number))
