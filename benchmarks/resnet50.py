"""The whole pipeline with a network of ReIdentificationNet's size, on ONNX Runtime.

    python -m benchmarks.resnet50 --seconds 40

The network is the TAO recipe's ResNet50 with random weights: the published weights may not be redistributed,
and the computation is the same. Its decisions are random. Needs the extra `train` (torch).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--seconds", type=float, default=40.0)
    options.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet50.onnx"
        model.write_bytes(network())
        words = [
            "--engine", "onnxruntime", "--model", str(model), "--preprocess", "tao", "--batch", "4",
            "--cameras", "1", "--people", "4", "--seconds", str(chosen.seconds),
        ]  # fmt: skip
        if chosen.output is not None:
            words += ["--output", str(chosen.output)]
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "edge_agent", "bench", "--pipeline", *words], check=False
        )
    sys.exit(done.returncode)


def network() -> bytes:
    """Return ONNX bytes: input `float32 [N, 3, 256, 128]`, output `float32 [N, 256]`."""
    import torch

    from edge_agent.offline.train.export import traced
    from edge_agent.offline.train.network import Deployed, build_network
    from edge_agent.offline.train.spec import Spec

    torch.manual_seed(0)
    spec = Spec.model_validate({"model": {"pretrain_choice": "none"}})
    made = build_network(spec.model, spec.edge_agent, classes=2)
    return traced(Deployed(made, 1).eval(), spec)


if __name__ == "__main__":
    main()
