"""Write what the priors of networks are measured on, and the priors of the networks that this project knows.

    python -m edge_agent.offline.people sheet        # edge_agent/embed/people.jpg
    python -m edge_agent.offline.people priors [MODEL.onnx[:PROFILE] ...]   # edge_agent/engine/references/

Without a network: the shipped one, and the built-in comparison of colours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import InputError
from edge_agent.core.files import read_object
from edge_agent.core.manifest import write_atomic, write_json_atomic
from edge_agent.embed import people
from edge_agent.embed.opening import open_embedder
from edge_agent.embed.prior import measure_prior
from edge_agent.engine.golden import SHIPPED
from edge_agent.engine.graph.stripes import STRIPES_NAME
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity

_SEED = 0x9A10
_SEEDS = 2**30
_QUALITY = 85


def write_sheet(path: Path = people.SHEET) -> None:
    """Render all people, and write the picture that `embed.people.crops` reads."""
    tiles = []
    for place in range(people.CAMERAS):
        view = camera(int(np.random.default_rng([_SEED, 0xCA, place]).integers(_SEEDS)))
        for visit in people.visits(place):
            person = identity(int(np.random.default_rng([_SEED, 0x1D, visit.person]).integers(_SEEDS)))
            rng = np.random.default_rng([_SEED, visit.person, place, visit.again])
            hour = float(rng.uniform(8, 18))
            tiles += [render_crop(person, view, rng, people.TILE, hour) for _ in range(people.CROPS)]
    rows = [np.hstack(tiles[at : at + people.COLUMNS]) for at in range(0, len(tiles), people.COLUMNS)]
    _, encoded = cv2.imencode(".jpg", np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    write_atomic(path, encoded.tobytes())


def write_priors(models: Sequence[str]) -> None:
    """Measure networks whose reference embeddings ship, and add the priors to these files.

    Raises:
        InputError: no reference embeddings ship for a network.
    """
    for model in models:
        name, _, profile = model.partition(":")
        settings = EngineSettings.model_validate({"model": name or None, "preprocess": profile or None})
        with TemporaryDirectory() as state:
            with open_embedder(settings, QualitySettings(), Path(state)) as embedder:
                space, prior = embedder.info.space, measure_prior(embedder.embed_images, longest_s=math.inf)
            path = SHIPPED / f"{space}.json"
            if not path.is_file():
                raise InputError(
                    f"{model} has no reference embeddings {path.name} in {SHIPPED}; of other networks the "
                    "prior is measured at the first start of the agent"
                )
            write_json_atomic(path, {**read_object(path), "prior": prior.to_json()})


def main(arguments: Sequence[str]) -> int:
    """Run one of the two commands."""
    match arguments:
        case ["sheet"]:
            write_sheet()
        case ["priors", *models]:
            write_priors(models or ["", STRIPES_NAME])
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
