"""The network in each precision: calibration sample, ranges, and the graphs made from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import ModelError
from edge_agent.core.files import MAX_MODEL_BYTES, read_file
from edge_agent.core.manifest import write_atomic
from edge_agent.engine.precision.half import to_half
from edge_agent.engine.precision.scales import Scales
from edge_agent.offline.calibrate.quantise import implicit_scales, placement, quantise
from edge_agent.offline.calibrate.ranges import ranges
from edge_agent.offline.calibrate.request import Make, StepResult, Work
from edge_agent.offline.calibrate.sample import Sample, draw

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.engine.graph.prepared import PreparedGraph


SAMPLE_FILE, SCALES_FILE = "sample-files.json", "scales.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network in one precision, and the file of INT8 ranges for a backend that takes no Q/DQ nodes."""

    graph: PreparedGraph
    scales: Path | None = None


class Candidates:
    """Makes the graph of each precision, as steps of the work."""

    def __init__(self, work: Work) -> None:
        self._request, self._steps, self._progress = work.request, work.steps, work.progress
        self._prepared = work.request.prepared

    def sample(self) -> Sample:
        """Return the calibration sample; draw it first if needed."""

        def make(folder: Path) -> StepResult:
            root, size = self._request.dataset, self._request.size
            self._progress.begin("drawing the calibration sample", size)
            assert root is not None  # INT8 is not tried without
            drawn = draw(root, size=size, seed=self._request.seed, advance=self._progress.advance)
            drawn.write(folder / SAMPLE_FILE)
            return {"crops": len(drawn), "digest": drawn.digest}, (SAMPLE_FILE,)

        self._steps.run("sample", make)
        return Sample.read(self._steps.folder / SAMPLE_FILE)

    def crops(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the crops of the sample, `(N, H, W, 3)` uint8 BGR of the network's size."""
        dataset, profile = self._request.dataset, self._prepared.profile
        assert dataset is not None
        assert profile is not None
        sample.verify(dataset)
        return sample.pixels(dataset, profile, self._prepared.input_size)

    def scales(self) -> Scales:
        """Return the activation ranges; measure them first if needed."""
        sample = self.sample()

        def make(folder: Path) -> StepResult:
            method = self._request.method
            passes = 1 if method == "minmax" else 2
            self._progress.begin(f"measuring ranges ({method})", passes * len(sample))
            found = ranges(self._prepared, self.crops(sample), method=method, advance=self._progress.advance)
            found.write(folder / SCALES_FILE)
            return {"digest": found.digest, "tensors": len(found.amax)}, (SCALES_FILE,)

        self._steps.run("ranges", make)
        return Scales.read(self._steps.folder / SCALES_FILE)

    def make(self, precision: str, name: str, keep: Sequence[str] = ()) -> dict[str, Any]:
        """Make the graph of a precision in the step `name`; INT8 leaves the nodes `keep` in higher precision.

        Returns:
            `graph` (file name; None for FP32 and for a graph that cannot be made), `problem` (why it cannot
            be made, else empty), `keep`, sizes in bytes; for INT8 also `scales` and `placement`.
        """
        makers: dict[str, Make] = {"int8": self._int8(keep), "fp16": self._fp16, "fp32": self._fp32}
        return self._steps.run(name, makers[precision])

    def open(self, precision: str, made: Mapping[str, Any]) -> Candidate:
        """Read a candidate from the files that `make` wrote."""
        if made["graph"] is None:
            return Candidate(self._prepared)
        onnx = read_file(self._steps.folder / made["graph"], MAX_MODEL_BYTES)
        scales = made.get("scales")
        return Candidate(
            replace(self._prepared, onnx=onnx, precision=precision),
            None if scales is None else self._steps.folder / scales,
        )

    def _int8(self, keep: Sequence[str]) -> Make:
        """A graph with Q/DQ nodes, and ranges of the nodes that are not in `keep`."""

        def make(folder: Path) -> StepResult:
            scales = self.scales()
            self._progress.begin("quantising", None)
            ending = f"-{keep_digest(keep)}" if keep else ""
            name, ranges_name = f"int8{ending}.onnx", f"tensorrt-scales{ending}.json"
            try:
                graph = quantise(self._prepared, scales, keep=keep)
                implicit_scales(self._prepared, scales, keep=keep).write(folder / ranges_name)
            except ModelError as problem:
                return {"graph": None, "keep": list(keep), "problem": str(problem)}, ()
            write_atomic(folder / name, graph.onnx)
            made = {"graph": name, "scales": ranges_name, "keep": list(keep), "problem": ""}
            sizes = {"bytes": len(graph.onnx), "bytes_fp32": len(self._prepared.onnx)}
            return {**made, **sizes, "placement": placement(graph.onnx).as_json()}, (name, ranges_name)

        return make

    def _fp16(self, folder: Path) -> StepResult:
        self._progress.begin("converting to FP16", None)
        sizes = {"bytes_fp32": len(self._prepared.onnx), "keep": [], "problem": ""}
        try:
            graph = to_half(self._prepared)
        except ModelError as problem:
            return {**sizes, "graph": None, "bytes": None, "problem": str(problem)}, ()
        write_atomic(folder / "fp16.onnx", graph.onnx)
        return {**sizes, "graph": "fp16.onnx", "bytes": len(graph.onnx)}, ("fp16.onnx",)

    def _fp32(self, _folder: Path) -> StepResult:
        size = len(self._prepared.onnx)
        return {"bytes_fp32": size, "keep": [], "problem": "", "graph": None, "bytes": size}, ()


def keep_digest(keep: Sequence[str]) -> str:
    """Return 12 hex digits for a set of nodes, for file and step names."""
    return hashlib.sha256(json.dumps(sorted(keep)).encode()).hexdigest()[:12]
