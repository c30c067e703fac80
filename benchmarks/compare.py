"""Comparison with alternatives: the same crops, the same network, one process, in turn.

    python -m benchmarks.compare [--dataset market1501/] [--model reid.onnx --preprocess imagenet]
    pip install --group compare     # the packages, in addition to reimplementations of their steps

Measured are crops per second from crops to embeddings (`benchmarks/peers.py` describes each alternative), the
host's CPU per crop without the network, and the search in a full gallery (`benchmarks/matching.py`). All run
in turn, in slices; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.service import one_blas_thread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.peers import Network

CROPS = {64: 128, 16: 64, 1: 16}
"""Crops per slice, by batch size: enough batches that they can overlap."""

SLOW = 16
"""Crops per slice of slow alternatives."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--dataset", type=Path, help="Market-1501 layout; rendered people by default")
    options.add_argument("--model", type=Path, help="ReID ONNX; the shipped one by default")
    options.add_argument("--preprocess", help="profile of --model")
    options.add_argument("--threads", type=int, default=1, help="of ONNX Runtime and PyTorch, for all")
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--identities", type=int, default=10_000)
    options.add_argument("--exemplars", type=int, default=4)
    options.add_argument("--output", type=Path, help="write the result as JSON")
    chosen = options.parse_args()
    if (chosen.model is None) != (chosen.preprocess is None):
        options.error("--model and --preprocess go together")
    one_blas_thread()
    result = measure(chosen)
    print(markdown(result), end="")
    if chosen.output is not None:
        from edge_agent.core.manifest import write_json_atomic

        write_json_atomic(chosen.output, result)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return all results as JSON values."""
    from benchmarks.matching import decisions, open_people, searches
    from edge_agent.core.logs import configure

    configure("warning")
    network = _network(chosen.model, chosen.preprocess, chosen.threads)
    crops = _read(chosen.dataset) if chosen.dataset is not None else _drawn(max(CROPS.values()))
    embedding, left_out = [], {}
    for batch, count in CROPS.items():
        rows, missing = _embedding(network, crops, batch, count, chosen.rounds)
        embedding += rows
        left_out.update(missing)
    with open_people(chosen.identities, chosen.exemplars) as people:
        matching, missing = searches(people, (1, 16), chosen.rounds)
        left_out.update(missing)
        decision = decisions(people, chosen.rounds)
    return {
        "crops": "of a data set" if chosen.dataset is not None else "drawn",
        "median_crop": [sorted(crop.shape[axis] for crop in crops)[len(crops) // 2] for axis in (1, 0)],
        "model": network.prepared.name,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "identities": chosen.identities,
        "exemplars": chosen.exemplars,
        "embedding": embedding,
        "matching": matching,
        "decision": decision,
        "left_out": left_out,
    }


def _network(model: Path | None, preprocess: str | None, threads: int) -> Network:
    from benchmarks.peers import Network
    from edge_agent.core.errors import ConfigError
    from edge_agent.engine.models import default_model, prepare_model

    path = model or default_model()
    if path is None:
        raise ConfigError("engines/default.onnx is not here; name a network with --model and --preprocess")
    prepared, golden = prepare_model(path, preprocess or "tao", None)
    return Network(prepared, golden, threads)


def _drawn(count: int) -> list[NDArray[np.uint8]]:
    """Return rendered people of many sizes; the same every time."""
    import numpy as np

    from edge_agent.offline.synthetic.camera import camera
    from edge_agent.offline.synthetic.crops import render_crop
    from edge_agent.offline.synthetic.identity import identity

    random = np.random.default_rng(3)
    return [
        render_crop(identity(number), camera(number % 8), random, size=None) for number in range(1, count + 1)
    ]


def _read(dataset: Path) -> list[NDArray[np.uint8]]:
    """Return the first crops of a data set's gallery."""
    from edge_agent.core.pictures import read_picture
    from edge_agent.offline.dataset import MarketDataset, Split

    crops = MarketDataset.open(dataset, (Split.GALLERY,)).split(Split.GALLERY)
    few = [read_picture(crop.path) for crop in crops[: max(CROPS.values())]]
    return (few * max(CROPS.values()))[: max(CROPS.values())]


def _embedding(
    network: Network, crops: list[NDArray[np.uint8]], batch: int, count: int, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of the table of crops per second, in batches of `batch`."""
    from benchmarks.peers import open_peers
    from benchmarks.slices import in_turn

    with ExitStack() as stack:
        peers, left_out = open_peers(network, batch, stack)
        given = {peer.name: crops[: min(count, SLOW) if peer.slow else count] for peer in peers}
        ours, rows = peers[0].name, {peer.name: peer.embed(given[peer.name]) for peer in peers}
        whole = in_turn({peer.name: partial(peer.embed, given[peer.name]) for peer in peers}, rounds)
        host = in_turn({peer.name: partial(peer.pack, given[peer.name]) for peer in peers}, rounds)
    result = []
    for peer in peers:
        one, alone, number = whole[peer.name], host[peer.name], len(given[peer.name])
        fewer = count / number
        result.append(
            {
                "name": peer.name,
                "network": peer.network,
                "batch": batch,
                "crops_per_second": number / one.wall,
                "ours_is_faster": fewer * one.wall_over(whole[ours]),
                "cpu_us_per_crop": 1e6 * one.cpu / number,
                "cpu_over_ours": fewer * one.cpu_over(whole[ours]),
                "host_cpu_us_per_crop": 1e6 * alone.cpu / number,
                "host_over_ours": fewer * alone.cpu_over(host[ours]),
                "cosine_to_ours": _cosine(rows[peer.name], rows[ours]),
            }
        )
    return result, left_out


def _cosine(theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> float | None:
    """Median cosine between embeddings of the same crop; None for another network."""
    import numpy as np

    if theirs.shape != ours.shape:
        return None
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    return float(np.median(np.einsum("nd,nd->n", theirs, ours) / lengths))


# --- tables -----------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    columns, rows = result["median_crop"]
    lines = [
        f"{result['model']} on ONNX Runtime, {_threads(result['threads'])}; {result['crops']} people,"
        f" {columns} x {rows} pixels in the median; medians of {result['rounds']} rounds.",
        "",
        "| from crops to embeddings | batch | crops/s | edge-agent is faster by | CPU per crop, over ours |"
        " without the network, over ours | cosine to ours |",
        "|---|---|---|---|---|---|---|",
        *map(_embedding_row, result["embedding"]),
        "",
        f"Search among {result['identities']} people with {result['exemplars']} embeddings each:",
        "",
        "| exact search | queries | CPU | over ours | same answers |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['queries']} | {row['cpu_ms']:.2f} ms | {row['cpu_over_ours']:.2f} x |"
            f" {100 * row['same_answers']:.0f} % |"
            for row in result["matching"]
        ),
        "",
        _decision(result["decision"]),
    ]
    if result["left_out"]:
        lines += ["", *(f"Left out: {name}: {why}." for name, why in result["left_out"].items())]
    return "\n".join(lines) + "\n"


def _threads(count: int) -> str:
    return {0: "a thread per core", 1: "one thread"}.get(count, f"{count} threads")


def _embedding_row(row: dict[str, Any]) -> str:
    own = "" if row["network"] == "the same" else f" ({row['network']})"
    cosine = "" if row["cosine_to_ours"] is None else f"{row['cosine_to_ours']:.3f}"
    return (
        f"| {row['name']}{own} | {row['batch']} | {row['crops_per_second']:.0f} |"
        f" {row['ours_is_faster']:.2f} x | {row['cpu_us_per_crop']:.0f} us, {row['cpu_over_ours']:.2f} x |"
        f" {row['host_cpu_us_per_crop']:.0f} us, {row['host_over_ours']:.2f} x | {cosine} |"
    )


def _decision(result: dict[str, Any]) -> str:
    return (
        f"The whole decision, {result['in_view']} known people in view over {result['frames']} frames, the"
        f" gallery's bookkeeping included: {result['cpu_us_per_crop']:.0f} us of CPU per crop. A product with"
        f" all embeddings and a loop over the identities for each crop:"
        f" {result['plain_cpu_us_per_crop']:.0f} us, {result['plain_over_ours']:.1f} x."
    )


if __name__ == "__main__":
    main()
