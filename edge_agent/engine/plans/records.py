"""What a plan is made from, and what is recorded about it.

A plan is executable content, made for one graph, one TensorRT, one driver and one GPU. Its key is the SHA-256
of all of that, see `Order`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Role = Literal["current", "previous"]
"""Which engine uses a plan: the active one, or the one that was active before it."""

Verdict = Literal["ok", "unchecked", "stale", "foreign", "damaged"]
"""Whether a plan may be loaded. `unchecked`: without a GPU to compare with; `stale`: built on this device for
another TensorRT, driver or GPU; `foreign`: built on another device; `damaged`: incomplete or changed."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan runs on. A plan does not run, or is not tuned, on a machine that differs.

    `driver` is its CUDA version, e.g. `12.6`; `compute_capability` e.g. `8.7`; power modes of a Jetson can
    switch `multiprocessors` off; `memory_gib` is from `memory_class_gib`.
    """

    tensorrt: str
    driver: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    memory_gib: int

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return `TensorRT 10.3.0 instead of 10.16.2` for each fact in which `other` differs."""
        names = {"tensorrt": "TensorRT", "gpu": "GPU", "driver": "driver"}
        return [
            f"{names.get(fact, fact.replace('_', ' '))} {other.get(fact)} instead of {value}"
            for fact, value in asdict(self).items()
            if other.get(fact) != value
        ]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a plan is made from, apart from the machine.

    Attributes:
        graph_sha256: of the prepared ONNX.
        profiles: batch of each optimisation profile.
        scales: digest of the INT8 ranges, or of the pictures that TensorRT finds them with; None where the
            graph contains the ranges or needs none.
        keep: layers in higher precision.
        dla_core: accelerator that the plan runs on; None: the GPU.
        gpu_fallback: whether layers that the accelerator does not support run on the GPU.
        flags: names of the builder flags.
        workspace_mb: configured limit; None when it follows from free memory.
        builder: version of the code that builds.
    """

    graph_sha256: str
    precision: str
    profiles: tuple[int, ...]
    scales: str | None
    keep: tuple[str, ...]
    dla_core: int | None
    gpu_fallback: bool
    flags: tuple[str, ...]
    workspace_mb: int | None
    builder: int


@dataclass(frozen=True, slots=True)
class Order:
    """A plan that is wanted: its recipe and its machine."""

    recipe: Recipe
    machine: Machine

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of recipe and machine, 64 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan that this device built, unchanged since.

    Attributes:
        key: of its order.
        batches: largest batch of each optimisation profile, ascending, e.g. `(1, 16, 64)`.
        precision: `fp32`, `fp16` or `int8`.
        data: what TensorRT serialised.
        facts: recorded when it was built.
    """

    key: str
    batches: tuple[int, ...]
    precision: str
    data: bytes
    facts: Mapping[str, Any]

    @staticmethod
    def of(order: Order, data: bytes, facts: Mapping[str, Any]) -> StoredPlan:
        """Make the plan of an order."""
        return StoredPlan(order.key, order.recipe.profiles, order.recipe.precision, data, facts)


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """A plan in the store, for reports.

    Attributes:
        bytes: size of the plan; None when the file is missing.
        created: build time, UTC; None where the manifest cannot be read.
        used: time of the last build or load, seconds since the epoch.
        profiles: batch of each optimisation profile.
        machine: facts of the `Machine` that it was built for.
        problem: why it may not be loaded, or "".
    """

    key: str
    bytes: int | None
    created: str | None
    used: float
    model: str | None
    precision: str | None
    profiles: tuple[int, ...]
    machine: Mapping[str, Any]
    role: Role | None
    verdict: Verdict
    problem: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed: keys of plans, number of other files, and bytes in total."""

    plans: tuple[str, ...]
    others: int
    bytes: int


def memory_class_gib(total_bytes: int) -> int:
    """Return the nominal memory size: the least of 1, 2, 3, 4, 6, 8, 12, ... GiB above the total.

    The total that the driver reports varies by a few hundred megabytes, depending on what firmware reserves.
    """
    sizes = (size for power in itertools.count() for size in (1 << power, (3 << power) // 2))
    return next(size for size in sizes if size << 30 >= total_bytes)
