"""How much each block of a network suffers from INT8, and which blocks to leave out until a gate passes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError
from edge_agent.engine.graph.nodes import Block, Topology, load_named
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine
from edge_agent.engine.precision.scales import Scales
from edge_agent.offline.calibrate.quantise import quantisable, quantise

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Loss:
    """Loss with one block alone in INT8: 1 - mean, and 1 - lowest cosine of embeddings to those of FP32."""

    block: Block
    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Nodes to keep in higher precision, their blocks, worst first; if a gate passed; gates that were run."""

    keep: tuple[str, ...]
    blocks: tuple[str, ...]
    passed: bool
    tries: int


def blocks(prepared: PreparedGraph) -> tuple[Block, ...]:
    """Return the quantisable blocks in order: whole residual blocks, and other nodes one by one."""
    return tuple(Topology(load_named(prepared.onnx)).blocks(quantisable(prepared)))


def cosines(
    prepared: PreparedGraph, crops: NDArray[np.uint8], reference: NDArray[np.float32]
) -> NDArray[np.float64]:
    """`(N,)` cosine of each crop's embedding to its row of `reference` `(N, D)`, under ONNX Runtime."""
    a, b = _embed(prepared, crops).astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = np.einsum("nd,nd->n", a, b) / lengths
    return found


def measure(
    prepared: PreparedGraph,
    scales: Scales,
    crops: NDArray[np.uint8],
    *,
    cache: MutableMapping[str, list[float]] | None = None,
    advance: Callable[[str], None] | None = None,
) -> tuple[Loss, ...]:
    """Quantise each block of the FP32 graph alone; return the losses against FP32, worst block first.

    32 to 64 crops, `(N, H, W, 3)` uint8 BGR, are enough to rank the blocks. `cache` has results by block,
    read and extended after each block, so that a caller that stores it can continue after an
    interruption; its keys cover graph, ranges and crops. `advance` is called with the name of each
    finished block.

    Raises:
        ModelError: as `quantise`, no block can be quantised, or ONNX Runtime refuses a graph.
    """
    known: MutableMapping[str, list[float]] = {} if cache is None else cache
    inputs = hashlib.sha256(f"{scales.digest}{hashlib.sha256(crops.tobytes()).hexdigest()}".encode())
    reference: NDArray[np.float32] | None = None
    everything = quantisable(prepared)
    losses: list[Loss] = []
    for block in blocks(prepared):
        key = f"{inputs.hexdigest()[:16]}:{block.name}:{len(block.nodes)}:{block.nodes[0]}"
        if key not in known:
            if reference is None:
                reference = _embed(prepared, crops)
            alone = _only(prepared, scales, everything, block)
            found = np.ones(len(crops)) if alone is None else cosines(alone, crops, reference)
            known[key] = [float(1 - found.mean()), float(1 - found.min())]
        losses.append(Loss(block, *known[key]))
        if advance is not None:
            advance(block.name)
    if not losses:
        raise ModelError(f"{prepared.name} has no block that INT8 could compute")
    return tuple(sorted(losses, key=lambda loss: loss.mean, reverse=True))


def choose_keep(losses: Sequence[Loss], passes: Callable[[tuple[str, ...]], bool]) -> Choice:
    """Choose the fewest of the worst blocks that must keep a higher precision for the gate to pass.

    0, 1, 2, 4, ... of the worst blocks are tried until the gate passes, then bisection between the last two
    counts. A gate embeds a whole evaluation split, so it runs about 2 log2(blocks) times, not once per block.
    At least one block is always quantised. `losses` are worst first; `passes` runs the gate with these nodes
    kept in higher precision.
    """
    asked: dict[int, bool] = {}

    def nodes(count: int) -> tuple[str, ...]:
        return tuple(name for loss in losses[:count] for name in loss.block.nodes)

    def ask(count: int) -> bool:
        if count not in asked:
            asked[count] = passes(nodes(count))
        return asked[count]

    most = max(0, len(losses) - 1)
    failed, count = -1, 0
    while not ask(count) and count < most:
        failed, count = count, min(most, max(1, 2 * count))
    while asked[count] and count - failed > 1:
        middle = (failed + count) // 2
        if ask(middle):
            count = middle
        else:
            failed = middle
    names = tuple(loss.block.name for loss in losses[:count])
    return Choice(nodes(count), names, passed=asked[count], tries=len(asked))


def _only(
    prepared: PreparedGraph, scales: Scales, everything: Sequence[str], block: Block
) -> PreparedGraph | None:
    """The graph with one block in INT8; None where none of its inputs has a range."""
    inside = set(block.nodes)
    topology = Topology(load_named(prepared.onnx))
    inputs = [node.input[0] for node in topology.nodes if node.name in inside]
    if all(scales.scale(name) is None for name in inputs):
        return None
    return quantise(prepared, scales, keep=[name for name in everything if name not in inside])


def _embed(prepared: PreparedGraph, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    if not len(crops):
        raise ModelError("no crops to compare embeddings on")
    parts = []
    with OnnxRuntimeEngine(prepared, max_batch=_BATCH, threads=0) as engine:
        for start in range(0, len(crops), _BATCH):
            chunk = crops[start : start + _BATCH]
            engine.buffer()[: len(chunk)] = chunk
            engine.submit(len(chunk))
            parts.append(engine.collect())
    return np.concatenate(parts)
