"""The README of an export for DeepStream."""

from __future__ import annotations

import shlex
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from edge_agent import __version__
from edge_agent.core.files import shown
from edge_agent.engine.graph.prepared import BARE_INPUT, BARE_OUTPUT
from edge_agent.offline.exports.deepstream import files
from edge_agent.offline.exports.triton import TAO_MODEL_NAME

if TYPE_CHECKING:
    from edge_agent.offline.exports.deepstream.export import Facts

_TEXT = Path(__file__).parent / "readme.md"
_STRETCHED = """\
People are stretched to the input (`maintain-aspect-ratio=0`, `keepAspc: 0`), as edge-agent does. These
embeddings are in the same space as those that edge-agent computes with this network."""
_PADDED = """\
People keep their aspect ratio, the rest of the input is black (`maintain-aspect-ratio=1`, `keepAspc: 1`).
edge-agent stretches people, so what it computes with this network itself is in **another** space."""
_NO_SERVER = """\
There is no file for nvinferserver, which has one scale for all channels too: the model of
`edge-agent export --triton DIR --tao` takes normalised pixels."""


def readme(facts: Facts, folder: Path) -> str:
    """Return the README as Markdown, for files in `folder`."""
    height, width = facts.input_size
    nvdcf, nvdeepsort = files.TRACKERS
    values = {
        "agent": __version__,
        "onnx": files.ONNX,
        "input": BARE_INPUT,
        "output": BARE_OUTPUT,
        "height": height,
        "width": width,
        "nvinfer": files.NVINFER,
        "nvdcf": nvdcf,
        "nvdeepsort": nvdeepsort,
        "manifest": files.MANIFEST,
        "quoted_nvinfer": shlex.quote(str(folder / files.NVINFER)),
        "quoted_nvdcf": shlex.quote(str(folder / nvdcf)),
        "rule": _PADDED if facts.keep_aspect else _STRETCHED,
        "precision": facts.precision.upper(),
        "colour": facts.colour.upper(),
        "scale": files.number(facts.scale),
        "offsets": ", ".join(map(files.number, facts.offsets)),
        "further": "".join(f"| `{name}` | {text} |\n" for name, text in _further(facts)),
        "in_graph": _in_graph(facts),
        "server": _server(facts),
        "table": _table(facts),
    }
    for name in ("same", "moved", "padded"):
        cosines = getattr(facts, name)
        values |= {f"{name}_mean": f"{cosines.mean:.6f}", f"{name}_least": f"{cosines.least:.6f}"}
    for name in ("name", "source", "sha256", "profile", "space", "crops", "dimension"):
        values[name] = shown(str(getattr(facts, name)))
    return Template(_TEXT.read_text(encoding="utf-8")).substitute(values)


def _further(facts: Facts) -> list[tuple[str, str]]:
    found = []
    if facts.in_graph is None:
        found.append((files.INFERSERVER, "settings of nvinferserver, for the network on a Triton server"))
    if facts.table_release:
        found.append((files.TABLE, f"INT8 ranges of the calibration, for TensorRT {facts.table_release}"))
    return found


def _in_graph(facts: Facts) -> str:
    if facts.in_graph is None:
        return "One scale fits all channels of this profile."
    factors = ", ".join(map(files.number, facts.in_graph))
    return (
        "One scale does not fit the channels of this profile,\nso the graph itself multiplies them by "
        f"{factors}. Its input has none of edge-agent's preprocess profiles."
    )


def _server(facts: Facts) -> str:
    if facts.in_graph is not None:
        return _NO_SERVER
    return (
        f"`nvinferserver config-file-path={files.INFERSERVER}` instead of the second nvinfer asks a Triton "
        f"server\nfor the model `{TAO_MODEL_NAME}`, which `edge-agent export --triton DIR --tao` writes."
    )


def _table(facts: Facts) -> str:
    if not facts.table_release:
        return ""
    return (
        f"\n`{files.TABLE}` is for TensorRT {facts.table_release}; another release refuses it. An export on "
        "the device\ntakes the installed release; or change the number in the first line. TensorRT 11 reads "
        "no table.\n"
    )
