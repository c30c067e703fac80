"""Activation ranges of a network, the source of all INT8 engines.

A range is the largest absolute value (amax) that a tensor is expected to have. INT8 is symmetric on all
backends: scale = amax / 127, zero point 0. The same ranges go into the Q/DQ graph (ONNX Runtime, TensorRT 8
to 11) and into a calibration cache (TensorRT 8 to 10).

The text of a calibration cache::

    TRT-100300-EntropyCalibration2
    input_1:0: 3c010a14

One line per tensor: its name and eight hex digits of the big-endian float32 scale. Source of the format:
onnxruntime, `tensorrt_execution_provider_utils.h`, `ReadDynamicRange`; NVIDIA TAO's exporter writes the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from edge_agent.core.errors import InputError, ModelError
from edge_agent.core.manifest import Manifest

INT8_MAX = 127
"""Largest step of symmetric INT8; -128 is not used."""

Algorithm = Literal["EntropyCalibration2", "MinMaxCalibration"]
"""Names of TensorRT's two calibrators in a cache."""

_KIND = "scales"
_VERSION = 1
_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_SMALLEST = 2.0**-126
"""Smallest normal float32: a scale below it is zero on a GPU."""
_LARGEST = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class Scales:
    """Ranges of a network's tensors; ModelError where there are none, or one has no scale in float32.

    Attributes:
        amax: largest absolute value by tensor name, sorted by name. Nodes that read a tensor without a range
            stay in higher precision.
        method: how they were found: `entropy`, `minmax` or `percentile`.
        model_sha256: SHA-256 of the prepared graph (`PreparedGraph.onnx`) whose tensors these are.
    """

    amax: Mapping[str, float]
    method: str
    model_sha256: str

    def __post_init__(self) -> None:
        if not self.amax:
            raise ModelError("no ranges: the network has no floating point tensor, or none was observed")
        for name, value in self.amax.items():
            _check(name, value)
        object.__setattr__(self, "amax", {name: float(self.amax[name]) for name in sorted(self.amax)})

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all attributes."""
        text = json.dumps(self._document(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def scale(self, tensor: str) -> float | None:
        """Return the value of one INT8 step, None for a tensor without a range."""
        amax = self.amax.get(tensor)
        return None if amax is None else amax / INT8_MAX

    def write(self, path: Path) -> None:
        """Write the ranges as a manifest; StorageError where that fails."""
        Manifest(_KIND, _VERSION, files={}, data={**self._document(), "digest": self.digest}).write(path)

    @staticmethod
    def read(path: Path) -> Scales:
        """Read a file of `write`; InputError where it is missing, damaged or was changed."""
        data = Manifest.read(path, kind=_KIND, version=_VERSION).data
        try:
            found = Scales(
                {str(name): float(value) for name, value in data["amax"].items()},
                str(data["method"]),
                str(data["model_sha256"]),
            )
            digest = str(data["digest"])
        except (KeyError, TypeError, ValueError, AttributeError, ModelError) as problem:
            what = f"key {problem} is missing" if isinstance(problem, KeyError) else str(problem)
            raise InputError(f"{path} holds damaged scales: {what}; calibrate again") from problem
        if digest != found.digest:
            raise InputError(f"{path} was changed since it was written (digest differs); calibrate again")
        return found

    def cache(self, trt_version: int, algorithm: Algorithm) -> bytes:
        """Return the ranges as TensorRT's calibration cache; ModelError where a name has a line break.

        TensorRT refuses a cache whose header names another version or algorithm, so it is rendered for the
        running version (a number such as 8602 or 100300, see `calibrator.header_number`) and never stored.
        """
        lines = [f"TRT-{trt_version}-{algorithm}"]
        for name, amax in self.amax.items():
            if "\n" in name or "\r" in name:
                raise ModelError(f"tensor {name!r} has a line break in its name: rename it and export again")
            lines.append(f"{name}: {struct.pack('>f', amax / INT8_MAX).hex()}")
        return ("\n".join(lines) + "\n").encode()

    def _document(self) -> dict[str, object]:
        return {"amax": dict(self.amax), "method": self.method, "model_sha256": self.model_sha256}


def _check(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ModelError(f"tensor {name!r} has the range {value!r}, expected a finite number above zero")
    if not _SMALLEST <= value / INT8_MAX <= _LARGEST:
        raise ModelError(f"tensor {name!r} has the range {value!r}, whose scale does not fit float32")


@dataclass(frozen=True, slots=True)
class Cache:
    """Version and algorithm in the header of a calibration cache, and 127 times each scale by tensor name."""

    trt_version: int
    algorithm: Algorithm
    amax: dict[str, float]


def read_cache(data: bytes) -> Cache:
    """Read a calibration cache; InputError where it is none, or has a damaged line (with its number)."""
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as problem:
        raise InputError("not a calibration cache: it is not UTF-8 text") from problem
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None or header[2] not in get_args(Algorithm):
        known = " or ".join(f"TRT-<version>-{name}" for name in get_args(Algorithm))
        raise InputError(f"not a calibration cache that is read here: expected {known} in its first line")
    amax = {}
    for number, line in enumerate(lines[1:], 2):
        name, separator, digits = line.rpartition(": ")
        if not separator or re.fullmatch("[0-9a-f]{8}", digits) is None:
            raise InputError(
                f"calibration cache, line {number}: expected `tensor: 8 hex digits`, got {line!r}"
            )
        amax[name] = struct.unpack(">f", bytes.fromhex(digits))[0] * INT8_MAX
    return Cache(int(header[1]), cast("Algorithm", header[2]), amax)
