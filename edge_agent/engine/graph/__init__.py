"""Puts pre- and post-processing into a network: any ReID or YOLOX ONNX -> pixels in, rows out.

The prepared ReID graph takes `crops`, `uint8 [N, H, W, 3]` BGR, and gives `embedding`, L2-normalised
`float32 [N, D]`. The prepared detector takes `frames`, `uint8 [N, H, W, 3]` BGR, and gives `rows`,
`float32 [N, A, 6]`. Reasons: `docs/decisions/002-preprocessing-inside-the-network.md`.
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.engine.graph.prepared import PreparedGraph, embedding_space
from edge_agent.engine.graph.profiles import PreprocessProfile
from edge_agent.engine.graph.reading import YOLOX_BOX_COLUMNS, Network, yolox_anchors
from edge_agent.engine.graph.rewriting import Rewriter

__all__ = ["prepare_detector", "prepare_reid"]


def prepare_reid(onnx_path: Path, profile: PreprocessProfile, *, normalise: bool = True) -> PreparedGraph:
    """Rewrite a ReID network so that it takes BGR pixels and gives unit-length embeddings.

    Args:
        onnx_path: the network as exported, with a dynamic batch axis: one floating point input
            `[N, 3, H, W]` or `[N, H, W, 3]`, one output `[N, D]` (or `[N, D, 1, 1]`).
        profile: preprocessing that the network was trained with.
        normalise: False keeps the network's own vector lengths, as TAO's inference files have them.

    Raises:
        ModelError: the file is missing, is not ONNX, or does not fit; the message explains the fix.
    """
    network = Network(onnx_path)
    layout = network.layout(batch_must_be_free=True)
    dimension = network.embedding_size()
    network.avoid_names({"crops", "embedding"})

    graph = Rewriter(network, layout)
    graph.add_normalised_input("crops", profile)
    rows = graph.float32_rows()
    onnx = graph.finish("embedding", graph.unit_length(rows) if normalise else rows, [None, dimension])
    return PreparedGraph(
        onnx=onnx,
        source=network.path,
        source_sha256=network.sha256,
        name=network.path.stem,
        input_size=layout.size,
        batch=None,
        profile=profile,
        dimension=dimension,
        space=embedding_space(network.sha256, profile, dimension, normalised=normalise),
        normalised=normalise,
        channels_last=layout.channels_last,
        half=layout.half,
    )


def prepare_detector(onnx_path: Path) -> PreparedGraph:
    """Rewrite a YOLOX network so that it takes letterboxed BGR pixels and gives only the person class.

    YOLOX takes raw BGR values (0..255). The rows of the prepared graph are the network's first six columns,
    unchanged: x, y, w, h, objectness, score of the first class (`person` in COCO). The host decodes the few
    rows above the threshold.

    Args:
        onnx_path: a YOLOX export (nano to x, or a custom one whose first class is a person), input
            `[N, 3, H, W]`, output `[N, A, 5 + classes]`, with or without `--decode_in_inference`.

    Raises:
        ModelError: the file is missing, is not ONNX, or is not a YOLOX detector.
    """
    network = Network(onnx_path)
    layout = network.layout(batch_must_be_free=False)
    network.check_yolox(layout.size)
    network.avoid_names({"frames", "rows"})

    graph = Rewriter(network, layout)
    graph.add_raw_input("frames")
    rows = graph.first_columns(YOLOX_BOX_COLUMNS + 1)
    shape = [layout.batch, yolox_anchors(layout.size), YOLOX_BOX_COLUMNS + 1]
    return PreparedGraph(
        onnx=graph.finish("rows", rows, shape),
        source=network.path,
        source_sha256=network.sha256,
        name=network.path.stem,
        input_size=layout.size,
        batch=layout.batch,
        profile=None,
        dimension=0,
        space="",
        normalised=False,
        channels_last=layout.channels_last,
        half=layout.half,
    )
