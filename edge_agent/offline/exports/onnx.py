"""The network of the agent as one ONNX file with TAO's tensor names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.errors import InputError
from edge_agent.core.files import shown
from edge_agent.core.manifest import write_atomic
from edge_agent.offline.exports.network import ExportNetwork, with_card


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """A written file: digest, size, and the card in its metadata."""

    path: Path
    sha256: str
    bytes: int
    card: Mapping[str, str]


def check_file(target: Path, *, overwrite: bool) -> None:
    """Raise InputError where `export_network` would refuse the file, before anything is computed."""
    if target.exists() and not overwrite:
        raise InputError(f"{shown(target)} exists already: name another file, or give --overwrite")


def export_network(network: ExportNetwork, target: Path, *, overwrite: bool = False) -> OnnxExport:
    """Write the bare graph, see `engine.graph.bare`, in the precision that the agent runs.

    It is another file than the network's own, so the agent takes it for another embedding space.

    Raises:
        InputError: the file exists.
        ModelError: the graph cannot be made.
        StorageError: it cannot be written.
    """
    check_file(target, overwrite=overwrite)
    entries = {"exported_from": network.graph.source_sha256, "precision": network.graph.precision}
    data, card = with_card(network.bare(), entries | dict(network.notes))
    write_atomic(target, data)
    return OnnxExport(target, hashlib.sha256(data).hexdigest(), len(data), card)
