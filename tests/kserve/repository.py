"""Model repositories for the tests, in either kind: the prepared graph, or a network as TAO exports it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph
from edge_agent.engine.triton import contract


def write(
    repository: Path,
    name: str,
    source: Path,
    profile: str = "tao",
    *,
    raw: bool = False,
    stated: bool = True,
    most: int = 16,
    version: int = 1,
    **card: str,
) -> PreparedGraph:
    """Write a model; `raw`: as exported, else prepared; `stated`: with the parameters of an export."""
    prepared = prepare_reid(source, PROFILES[profile])
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes() if raw else prepared.onnx
    (folder / "model.onnx").write_bytes(content)
    graph = onnx.load_from_string(content).graph
    known = {weight.name for weight in graph.initializer}
    (entry,) = [one.name for one in graph.input if one.name not in known]
    target = graph.output[0].name
    height, width = prepared.input_size
    dims = f"3, {height}, {width}" if raw else f"{height}, {width}, 3"
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {most}",
        f'input [ {{ name: "{entry}" data_type: {"TYPE_FP32" if raw else "TYPE_UINT8"} dims: [ {dims} ] }} ]',
        f'output [ {{ name: "{target}" data_type: TYPE_FP32 dims: [ {prepared.dimension} ] }} ]',
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        "dynamic_batching { }",
        "version_policy { latest { num_versions: 1 } }",
    ]
    parameters = {
        contract.SPACE: prepared.space,
        contract.SHA256: prepared.source_sha256,
        contract.PROFILE: profile,
        contract.CARD: json.dumps({"name": prepared.name, **card}),
    }
    for key, value in (parameters if stated else {}).items():
        text = json.dumps(value)
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: {text} }} }}')
    (repository / name / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return prepared
