"""Alternatives from crops to embeddings, on the same ONNX network.

Two reimplement the steps of well-known projects from their public source:

- *torchreid*: each crop to RGB, resized, to float 0..1, normalised, to planes; then stacked;
  there by Pillow and torchvision (`FeatureExtractor.__call__` in torchreid/utils/feature_extractor.py,
  https://github.com/KaiyangZhou/deep-person-reid).
- *BoxMOT*: each crop resized, to RGB, copied as planes into one float batch, which is normalised in place;
  there by torch (`prepare_crop_batch` in boxmot/reid/core/crops.py, https://github.com/mikel-brostrom/boxmot).

If the packages are installed (dependency group `compare`), their own code also runs, with the network
replaced by the same ONNX Runtime session; and deep-sort-realtime's embedder, which has a network of its own
(https://github.com/levan92/deep_sort_realtime).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.structures import EngineInfo
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import make_embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.engine.base import DEPTH
from edge_agent.engine.golden import Golden
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.onnxruntime import open_session

__all__ = ["Network", "Peer", "open_peers"]

Picture = NDArray[np.uint8]
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Network:
    """The common network: prepared by the agent, and as exported.

    Args:
        prepared: with pre- and post-processing inside.
        golden: for our self-test.
        threads: of ONNX Runtime, for all alternatives.
    """

    prepared: PreparedGraph
    golden: Golden
    threads: int

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)`."""
        return self.prepared.input_size

    def exported(self) -> Callable[[Rows], Rows]:
        """Run the exported network: `(N, 3, H, W)` float32, normalised, to embeddings."""
        session = open_session(self.prepared.source.read_bytes(), self.threads, self.prepared.name)
        name = session.get_inputs()[0].name

        def run(planes: Rows) -> Rows:
            rows: Rows = session.run(None, {name: self.prepared.as_network_input(planes)})[0]
            return rows

        return run


@dataclass(frozen=True, slots=True)
class Peer:
    """One alternative.

    Attributes:
        name: for tables.
        embed: crops to rows.
        pack: the same without the network: what it costs the host alone.
        network: which one runs, and on what.
        slow: whether a few crops are enough for a slice.
    """

    name: str
    embed: Callable[[Sequence[Picture]], Rows]
    pack: Callable[[Sequence[Picture]], object]
    network: str = "the same"
    slow: bool = False


def open_peers(network: Network, batch: int, stack: ExitStack) -> tuple[list[Peer], dict[str, str]]:
    """Return this agent and available alternatives in batches of `batch`; and the missing, with reasons."""
    found = [_ours(network, batch, stack), _torchreid_steps(network, batch), _boxmot_steps(network, batch)]
    left_out: dict[str, str] = {}
    for name, make in _PACKAGES.items():
        try:
            found.append(make(network, batch, stack))
        except ImportError as problem:
            left_out[name] = f"{problem}; pip install --group compare"
    return found, left_out


def _chunks(crops: Sequence[Picture], batch: int) -> Iterator[Sequence[Picture]]:
    return (crops[start : start + batch] for start in range(0, len(crops), batch))


def _in_chunks(step: Callable[[Sequence[Picture]], Rows], batch: int) -> Callable[[Sequence[Picture]], Rows]:
    return lambda crops: np.concatenate([step(chunk) for chunk in _chunks(crops, batch)])


# --- ours -------------------------------------------------------------------------------------


def _ours(network: Network, batch: int, stack: ExitStack) -> Peer:
    embedder = stack.enter_context(
        make_embedder(
            network.prepared, network.golden, quality=QualitySettings(), plans=None,
            engine=EngineSettings(backend="onnxruntime", threads=network.threads, max_batch=batch),
        )
    )  # fmt: skip
    profile = network.prepared.profile
    assert profile is not None  # it is a ReID network
    without = _NoNetwork(embedder.info, network.size)
    packer = stack.enter_context(Embedder(without, profile=profile, gate=QualityGate(QualitySettings())))
    return Peer("edge-agent", embedder.embed_images, packer.embed_images)


class _NoNetwork:
    """An engine without a network, to measure only the host's work: the first pixel chooses the vector."""

    unit_length = True
    shares_cores = False
    runs = failures = 0
    run_seconds = 0.0

    def __init__(self, info: EngineInfo, size: tuple[int, int]) -> None:
        self.info = info
        self.input_size = size
        self._buffers = [np.zeros((info.max_batch, *size, 3), np.uint8) for _ in range(DEPTH)]
        self._rows = np.eye(info.dimension, dtype=np.float32)
        self._flying: list[NDArray[np.intp]] = []

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def __enter__(self) -> _NoNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flying.clear()

    def check(self, test: Callable[[Any], None]) -> None:
        test(self)

    def buffer(self) -> Picture:
        return self._buffers[0]

    def submit(self, count: int) -> None:
        self._flying.append(self._buffers[0][:count, 0, 0, 0].astype(np.intp) % self.info.dimension)
        self._buffers.reverse()

    def collect(self) -> Rows:
        return self._rows[self._flying.pop(0)]


# --- their steps, reimplemented ----------------------------------------------------------------


def _statistics(network: Network) -> tuple[Rows, Rows]:
    """Return mean and standard deviation of pixels in 0..1, `(3,)` each, RGB."""
    profile = network.prepared.profile
    assert profile is not None  # it is a ReID network
    to_unit = 255 * profile.scale
    mean, std = np.asarray(profile.mean, np.float32), np.asarray(profile.std, np.float32)
    return mean / np.float32(to_unit), std / np.float32(to_unit)


def _torchreid_steps(network: Network, batch: int) -> Peer:
    (height, width), (mean, std), run = network.size, _statistics(network), network.exported()

    def pack(crops: Sequence[Picture]) -> Rows:
        planes = []
        for crop in crops:
            rgb = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
            pixels = cv2.resize(rgb, (width, height)).astype(np.float32) / np.float32(255)
            planes.append(((pixels - mean) / std).transpose(2, 0, 1))
        return np.stack(planes)

    return Peer(
        "torchreid's steps",
        _in_chunks(lambda crops: run(pack(crops)), batch),
        _in_chunks(pack, batch),
    )


def _boxmot_steps(network: Network, batch: int) -> Peer:
    (height, width), statistics, run = network.size, _statistics(network), network.exported()
    mean, std = (values.reshape(1, 3, 1, 1) for values in statistics)

    def pack(crops: Sequence[Picture]) -> Rows:
        planes = np.empty((len(crops), 3, height, width), np.float32)
        for crop, target in zip(crops, planes, strict=True):
            rgb = cv2.cvtColor(cv2.resize(crop, (width, height)), cv2.COLOR_BGR2RGB)
            target[:] = rgb.transpose(2, 0, 1)
        planes /= 255
        planes -= mean
        planes /= std
        return planes

    return Peer(
        "BoxMOT's steps",
        _in_chunks(lambda crops: run(pack(crops)), batch),
        _in_chunks(pack, batch),
    )


# --- the packages themselves ------------------------------------------------------------------


def _torch(threads: int) -> Any:  # noqa: ANN401 - a module without types
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # compiled for another torch: its operators are missing
        _declare_operators(torch)
    return torch


def _declare_operators(torch: Any) -> None:  # noqa: ANN401
    """Import torchvision for its transforms only, with a torch that does not match its binary.

    PyPI's torchvision is compiled for torch with CUDA. With a torch for CPUs, importing it fails on the
    first operator that it registers; no transform uses one.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.edge_agent_declared = declared  # they go when it goes
    import torchvision  # noqa: F401


def _torchreid(network: Network, batch: int, stack: ExitStack) -> Peer:
    torch = _torch(network.threads)
    from torchreid.reid.models import build_model
    from torchreid.reid.utils import FeatureExtractor

    weights = Path(stack.enter_context(TemporaryDirectory())) / "unused.pth"
    torch.save(build_model("osnet_x0_25", 1, pretrained=False).state_dict(), weights)
    mean, std = (values.tolist() for values in _statistics(network))

    def extractor() -> Any:  # noqa: ANN401
        return FeatureExtractor(
            "osnet_x0_25", str(weights), network.size, mean, std, device="cpu", verbose=False
        )

    run, whole, packer = network.exported(), extractor(), extractor()
    whole.model = lambda planes: torch.from_numpy(run(planes.numpy()))
    packer.model = lambda planes: planes
    return Peer(
        "torchreid 0.2.5",
        _in_chunks(lambda crops: whole([crop[..., ::-1] for crop in crops]).numpy(), batch),
        lambda crops: [packer([crop[..., ::-1] for crop in chunk]) for chunk in _chunks(crops, batch)],
    )


def _boxmot(network: Network, batch: int, stack: ExitStack) -> Peer:
    torch = _torch(network.threads)
    from boxmot.reid.backends.onnx_backend import ONNXBackend
    from boxmot.reid.core.crops import prepare_crop_batch

    class SameSession(ONNXBackend):  # type: ignore[misc]
        """Return its backend with our session options, and without automatic installation of packages."""

        def _ensure_onnxruntime_installed(self) -> None: ...

        def _make_session(self, weights: Path, *_: object) -> Any:  # noqa: ANN401
            return open_session(Path(weights).read_bytes(), network.threads, network.prepared.name)

    # The file's name selects architecture and size; the size of the graph then has precedence.
    named = Path(stack.enter_context(TemporaryDirectory())) / "osnet_x0_25_msmt17.onnx"
    named.write_bytes(network.prepared.source.read_bytes())
    backend = SameSession(named, torch.device("cpu"), half=False)

    def pack(crops: Sequence[Picture]) -> Any:  # noqa: ANN401
        planes = prepare_crop_batch(
            crops, input_shape=backend.input_shape, device=backend.device, half=False,
            preprocess_fn=backend.preprocess_fn, mean=backend.mean_array, std=backend.std_array,
        )  # fmt: skip
        return backend.inference_preprocess(planes)

    def embed(crops: Sequence[Picture]) -> Rows:
        rows: Rows = backend.inference_postprocess(backend.forward(pack(crops)))
        return rows

    return Peer(
        "BoxMOT 25.0.0",
        _in_chunks(embed, batch),
        lambda crops: [pack(chunk) for chunk in _chunks(crops, batch)],
    )


_DEEP_SORT_BATCH = 16
"""The library's default; it records gradients, so larger batches swap."""


def _deep_sort_realtime(network: Network, batch: int, stack: ExitStack) -> Peer:  # noqa: ARG001
    batch = min(batch, _DEEP_SORT_BATCH)
    torch = _torch(network.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks pkg_resources, which is on its way out, for its weights
        from deep_sort_realtime.embedder.embedder_pytorch import MobileNetv2_Embedder

    embedder = MobileNetv2_Embedder(half=False, max_batch_size=batch, bgr=True, gpu=False)
    return Peer(
        "deep-sort-realtime 1.3.2",
        lambda crops: np.asarray(embedder.predict(crops), np.float32),
        lambda crops: [
            torch.cat([embedder.preprocess(crop) for crop in chunk]) for chunk in _chunks(crops, batch)
        ],
        network=f"its own: MobileNetV2, 224 x 224, PyTorch, batches of {batch}",
        slow=True,
    )


_PACKAGES: dict[str, Callable[[Network, int, ExitStack], Peer]] = {
    "torchreid": _torchreid,
    "BoxMOT": _boxmot,
    "deep-sort-realtime": _deep_sort_realtime,
}
