"""The self-test: known crops with known embeddings detect wrong input to a network.

The crops are synthetic and the same on every machine. Their reference embeddings come from the original
network with preprocessing in numpy, independent of the prepared graph. A fault in channel order, scale,
normalisation, layout or precision makes the two disagree. A wrong profile named by the user is not detected:
both then agree on it.

References of well-known networks are shipped (`references/*.json`); others are computed on the first start
and kept in the state folder.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError, ModelError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file, read_json
from edge_agent.core.manifest import write_json_atomic
from edge_agent.engine.graph.prepared import PreparedGraph

GOLDEN_CROPS = 4
"""Pictures in the set. Changing a picture requires another `_VERSION`."""
_VERSION = 1
_DECIMALS = 4
_SHIPPED = Path(__file__).parent / "references"


@dataclass(frozen=True, slots=True)
class Golden:
    """Reference embeddings of the golden crops, `(4, D)` float32 of unit length, for one embedding space."""

    space: str
    vectors: NDArray[np.float32]
    origin: str


def golden_crops(height: int, width: int) -> NDArray[np.uint8]:
    """Return `(4, height, width, 3)` uint8 BGR, the same on every machine: integer arithmetic only.

    Clothed figures with a fine pattern resemble the training data. Channels differ strongly, so that swapped
    channels are detected.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    pictures = [_figure(y * 256 // height, x * 128 // width, kind) for kind in range(GOLDEN_CROPS)]
    return np.stack(pictures)


_CLOTHES = (  # BGR of ground, head, torso, legs
    ((96, 112, 104), (120, 150, 205), (40, 44, 190), (120, 60, 32)),
    ((150, 150, 140), (88, 104, 140), (190, 120, 30), (44, 44, 52)),
    ((60, 72, 66), (130, 165, 220), (60, 190, 210), (66, 110, 70)),
    ((180, 190, 200), (70, 80, 110), (230, 228, 225), (170, 80, 150)),
)


def _figure(y: NDArray[np.int64], x: NDArray[np.int64], kind: int) -> NDArray[np.uint8]:
    """Draw a figure on a 256 x 128 grid of integer coordinates."""
    ground, head, torso, legs = (np.asarray(colour, np.int64) for colour in _CLOTHES[kind])
    picture = np.broadcast_to(ground, (*y.shape, 3)) + (y // 8)[..., None]
    lean = (y - 128) * (kind - 1) // 24
    across = x - 64 + lean
    for colour, inside in (
        (head, (y - 34) ** 2 + across**2 < 18**2),
        (torso, (y >= 54) & (y < 136) & (abs(across) < 26)),
        (legs, (y >= 136) & (y < 244) & (abs(across) < 24) & (abs(across) > (y - 136) // 18)),
    ):
        picture = np.where(inside[..., None], colour, picture)
    pattern = ((x * (3 + kind) + y * (5 - kind)) % 23) - 11
    result: NDArray[np.uint8] = np.clip(picture + pattern[..., None], 0, 255).astype(np.uint8)
    return result


def make(prepared: PreparedGraph) -> Golden:
    """Compute reference embeddings without the prepared graph; ModelError where they are not usable."""
    from edge_agent.engine.onnxruntime import run_once

    profile = prepared.profile
    assert profile is not None  # detectors have no golden crops
    crops = golden_crops(*prepared.input_size)
    pixels = prepared.as_network_input(profile.apply(crops))
    rows = run_once(read_file(prepared.source, MAX_MODEL_BYTES), pixels, str(prepared.source))
    rows = rows.reshape(len(crops), -1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not (lengths > 0).all():
        raise ModelError(
            f"{prepared.source} gives NaN, infinite or empty embeddings for plain pictures under ONNX "
            "Runtime; try another export of this network (some Open Model Zoo files need their group "
            "normalisation replaced), or another profile than " + repr(profile.name)
        )
    return Golden(prepared.space, (rows / lengths).astype(np.float32), "the original network, run now")


def load_or_make(prepared: PreparedGraph, state: Path | None) -> Golden:
    """Return the shipped reference, else the stored one, else a new one, kept in `state` unless None."""
    name = f"{prepared.space}.json"
    for folder in (_SHIPPED, state and state / "golden"):
        if folder and (found := _read(folder / name, prepared)):
            return found
    golden = make(prepared)
    if state is not None:
        (state / "golden").mkdir(parents=True, exist_ok=True)
        _write(golden, prepared, state / "golden" / name)
    return golden


def _write(golden: Golden, prepared: PreparedGraph, path: Path) -> None:
    assert prepared.profile is not None
    document = {
        "kind": "golden",
        "version": _VERSION,
        "model": prepared.name,
        "model_sha256": prepared.source_sha256,
        "profile": prepared.profile.name,
        "space": golden.space,
        "decimals": _DECIMALS,
        "vectors": [" ".join(str(round(float(v) * 10**_DECIMALS)) for v in row) for row in golden.vectors],
    }
    write_json_atomic(path, document)


def _read(path: Path, prepared: PreparedGraph) -> Golden | None:
    """Read a stored reference; None, so that it is computed, where there is none that fits and is whole."""
    with contextlib.suppress(EdgeAgentError, KeyError, TypeError, ValueError, AttributeError):
        found = read_json(path)
        rows = np.asarray([[int(v) for v in row.split()] for row in found["vectors"]], np.float32)
        fits = rows.shape == (GOLDEN_CROPS, prepared.dimension) and found["version"] == _VERSION
        if fits and found["space"] == prepared.space:
            return Golden(prepared.space, rows / 10 ** found["decimals"], str(path))
    return None
