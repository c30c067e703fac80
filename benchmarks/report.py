"""Tables and pictures of `docs/performance.md`, generated from the committed results.

A table is between `<!-- results: NAME -->` and `<!-- end -->`, with the NAME of a result. `python -m
benchmarks report` writes it, and a test compares it with the results.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    compare,
    fleet,
    fleet_street,
    gallery,
    idle,
    memory,
    overload,
    path,
    results,
    search,
    startup,
    summary,
)
from benchmarks.catalogue import GROWTH_FPS, REPO
from benchmarks.plots import KEPT, LOST, breaks_at, curve, slope
from edge_agent.core.manifest import write_atomic
from edge_agent.offline.charts import Series

__all__ = ["DOCUMENT", "PICTURES", "pictures", "spliced", "write"]

DOCUMENT = REPO / "docs" / "performance.md"
PICTURES = REPO / "docs" / "images"

_PLACE = re.compile(r"(<!-- results: (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FIRST = re.compile(r"(<!-- summary -->\n).*?(<!-- end -->)", re.DOTALL)
_BLUE, _GREY = "#26a", "#999"

Result = Mapping[str, Any]
Steps = Sequence[tuple[Mapping[str, Any], dict[str, Any]]]
"""Point and result of each step that has a result."""


def write(folder: Path) -> int:
    """Write the results of a folder into the document, and draw its pictures."""
    found = results.read(folder)
    write_atomic(DOCUMENT, spliced(DOCUMENT.read_text(), found).encode())
    for name, drawn in pictures(found).items():
        write_atomic(PICTURES / name, drawn.encode())
    return 0


def spliced(text: str, found: Mapping[str, Result]) -> str:
    """Return the document with the tables of these results."""

    def table(match: re.Match[str]) -> str:
        result = found.get(match["name"])
        body = "Not measured yet.\n" if result is None else "\n".join(_section(match["name"], result)) + "\n"
        return f"{match[1]}\n{body}\n{match[3]}"

    first = "\n".join(summary.markdown(found))
    text = _FIRST.sub(lambda match: f"{match[1]}\n{first}\n\n{match[2]}", text)
    return _PLACE.sub(table, text)


def pictures(found: Mapping[str, Result]) -> dict[str, str]:
    """Return the pictures of the results as SVG by file name."""
    return {
        f"performance-{name}.svg": draw(_steps(found[name])) for name, draw in _DRAWN.items() if name in found
    }


def _section(name: str, result: Result) -> Iterator[str]:
    yield from _TABLES.get(name, _figures)(_steps(result))
    if name in _DRAWN:
        yield ""
        yield f"![{result['about']}](images/performance-{name}.svg)"
    yield ""
    yield _taken(result)


def _steps(result: Result) -> Steps:
    return [(step["point"], step["result"]) for step in result["steps"] if "result" in step]


def _taken(result: Result) -> str:
    """The circumstances of a measurement."""
    machine = result["machine"]
    failed = [step["failed"] for step in result["steps"] if "failed" in step]
    commit = "no commit" if result["commit"] is None else result["commit"][:8]
    commit += " with changes" if result["changed_since"] else ""
    line = (
        f"*{result['taken'][:10]}, {commit}; {machine['cores']} cores of"
        f" {machine['cpu'] or machine['platform']}, load {result['load_average'][0]:.1f} before.*"
    )
    return " ".join([line, *(f"Failed: {reason}." for reason in failed)])


# --- the whole pipeline -----------------------------------------------------------------------


def _pipeline_rows(steps: Steps, key: str, unit: str = "") -> Iterator[str]:
    """One row per run."""
    yield (
        f"| {key} | offered/s | crops/s | the engine alone | ratio | engine busy | frames lost |"
        " frame to decision p50 / p95 | to event p50 / p95 / p99 | CPU per crop | cores used |"
    )
    yield "|---" * 11 + "|"
    for point, result in steps:
        cpu = result["cpu"]
        yield (
            f"| {point[key]}{unit} | {result['offered_per_second']:.0f} | {result['images_per_second']:.0f} |"
            f" {result['engine_limit']:.0f}/s | {result['ratio']:.3f} | {result['engine_busy']:.2f} |"
            f" {100 * _lost(result):.1f} % | {_percentiles(result['frame_ms'], 'p50', 'p95')} |"
            f" {_percentiles(result['latency_ms'], 'p50', 'p95', 'p99')} | {cpu['us_per_crop']:.0f} us |"
            f" {cpu['process_cores']:.2f} |"
        )


def _percentiles(of: Mapping[str, float | None], *names: str) -> str:
    if of["p50"] is None:
        return "none"
    return " / ".join(f"{of[name]:.0f}" for name in names) + " ms"


def _lost(result: Result) -> float:
    lost = sum(result["dropped_frames"].values())
    return float(lost / max(1, lost + result["frames"]))


def _reach(steps: Steps) -> Iterator[str]:
    yield from _pipeline_rows(steps, "batch")
    result = steps[0][1]
    yield ""
    yield (
        f"Events published {result['events_published']}, acknowledged by {result['broker']}"
        f" {result['events_acknowledged']}, in {result['seconds']:.0f} s measured and the start; memory"
        f" {result['memory_mb']:.0f} MB. Time of the driving thread by stage, per crop:"
    )
    yield ""
    yield "| stage | time |"
    yield "|---|---|"
    for name, spent in result["stages"].items():
        if spent["wall_us_per_crop"] >= 1:
            yield f"| {name} | {spent['wall_us_per_crop']:.0f} us |"


def _saturation(steps: Steps) -> Iterator[str]:
    named = [
        ({"cameras x people": f"{point['cameras']} x {point['people']}"}, result) for point, result in steps
    ]
    yield from _pipeline_rows(named, "cameras x people")


def _faster(steps: Steps) -> Iterator[str]:
    yield from _pipeline_rows(steps, "rate", " x")
    reached = max((result["images_per_second"], point["rate"]) for point, result in steps)
    fed = [point["rate"] for point, result in steps if result["ratio"] >= 0.95]
    yield ""
    yield (
        f"Highest rate of the host: {reached[0]:.0f} crops/s, with the engine of {reached[1]:g} times the"
        f" published rate. Fastest engine that it keeps at a ratio of .95 or more: "
        + (f"{max(fed):g} x." if fed else "none of these.")
    )


def _grows(key: str) -> Callable[[Steps], Iterator[str]]:
    def table(steps: Steps) -> Iterator[str]:
        yield from _pipeline_rows(steps, key)
        yield ""
        yield _growth_words(key, steps)

    return table


def _broken(key: str, steps: Steps) -> float | None:
    return breaks_at(
        [
            (point[key], result["images_per_second"] / result["offered_per_second"], _lost(result))
            for point, result in steps
        ]
    )


def _growth_words(key: str, steps: Steps) -> str:
    broken = _broken(key, steps)
    held = [(p, result) for p, result in steps if broken is None or p[key] < broken]
    rate = slope([(point[key], result["images_per_second"]) for point, result in held])
    cost = slope([(point[key], result["cpu"]["us_per_crop"]) for point, result in held])
    where = "It does not break" if broken is None else f"It breaks at {broken:g}"
    slopes = (
        "too few points before that for a slope"
        if rate is None or cost is None
        else f"until then crops/s grow as {key} to the power of {rate:.2f}, CPU per crop as {cost:.2f}"
    )
    return (
        f"{where} (embedded share of the offered crops below {KEPT:g} of the best share, or more than"
        f" {100 * LOST:g} % of the frames lost); {slopes}."
    )


def _growth_picture(key: str) -> Callable[[Steps], str]:
    def draw(steps: Steps) -> str:
        fps = f"{key}, {GROWTH_FPS:g} frames/s each" if key == "cameras" else f"{key} in view of each camera"
        return curve(fps, "crops/s", _lines(key, steps), _broken(key, steps))

    return draw


def _lines(key: str, steps: Steps) -> list[Series]:
    """Offered crops, up to the engine's limit, and embedded crops."""
    possible = [(p[key], min(result["offered_per_second"], result["engine_limit"])) for p, result in steps]
    return [
        Series("offered, up to the engine's limit", _GREY, possible),
        Series("embedded", _BLUE, [(point[key], result["images_per_second"]) for point, result in steps]),
    ]


def _faster_picture(steps: Steps) -> str:
    lines = [
        Series("the engine alone", _GREY, [(p["rate"], result["engine_limit"]) for p, result in steps]),
        Series("embedded", _BLUE, [(p["rate"], result["images_per_second"]) for p, result in steps]),
    ]
    fed = [point["rate"] for point, result in steps if result["ratio"] < 0.95]
    return curve("rate of the engine over the published one", "crops/s", lines, min(fed, default=None))


def _onnxruntime(steps: Steps) -> Iterator[str]:
    yield "| network | run | crops/s | bare session | ratio | crops in a batch | CPU of the driving thread |"
    yield "|---|---|---|---|---|---|---|"
    for point, result in steps:
        host = 1e6 * result["cpu"]["by_thread"].get("MainThread", 0.0) / result["images_per_second"]
        yield (
            f"| {point['model']} | {point['run']} | {result['images_per_second']:.0f} |"
            f" {result['engine_limit']:.0f}/s | {result['ratio']:.3f} | {result['mean_batch']:.1f} |"
            f" {host:.0f} us per crop |"
        )
    yield ""
    yield f"Median ratio: {statistics.median(result['ratio'] for _, result in steps):.3f}."


def _gallery(steps: Steps) -> Iterator[str]:
    for _, result in steps:
        yield gallery.markdown({int(size): of for size, of in result["sizes"].items()}, result["slopes"])


def _overload(steps: Steps) -> Iterator[str]:
    for _, result in steps:
        yield overload.markdown(result["one"])
        yield ""
        yield overload.markdown(result["two"])


def _own(table: Callable[[dict[str, Any]], str]) -> Callable[[Steps], Iterator[str]]:
    """A benchmark with its own table function."""
    return lambda steps: (table(result) for _, result in steps)


# --- parts ------------------------------------------------------------------------------------


def _compared(steps: Steps) -> Iterator[str]:
    yield from compare.markdown(steps[0][1]).rstrip("\n").split("\n")


def _figures(steps: Steps) -> Iterator[str]:
    """All figures, for results without their own table."""
    for _, result in steps:
        yield from _any(result, "")


def _any(value: Any, title: str) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Objects with equal keys as rows of one table, single figures as rows of another, others separately."""
    if alike := _alike(value):
        columns = list(alike[0][1])
        yield from ("", f"{title}:", "") if title else ()
        yield f"| | {' | '.join(columns)} |"
        yield "|---" * (len(columns) + 1) + "|"
        for name, row in alike:
            yield f"| {name} | {' | '.join(_said(row[column]) for column in columns)} |"
        return
    items = value if isinstance(value, dict) else dict(enumerate(value, 1))
    single = {name: item for name, item in items.items() if not _nested(item)}
    if single:
        yield from ("", f"{title}:", "") if title else ()
        yield "| figure | value |"
        yield "|---|---|"
        yield from (f"| {name} | {_said(item)} |" for name, item in single.items())
    for name, item in items.items():
        if name not in single and name != "machine":  # which is below every table
            yield from _any(item, f"{title}, {name}" if title else str(name))


def _nested(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_nested, value)))


def _alike(value: Any) -> list[tuple[str, dict[str, Any]]]:  # noqa: ANN401
    """Names and figures of at least two objects with the same keys; else an empty list."""
    named = [
        (str(n), item) for n, item in (value.items() if isinstance(value, dict) else enumerate(value, 1))
    ]
    if len(named) < 2 or not all(isinstance(item, dict) for _, item in named):
        return []
    rows = [(name, dict(_flat(item, ""))) for name, item in named]
    return rows if len({tuple(row) for _, row in rows}) == 1 else []


def _flat(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        where = f"{path} {name}".strip()
        if isinstance(item, dict):
            yield from _flat(item, where)
        else:
            yield where, item


def _said(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(_said, value)) if isinstance(value, list) else str(value)


_TABLES: dict[str, Callable[[Steps], Iterator[str]]] = {
    "batch-64": _reach,
    "batch-1": _reach,
    "half-load": lambda steps: _pipeline_rows(steps, "batch"),
    "faster-engines": _faster,
    "saturation": _saturation,
    "cameras": _grows("cameras"),
    "people": _grows("people"),
    "path": path.markdown,
    "onnxruntime": _onnxruntime,
    "onnxruntime-osnet": _onnxruntime,
    "onnxruntime-resnet50": _onnxruntime,
    "compare": _compared,
    "gallery": _gallery,
    "overload": _overload,
    "startup": _own(startup.markdown),
    "idle": _own(idle.markdown),
    "memory": _own(memory.markdown),
    "search": _own(search.markdown),
    "fleet": _own(fleet.markdown),
    "fleet-large": _own(fleet.markdown),
    "soak": _own(memory.soak_markdown),
    "fleet-street": _own(fleet_street.markdown),
}

_DRAWN: dict[str, Callable[[Steps], str]] = {
    "faster-engines": _faster_picture,
    "cameras": _growth_picture("cameras"),
    "people": _growth_picture("people"),
}
