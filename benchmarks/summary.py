"""The first table of `docs/performance.md`: what a user gets, compared with what.

Each line is a function of the results by name, which raises KeyError where its result is missing; then the
line is left out.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.memory import slope

__all__ = ["markdown"]

Results = Mapping[str, Mapping[str, Any]]
SEARCHED = 40_000
"""Embeddings of the searched gallery."""
Line = tuple[str, str, str]
"""What is measured, what comes out, and what it is compared with."""


def markdown(found: Results) -> Iterator[str]:
    """Yield the table of these results."""
    yield "| | measured | compared with |"
    yield "|---|---|---|"
    for lines in LINES:
        try:
            made = list(lines(found))
        except KeyError:
            continue
        yield from (f"| {what} | {value} | {beside} |" for what, value, beside in made)
    yield ""
    yield _machines(found)


def _machines(found: Results) -> str:
    """Return the machines and the commits of the results."""
    machines = {(result["machine"]["cores"], result["machine"]["cpu"]) for result in found.values()}
    words = " and ".join(f"{cores} cores of {cpu or 'unnamed'}" for cores, cpu in sorted(machines, key=str))
    commits = Counter((result["commit"] or "no commit")[:8] for result in found.values())
    most, count = commits.most_common(1)[0] if commits else ("none", 0)
    others = f", {len(found) - count} of {len(found)} results of others" if count < len(found) else ""
    return (
        f"*Measured on {words}, not on a Jetson; the engine is simulated with its published latency. Commit"
        f" {most}{others}; date and commit are below each table.*"
    )


def _steps(found: Results, name: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return point and result of the steps of a benchmark; KeyError where it was not measured."""
    steps = [(step["point"], step["result"]) for step in found[name]["steps"] if "result" in step]
    if not steps:
        raise KeyError(name)
    return steps


def _reach(found: Results) -> Iterator[Line]:
    for name, what in (
        ("batch-64", "8 cameras, 8 people each, an AGX Orin's engine in batches of 64"),
        ("batch-1", "1 camera, 1 person, batches of one"),
    ):
        _, result = _steps(found, name)[0]
        yield (
            what,
            f"{result['images_per_second']:.0f} crops/s, **{result['ratio']:.3f}** of the engine alone",
            f"{result['engine_limit']:.0f}/s, the published rate of the engine",
        )


def _latency(found: Results) -> Iterator[Line]:
    _, result = _steps(found, "half-load")[0]
    latency = result["latency_ms"]
    yield (
        "from the frame to its event at a subscriber, at half of that rate",
        f"{latency['p50']:.0f} ms, 95th percentile **{latency['p95']:.0f} ms**",
        f"{result['frame_ms']['p95']:.0f} ms to the decision (95th percentile)",
    )


def _saturation(found: Results) -> Iterator[Line]:
    for point, result in _steps(found, "saturation"):
        lost = sum(result["dropped_frames"].values())
        share = lost / max(1, lost + result["frames"])
        yield (
            f"{point['cameras']} cameras x {point['people']} people, {result['offered_per_second']:.0f}"
            " crops/s offered",
            f"**{result['ratio']:.3f}** of the engine alone, {100 * share:.1f} % of the frames lost,"
            f" {result['frame_ms']['p95']:.0f} ms to the decision (95th percentile)",
            f"{result['engine_limit']:.0f}/s, the published rate of the engine",
        )


def _session(found: Results) -> Iterator[Line]:
    for name, network in (
        ("onnxruntime", "the shipped network"),
        ("onnxruntime-osnet", "OSNet x0.25"),
        ("onnxruntime-resnet50", "a ResNet50"),
    ):
        ratios = [result["ratio"] for _, result in _steps(found, name)]
        yield (
            f"the whole agent with {network} on ONNX Runtime, on the CPU",
            f"**{statistics.median(ratios):.3f}** of the bare session (median of {len(ratios)})",
            "`session.run` on full batches, same cores",
        )


def _peers(found: Results) -> Iterator[Line]:
    _, result = _steps(found, "compare")[0]
    for batch in sorted({row["batch"] for row in result["embedding"]}):
        rows = [
            row
            for row in result["embedding"]
            if row["batch"] == batch and row["network"] == "the same" and row["name"] != "edge-agent"
        ]
        nearest = min(rows, key=lambda row: row["ours_is_faster"])
        yield (
            f"crops to embeddings, the same network, batch {batch}, one thread",
            f"**{nearest['ours_is_faster']:.2f} x** as fast as the fastest alternative",
            nearest["name"],
        )


def _search(found: Results) -> Iterator[Line]:
    _, result = _steps(found, "search")[0]
    for row in result["rows"]:
        if row["rows"] == SEARCHED and "FAISS flat" in row["cpu_ms"]:
            queries = "one query" if row["queries"] == 1 else f"{row['queries']} queries"
            each = result["exemplars"]
            yield (
                f"exact search: {queries}, {row['identities']:,} people with {each} embeddings",
                f"{row['cpu_ms']['edge-agent']:.2f} ms, **{row['over_ours']['FAISS flat']:.2f} x** as fast",
                f"FAISS `IndexFlatIP`, {row['cpu_ms']['FAISS flat']:.2f} ms",
            )


def _memory(found: Results) -> Iterator[Line]:
    _, result = _steps(found, "memory")[0]
    of, whole = result["bytes"], result["runs"][-1]
    yield (
        f"memory: {whole['cameras']} cameras of 1920 x 1080, {whole['identities']:,} people in the gallery",
        f"**{whole['peak'] / 1e6:.0f} MB** at most",
        f"{of['camera'] / 1e6:.0f} MB each further camera, {of['track'] / 1e3:.0f} kB a person in view,"
        f" {of['identity'] / 1e3:.1f} kB a person in the gallery",
    )


def _soak(found: Results) -> Iterator[Line]:
    _, result = _steps(found, "soak")[0]
    resident = slope(result, "resident_mb")
    yield (
        f"an hour with new people all the time: {result['evicted']:,} enrolled and as many evicted",
        f"memory **{resident['per_hour']:+.1f} MB per hour** in the last quarter",
        f"{resident['greatest']:.0f} MB at most, {resident['first']:.0f} MB at the start",
    )


LINES: tuple[Callable[[Results], Iterator[Line]], ...] = (
    _reach,
    _latency,
    _saturation,
    _session,
    _peers,
    _search,
    _memory,
    _soak,
)
"""In the order of the table; each part of the agent adds its own."""
