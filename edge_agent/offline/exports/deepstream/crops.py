"""Crops of people on which an export is measured: pictures of the user's own site, or rendered people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.core.files import shown
from edge_agent.core.pictures import UnreadablePicture, read_picture

_MOST = 1000
"""Pictures that are measured at most, evenly spaced; 1000 take about a minute on two cores."""
_RENDERED = 16


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of people `(h, w, 3)` uint8 BGR, and what they are, e.g. `16 rendered people`."""

    pictures: Sequence[NDArray[np.uint8]]
    what: str


def rendered_crops() -> Crops:
    """Render a few people, each seen by another camera in its own resolution; the same on every machine."""
    from edge_agent.offline.synthetic.camera import camera
    from edge_agent.offline.synthetic.crops import render_crop
    from edge_agent.offline.synthetic.identity import identity

    rng = np.random.default_rng(0)
    pictures = [render_crop(identity(seed), camera(seed), rng, None) for seed in range(_RENDERED)]
    return Crops(pictures, f"{len(pictures)} rendered people")


def crops_of(paths: Sequence[Path], source: Path) -> Crops:
    """Read the pictures of `source`, at most 1000; InputError where none can be read.

    Pictures that cannot be read are left out.
    """
    step = max(1, -(-len(paths) // _MOST))
    pictures = []
    for path in paths[::step]:
        try:
            pictures.append(read_picture(path))
        except UnreadablePicture:
            continue
    if not pictures:
        raise InputError(f"{shown(source)} has no picture that can be read")
    return Crops(pictures, f"{len(pictures)} crops of {shown(source)}")
