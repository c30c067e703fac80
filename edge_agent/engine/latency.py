"""Latencies of a network on other devices: published figures, and what-if files.

Published rows are those of NVIDIA's model card of ReIdentificationNet (ResNet50, 256 x 128), measured with
trtexec, the network alone. A what-if file has the same for a device or precision without published figures::

    {"device": "Jetson AGX Orin", "precision": "int8", "source": "guess: 1.6 x FP16",
     "latency_ms": {"1": 0.7, "16": 4.0, "64": 14.4}}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.manifest import read_json

__all__ = ["PUBLISHED", "PUBLISHED_SOURCE", "TABLES", "LatencyTable", "Published", "latency_table"]

PUBLISHED_SOURCE = (
    "Published rows: NVIDIA's model card of ReIdentificationNet (ResNet50, 256 x 128), by trtexec, "
    "the network alone."
)


@dataclass(frozen=True, slots=True)
class Published:
    """A row of NVIDIA's model card of ReIdentificationNet (ResNet50), measured with trtexec."""

    device: str
    precision: str
    batch: int
    latency_ms: float
    images_per_second: float


PUBLISHED = tuple(
    Published(device, precision, batch, latency, rate)
    for device, precision, rows in (
        ("A10", "mixed", ((1, 0.49, 2057.64), (16, 2.83, 5725.13), (64, 10.64, 6088.47))),
        ("A30", "mixed", ((1, 0.50, 2004.44), (16, 2.25, 7445.72), (64, 7.14, 9103.93))),
        ("Jetson AGX Orin", "fp16", ((1, 0.96, 1043.62), (16, 6.42, 2492.26), (64, 23.09, 2771.60))),
    )
    for batch, latency, rate in rows
)

_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Latency of a batch by its size.

    Attributes:
        name: the TABLE in `simulated:TABLE`.
        device: that was measured.
        precision: `fp32`, `fp16` or `int8`.
        source: where the times come from.
        batches: known sizes, ascending.
        seconds: latency of each.
    """

    name: str
    device: str
    precision: str
    source: str
    batches: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, count: int) -> float:
        """Return the seconds for a batch of `count` crops.

        Linear between two known sizes; above the largest at its rate, below the smallest its latency.
        """
        if count > self.batches[-1]:
            return self.seconds[-1] * count / self.batches[-1]
        return float(np.interp(count, self.batches, self.seconds))

    def rate(self, count: int) -> float:
        """Return images per second in batches of `count`."""
        return count / self.of(count)


def _published(name: str, device: str, precision: str) -> LatencyTable:
    """Make a table from the published rates, which have more digits than the published latencies."""
    rows = [row for row in PUBLISHED if row.device == device]
    return LatencyTable(
        name,
        device,
        precision,
        f"{PUBLISHED_SOURCE} {rows[0].precision}",
        tuple(row.batch for row in rows),
        tuple(row.batch / row.images_per_second for row in rows),
    )


TABLES = {
    table.name: table
    for table in (
        _published("orin-fp16", "Jetson AGX Orin", "fp16"),
        _published("a10-mixed", "A10", "fp16"),
        _published("a30-mixed", "A30", "fp16"),
    )
}


def latency_table(wanted: str) -> LatencyTable:
    """Return a published table by name, or read a what-if file by path.

    Raises:
        ConfigError: there is neither.
        InputError: the file is not a table.
    """
    if wanted in TABLES:
        return TABLES[wanted]
    path = Path(wanted)
    if not path.is_file():
        raise ConfigError(
            f"no latency table {wanted!r}: choose {', '.join(TABLES)}, or name a JSON file such as"
            ' {"device": "...", "precision": "int8", "source": "...", "latency_ms": {"1": 0.7, "64": 14.4}}'
        )
    return _read(path)


def _read(path: Path) -> LatencyTable:
    found = read_json(path)
    missing = {"device", "precision", "source", "latency_ms"} - found.keys()
    if missing:
        raise InputError(f"{path}: the latency table has no {', '.join(sorted(missing))}")
    if found["precision"] not in _PRECISIONS:
        raise InputError(f"{path}: precision {found['precision']!r}; choose of {', '.join(_PRECISIONS)}")
    try:
        rows = sorted((int(batch), float(ms) / 1e3) for batch, ms in found["latency_ms"].items())
    except (AttributeError, TypeError, ValueError):
        rows = []
    if not rows or rows[0][0] < 1 or not all(0 < seconds < 1e3 for _, seconds in rows):
        raise InputError(f"{path}: latency_ms must map batch sizes from 1 on to milliseconds above 0")
    batches, seconds = zip(*rows, strict=True)
    return LatencyTable(
        path.stem, str(found["device"]), found["precision"], str(found["source"]), batches, seconds
    )
