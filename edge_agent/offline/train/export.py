"""Export of a checkpoint to ONNX with TAO's tensor names; the result is compared to PyTorch first.

The input is `input` FP32 `[N, 3, 256, 128]` (RGB, normalised by the spec's mean and deviation), the output
`fc_pred` `[N, D]`, not of unit length, as in TAO's export. The agent's prepared graph adds preprocessing and
L2 normalisation.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch

from edge_agent import __version__
from edge_agent.core.errors import ModelError
from edge_agent.core.manifest import write_atomic
from edge_agent.engine.golden import golden_crops, require_distinct
from edge_agent.engine.graph.prepared import PROFILE_ENTRY, PreprocessProfile
from edge_agent.engine.onnxruntime import run_once
from edge_agent.offline.train.checkpoint import Checkpoint, network_of
from edge_agent.offline.train.network import Deployed
from edge_agent.offline.train.spec import Spec

_log = structlog.get_logger(__name__)

TOLERANCE = 1e-4  # largest allowed difference of an embedding element between PyTorch and ONNX Runtime
_OPSET = 17
_BATCHES = (1, 3, 8)  # several sizes, to detect a wrong dynamic axis


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported file."""

    path: Path  # the ONNX file
    sha256: str  # of its bytes
    size: int  # bytes
    dimension: int  # elements of an embedding
    difference: float  # largest difference to PyTorch
    card: Mapping[str, str]  # the model card in the file's metadata


def export_onnx(
    checkpoint: Path, target: Path, *, notes: Mapping[str, str] | None = None, overwrite: bool = False
) -> Exported:
    """Write the network of a checkpoint as ONNX.

    The folder of `target` must exist; an existing file is refused by default, as in TAO. `notes` are further
    entries of the model card (training data, licence, ...).

    Raises:
        ModelError: not a checkpoint; `target` exists; PyTorch and ONNX Runtime differ by more than 1e-4.
        StorageError: `target` cannot be written.
    """
    saved = Checkpoint.read(checkpoint)
    if target.exists() and not overwrite:
        raise ModelError(f"{target} exists already: name another file, or give --overwrite")
    network, spec = network_of(saved)
    deployed = Deployed(network, spec.edge_agent.input_pool).eval()
    card = {**_card(saved, spec, checkpoint), **(notes or {})}
    content = _with_card(traced(deployed, spec), card)
    difference = _largest_difference(deployed, content, spec)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"ONNX Runtime and PyTorch differ by {difference:.2e} (allowed {TOLERANCE:.0e}): nothing was "
            "written. This is an error of the exporter; try other versions of torch and onnxruntime"
        )
    _warn_of_alike(content, spec, str(checkpoint))
    write_atomic(target, content)
    digest = hashlib.sha256(content).hexdigest()
    return Exported(target, digest, len(content), spec.model.feat_dim, difference, card)


def _warn_of_alike(content: bytes, spec: Spec, name: str) -> None:
    """Warn of a network that gives nearly the same embedding for very different pictures: it is untrained."""
    size, data = (spec.model.input_height, spec.model.input_width), spec.dataset
    profile = PreprocessProfile("export", "rgb", 1 / 255, data.pixel_mean, data.pixel_std)
    vectors = run_once(content, profile.apply(golden_crops(*size)), name)
    try:
        require_distinct(vectors, name)
    except ModelError as problem:
        _log.warning("exported_network_not_usable", problem=str(problem))


def traced(deployed: Deployed, spec: Spec) -> bytes:
    """Return the ONNX bytes of the network in eval mode, batch normalisation folded into the convolutions."""
    buffer = io.BytesIO()
    example = torch.zeros(1, 3, spec.model.input_height, spec.model.input_width)
    with warnings.catch_warnings():
        # the new exporter needs onnxscript, which is no dependency; the legacy one warns of its removal
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export.*")
        torch.onnx.export(
            deployed,
            (example,),
            buffer,
            input_names=["input"],
            output_names=["fc_pred"],
            dynamic_axes={"input": {0: "batch"}, "fc_pred": {0: "batch"}},
            opset_version=_OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    return buffer.getvalue()


def _card(saved: Checkpoint, spec: Spec, checkpoint: Path) -> dict[str, str]:
    """Model card from the checkpoint."""
    shape = f"[N,3,{spec.model.input_height},{spec.model.input_width}]"
    mean, deviation = list(spec.dataset.pixel_mean), list(spec.dataset.pixel_std)
    card = {
        "producer": f"edge-agent {__version__}",
        "backbone": spec.model.backbone,
        "dimension": str(spec.model.feat_dim),
        "input": f"FP32 {shape} RGB, (x/255 - mean)/std, mean {mean}, std {deviation}",
        PROFILE_ENTRY: _profile(spec),
        "output": "FP32 [N,D], not of unit length: normalise before comparing",
        "trained_identities": str(len(saved.people)),
        "trained_epochs": str(saved.epoch),
        "seed": str(spec.train.seed),
        "spec": json.dumps(_without_paths(saved.spec), sort_keys=True),
        "checkpoint": checkpoint.name,
    }
    if saved.history:
        card["held_back_figures"] = json.dumps(saved.history[-1], sort_keys=True)
    return card


def _profile(spec: Spec) -> str:
    """Name of the agent's preprocess profile with these numbers, or `custom`."""
    data = spec.dataset
    if data.pixel_mean != (0.485, 0.456, 0.406):
        return "custom"
    return {(0.226,) * 3: "tao", (0.229, 0.224, 0.225): "imagenet"}.get(data.pixel_std, "custom")


def _without_paths(section: Mapping[str, Any]) -> dict[str, Any]:
    """The spec without paths of the training machine and without the encryption key."""
    private = ("_dir", "_path", "checkpoint", "_file", "_dataset", "_plot", "encryption_key")
    return {
        name: _without_paths(value) if isinstance(value, Mapping) else value
        for name, value in section.items()
        if isinstance(value, Mapping) or not name.endswith(private)
    }


def _with_card(content: bytes, card: Mapping[str, str]) -> bytes:
    """The ONNX bytes with the card as metadata, checked by onnx's own checker."""
    import onnx

    model = onnx.load_from_string(content)
    model.producer_name = "edge-agent"
    model.producer_version = __version__
    onnx.helper.set_model_props(model, dict(card))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _largest_difference(deployed: Deployed, content: bytes, spec: Spec) -> float:
    """Largest difference of any output element over random pictures in batches of several sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for count in _BATCHES:
        shape = (count, 3, spec.model.input_height, spec.model.input_width)
        pictures = rng.standard_normal(shape, np.float32)
        (found,) = session.run(["fc_pred"], {"input": pictures})
        with torch.inference_mode():
            expected = deployed(torch.from_numpy(pictures)).numpy()
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst
