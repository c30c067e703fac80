"""Checkpoints: one file with everything needed to resume a run; loading it executes no code.

The file is a `torch.save` of plain dicts, numbers, strings and tensors, so `weights_only=True` reads it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_agent.core.errors import InputError, ModelError
from edge_agent.core.files import open_regular
from edge_agent.core.manifest import write_atomic
from edge_agent.core.published import PUBLISHED
from edge_agent.offline.train.network import ReidNetwork, build_network
from edge_agent.offline.train.spec import Spec, parse_spec

_FORMAT = "edge-agent checkpoint"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State of a training run."""

    spec: dict[str, Any]  # the run's spec as plain values
    epoch: int  # current epoch, from 0
    step: int  # finished steps of that epoch
    people: list[int]  # person number of each class of the classifier
    network: dict[str, Tensor]  # weights being trained
    averaged: dict[str, Tensor] | None  # their running mean, or None without `ema_decay`
    optimizer: dict[str, Any]  # state of the optimiser
    center: dict[str, Any] | None  # state of the centre loss and its optimiser, or None
    scaler: dict[str, Any] | None  # state of the loss scaler of mixed precision, or None on a CPU
    # states of torch's generators, by device. Batches and augmentation have no state: they are drawn from
    # the seed and their position in the run
    random: dict[str, Tensor]
    history: list[dict[str, float]]  # results so far, one dict per evaluation
    best: float | None  # highest mAP of an evaluation, or None

    def write(self, path: Path) -> None:
        """Write atomically; StorageError if that fails."""
        content = {name: getattr(self, name) for name in self.__slots__}
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "version": _VERSION, **content}, buffer)
        write_atomic(path, buffer.getvalue())

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """Read a checkpoint; ModelError if missing, damaged, or of another program or version."""
        content = _load(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ModelError(f"{path} is not a checkpoint of `edge-agent train`")
        if content.get("version") != _VERSION:
            version = content.get("version")
            raise ModelError(f"{path} has layout version {version}, this program reads {_VERSION}")
        try:
            return Checkpoint(**{name: content[name] for name in Checkpoint.__slots__})
        except KeyError as error:
            raise ModelError(f"{path} is damaged: {error} is missing") from error


def network_of(checkpoint: Checkpoint) -> tuple[ReidNetwork, Spec]:
    """Return the network of a checkpoint in eval mode, with the averaged weights if there are any."""
    spec = parse_spec(checkpoint.spec, name="the checkpoint's spec")
    network = build_network(spec.model, spec.edge_agent, len(checkpoint.people))
    network.load_state_dict(checkpoint.averaged or checkpoint.network)
    return network.eval(), spec


def _load(path: Path) -> Any:  # noqa: ANN401  # whatever the file holds; callers check
    if path.suffix == ".etlt":
        raise ModelError(
            f"{path} is encrypted by TAO and cannot be read. Use the unencrypted ONNX of the same network, "
            "resnet50_market1501_aicity156.onnx (96,398,132 bytes, sha256 "
            f"{PUBLISHED['reidentificationnet'].sha256}), from NGC: "
            "ngc registry model download-version nvidia/tao/reidentificationnet:deployable_v1.2"
        )
    try:
        with open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # A damaged file makes PyTorch's reader fail in any way: IndexError, TypeError, struct.error.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} is not a weights file that can be loaded safely (tensors only): {reason}"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a `.pth` file: a state dict, or one under `state_dict`; else ModelError."""
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} contains no state dict (names and tensors), as torchvision's .pth files do")
    return content


def load_pretrained(network: ReidNetwork, path: Path, *, choice: str) -> None:
    """Load pretrained weights into the network; ModelError if one is missing, unknown or of another shape.

    `choice` is `model.pretrain_choice`: `imagenet` reads torchvision's weights of the backbone and ignores
    those of the ImageNet classifier (`fc.*`, `classifier.*`), `finetune` reads a checkpoint.
    """
    if choice == "finetune":
        checkpoint = Checkpoint.read(path)
        weights = dict(checkpoint.averaged or checkpoint.network)
        weights["classifier.weight"] = network.classifier.weight.detach()
        _fill(network, weights, path)
        return
    heads = ("fc.", "classifier.")
    weights = {name: value for name, value in read_weights(path).items() if not name.startswith(heads)}
    _fill(network.backbone, weights, path)


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - weights.keys() - counters)
    unknown = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or unknown or shapes:
        faults = [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        faults += [f"{len(unknown)} unknown (first: {unknown[0]})"] if unknown else []
        raise ModelError(f"{path} does not fit model.backbone: {'; '.join([*faults, *shapes[:1]])}")
    module.load_state_dict({**{name: own[name] for name in counters}, **weights})
