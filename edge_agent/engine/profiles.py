"""The preprocess profile of a network, where the network itself or this project states it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge_agent.core.errors import ConfigError
from edge_agent.core.files import MAX_MODEL_BYTES, open_regular, read_object, sha256_file, shown
from edge_agent.core.published import PUBLISHED
from edge_agent.engine.golden import SHIPPED
from edge_agent.engine.graph.nodes import metadata_of
from edge_agent.engine.graph.prepared import PROFILE_ENTRY, PROFILES

if TYPE_CHECKING:
    import onnx


class Chosen(NamedTuple):
    """A profile, and where it comes from."""

    name: str
    origin: str


def profile_of(model: Path) -> Chosen:
    """Return the profile of a network without a configured one.

    In this order: its manifest (`MODEL.json`), a known file, the metadata that `edge-agent export` writes
    (`PROFILE_ENTRY`), and a first layer that normalises each picture, before which scale and mean have
    no effect.

    Raises:
        ConfigError: none of these states a profile; the message lists all.
        ModelError: the file is no network that takes pictures.
        InputError: it cannot be read.
    """
    open_regular(model).close()
    manifest = model.with_suffix(".json")
    there = os.path.isfile(manifest)  # noqa: PTH113 - False for all errors, as for a name that is too long
    stated = read_object(manifest).get("preprocess") if there else None
    if stated is not None:
        if not isinstance(stated, str) or stated not in PROFILES:
            raise ConfigError(f"{shown(manifest)}: preprocess must be one of {', '.join(sorted(PROFILES))}")
        return Chosen(stated, f"stated in {manifest.name}")
    if (known := _known().get(sha256_file(model, MAX_MODEL_BYTES))) is not None:
        return Chosen(known, "a known network")
    return _in_file(model) or _refuse(model)


def _known() -> dict[str, str]:
    """Return the profiles of networks whose reference embeddings ship, and of published ones, by SHA-256."""
    references = [json.loads(path.read_text(encoding="utf-8")) for path in SHIPPED.glob("*.json")]
    shipped = {one["model_sha256"]: one["profile"] for one in references}
    return shipped | {one.sha256: one.kind for one in PUBLISHED.values() if one.role == "reid" and one.sha256}


def _in_file(model: Path) -> Chosen | None:
    from edge_agent.engine.graph.reading import Network

    network = Network(model)
    if (stated := metadata_of(network.model).get(PROFILE_ENTRY)) in PROFILES:
        return Chosen(stated, "stated in the file")
    if _normalises(network.model, network.input.name):
        return Chosen("openvino-raw", "its first layer normalises")
    network.layout()  # a network that does not fit is a better message
    return None


def _normalises(model: onnx.ModelProto, source: str) -> bool:
    readers = [node for node in model.graph.node if source in node.input]
    return bool(readers) and all(node.op_type == "InstanceNormalization" for node in readers)


def _refuse(model: Path) -> Chosen:
    raise ConfigError(
        f"{shown(model)}: the preprocess profile of this network is not known; name that of its training "
        f"with --preprocess (engine.preprocess), or as FILE.onnx:PROFILE with --compare: "
        f"{', '.join(sorted(PROFILES))}; docs/models.md describes them"
    )
