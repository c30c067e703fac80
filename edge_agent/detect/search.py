"""Searches for people that run while the host does other work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.core.structures import Detections, Frame


@dataclass(slots=True)
class Search:
    """A search of several pictures for people, which may still run.

    `wait` waits for the people in each picture, in order, and returns them; `ended` tells whether it returns
    at once, as far as that is known.
    """

    wait: Callable[[], list[Detections]]
    ended: Callable[[], bool] = bool
    _found: list[Detections] | None = None

    @staticmethod
    def over(found: list[Detections]) -> Search:
        """Return a search whose result is there."""
        return Search(list, _found=found)

    @property
    def done(self) -> bool:
        """Whether `results` returns at once."""
        return self._found is not None or self.ended()

    def results(self) -> list[Detections]:
        """Wait for the end; return the people in each picture.

        Raises:
            EngineError: the network failed.
        """
        if self._found is None:
            self._found = self.wait()
        return self._found


Begin = Callable[[Sequence[Frame]], Search]
"""Begins to search frames of any cameras."""


def one_by_one(detect: Callable[[Frame], Detections]) -> Begin:
    """Return a `Begin` that searches each frame at once."""
    return lambda frames: Search.over([detect(frame) for frame in frames])
