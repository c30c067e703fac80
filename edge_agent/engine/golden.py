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
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.errors import EdgeAgentError, ModelError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file, read_json
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.private import private_folder
from edge_agent.engine.graph.prepared import BATCH_HINT, PreparedGraph, PreprocessProfile

_log = structlog.get_logger(__name__)

GOLDEN_CROPS = 4
"""Pictures in the set. Changing a picture requires another `_VERSION`."""
_VERSION = 1
_DECIMALS = 4
_CONSTANT = 0.999
"""Cosine of the two golden crops that differ most from which on a network is refused. Trained networks: 0.23
to 0.51; with random weights up to 0.998; trained ones with pixels divided by 255 twice from 0.996."""
_ALIKE = 0.95
"""The same, for a warning: trained networks with a wrong scale from 0.90, random weights from 0.75."""
LEAST_REPEATED = 0.9999
"""Least cosine of a golden crop to itself in another place; 1 but for rounding, in FP16 too."""
SHIPPED = Path(__file__).parent / "references"
"""References of well-known networks, with the SHA-256 and the profile of each."""


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
    """Compute reference embeddings without the prepared graph; ModelError where they are not usable.

    A new network is also checked for what a start does not repeat: more pictures than one start has, another
    order, and pictures of one colour.
    """
    profile = prepared.profile
    assert profile is not None  # detectors have no golden crops
    crops = golden_crops(*prepared.input_size)
    plain = np.stack([np.full_like(crops[0], level) for level in (0, 255)])
    both_ways = np.concatenate((crops, crops[::-1]))
    rows, others = _run(prepared, profile, [both_ways, np.concatenate((crops[:3], plain))])
    rows = rows.astype(np.float64)  # lengths of float32 overflow from 1e19 on
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not (lengths > 0).all():
        raise ModelError(
            f"{prepared.source} gives NaN, infinite or empty embeddings for plain pictures under ONNX "
            "Runtime; try another export of this network (some Open Model Zoo files need their group "
            "normalisation replaced), or another profile than " + repr(profile.name)
        )
    unit = (rows / lengths).astype(np.float32)
    if least_cosine(unit[: len(crops)], unit[: len(crops) - 1 : -1]) < LEAST_REPEATED:
        (again,) = _run(prepared, profile, [both_ways])
        repeatable = least_cosine(unit, again) >= LEAST_REPEATED
        raise ModelError(unrepeatable(str(prepared.source), random=not repeatable))
    require_distinct(unit[: len(crops)], str(prepared.source), warn=False)  # every start does
    if not np.isfinite(others[3:]).all():
        _log.warning("undefined_for_plain_pictures", model=prepared.name, hint="such crops are left out")
    return Golden(prepared.space, unit[: len(crops)], "the original network, run now")


def _run(
    prepared: PreparedGraph, profile: PreprocessProfile, batches: list[NDArray[np.uint8]]
) -> list[NDArray[np.floating[Any]]]:
    """Return the rows `(N, D)` of the original network for each batch of pictures."""
    from edge_agent.engine.apart import run_apart

    model, name = read_file(prepared.source, MAX_MODEL_BYTES), str(prepared.source)
    found = run_apart(model, [prepared.as_network_input(profile.apply(batch)) for batch in batches], name)
    for batch, result in zip(batches, found, strict=True):
        if not result.shape or result.shape[0] != len(batch):
            given = result.shape[0] if result.shape else 0
            raise ModelError(f"{name} gives {given} rows for {len(batch)} pictures; {BATCH_HINT}")
        if result.rows is None or result.rows[0].size != prepared.dimension:
            raise ModelError(
                f"{name} gives {list(result.shape)} for {len(batch)} pictures, expected [{len(batch)}, "
                f"{prepared.dimension}]: the file declares a wrong size of its output, or the size depends "
                f"on the pictures or the batch; {BATCH_HINT}"
            )
    return [result.rows.reshape(len(result.rows), -1) for result in found if result.rows is not None]


def least_cosine(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """Least cosine of corresponding rows of two `(N, D)`; -1 where a row has no direction."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.einsum("nd,nd->n", a, b) / lengths
    return float(np.where(np.isfinite(cosines), cosines, -1.0).min())


def unrepeatable(model: str, *, random: bool) -> str:
    """Return the message for a network that gives other rows for the same pictures."""
    if random:
        return (
            f"{model} gives another embedding for the same crop each time: dropout or noise is active; "
            "export the network in evaluation mode (model.eval())"
        )
    return (
        f"{model} gives embeddings that depend on the place of a crop in its batch; export the network again "
        "in evaluation mode, with a dynamic batch axis"
    )


def require_distinct(vectors: NDArray[np.float32], model: str, *, warn: bool = True) -> None:
    """Raise ModelError where the golden crops, which differ strongly, have nearly the same embedding.

    `vectors` are `(4, D)`; `warn`: log where they are only alike. Numbers behind the limits:
    `docs/decisions/038-networks-are-checked.md`.
    """
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    cosines = (wide @ wide.T / np.outer(lengths, lengths))[np.triu_indices(len(wide), 1)]
    least, largest = float(cosines.min()), float(cosines.max())
    if least >= _CONSTANT:
        raise ModelError(
            f"{model} gives nearly the same embedding for very different pictures (cosines {least:.6f} to "
            f"{largest:.6f}), so everybody would match everybody: its weights are dead, or its input has the "
            "wrong scale (divided by 255 twice?); check the export and the preprocess profile"
        )
    if warn and (least >= _ALIKE or largest >= _CONSTANT):
        _log.warning(
            "embeddings_alike", model=model, cosines=[round(least, 6), round(largest, 6)],
            hint="very different pictures have similar embeddings: check the preprocess profile; a network "
            "with random weights does so too",
        )  # fmt: skip


def load_or_make(prepared: PreparedGraph, state: Path | None) -> Golden:
    """Return the shipped reference, else the stored one, else a new one, kept in `state` unless None."""
    if found := known_golden(prepared.space, prepared.dimension, state):
        return found
    golden = make(prepared)
    if state is not None:
        private_folder(state / "golden")
        _write(golden, prepared, state / "golden" / f"{prepared.space}.json")
    return golden


def known_golden(space: str, dimension: int, state: Path | None) -> Golden | None:
    """Return the reference of an embedding space that ships, or is stored in `state`; None without one."""
    for folder in (SHIPPED, state and state / "golden"):
        if folder and (found := _read(folder / f"{space}.json", space, dimension)):
            return found
    return None


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
    write_json_atomic(path, document, mode=0o600)


def _read(path: Path, space: str, dimension: int) -> Golden | None:
    """Read a stored reference; None, so that it is computed, where there is none that fits and is whole."""
    with contextlib.suppress(EdgeAgentError, KeyError, TypeError, ValueError, AttributeError):
        found = read_json(path)
        rows = np.asarray([[int(v) for v in row.split()] for row in found["vectors"]], np.float32)
        fits = rows.shape == (GOLDEN_CROPS, dimension) and found["version"] == _VERSION
        if fits and found["space"] == space:
            return Golden(space, rows / 10 ** found["decimals"], str(path))
    return None
