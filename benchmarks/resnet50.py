"""A network of ReIdentificationNet's size, to measure with: the TAO recipe's ResNet50, weights at random.

    python -m benchmarks.resnet50 --output resnet50.onnx

The published weights may not be passed on; the arithmetic of a picture is the same. What it recognises is
chance. Needs the extra `train` (torch).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_agent.manifest import write_atomic


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--output", type=Path, required=True)
    write_atomic(options.parse_args().output, network())


def network() -> bytes:
    """ONNX bytes: `float32 [N, 3, 256, 128]` in, `float32 [N, 256]` out."""
    import torch

    from edge_agent.train.export import traced
    from edge_agent.train.network import Deployed, build_network
    from edge_agent.train.spec import Spec

    torch.manual_seed(0)
    spec = Spec.model_validate({"model": {"pretrain_choice": "none"}})
    made = build_network(spec.model, spec.edge_agent, classes=2)
    return traced(Deployed(made, 1).eval(), spec)


if __name__ == "__main__":
    main()
