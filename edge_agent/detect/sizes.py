"""Advice where the pictures of a camera are too small for the people in them to be found or recognised."""

from __future__ import annotations

import structlog

from edge_agent.core.published import SUGGESTED_DETECTOR

_log = structlog.get_logger(__name__)

FILLING = 0.22
"""Most people in surveillance pictures fill less of the height than this (a judgement, not a measurement).
Where the smallest person that can be used fills more, most people are lost."""


class PictureSizes:
    """Looks at the first picture of each camera; `min_height` is that of the quality gate.

    Attributes:
        known: cameras that were looked at.
        small: by camera whose pictures are too small, what to do about it.
    """

    def __init__(self, min_height: int) -> None:
        self._min_height = min_height
        self.known: set[str] = set()
        self.small: dict[str, str] = {}

    def look(self, camera: str, width: int, height: int, smallest: float) -> None:
        """Look at the size of a picture; `smallest` is the height of the smallest person that is found."""
        self.known.add(camera)
        needed = max(smallest, float(self._min_height))
        if needed <= FILLING * height:
            return
        if smallest > self._min_height:
            why = f"hog finds people from a height of {smallest:.0f} pixels on"
            remedy = f"edge-agent model fetch {SUGGESTED_DETECTOR}, detector hog:2, or larger pictures"
        else:
            why = f"people need a height of {self._min_height} pixels (quality.min_height)"
            remedy = "let the camera send larger pictures, or bring it closer"
        self.small[camera] = (
            f"the pictures of {camera} are small ({width} x {height}): {why}, which is "
            f"{needed / height:.0%} of their height; {remedy}"
        )
        _log.warning("pictures_too_small", camera=camera, width=width, height=height, hint=self.small[camera])
