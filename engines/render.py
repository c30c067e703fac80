"""Render the people that the default model is trained and measured on: `python engines/render.py build`.

Pictures to train on have neutral colours and no faults: the training draws cameras anew for every batch.
People and cameras to measure on are others; these cameras differ more than usual, and their smallest people
have 24 pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge_agent.offline.synthetic.camera import Spread
from edge_agent.offline.synthetic.crops import write_dataset

NEUTRAL = Spread(colours=0.0, faults=0.0, smallest=80.0)
WIDE = Spread(colours=1.6, faults=1.0, smallest=24.0)


def main(folder: Path) -> None:
    """Write the three data sets; about ten minutes of one core."""
    write_dataset(
        folder / "people",
        identities=1093, cameras=120, per_identity=10, seed=2055, test_share=0.0001, spread=NEUTRAL,
    )  # fmt: skip
    write_dataset(
        folder / "people-between-epochs",
        identities=101, cameras=8, per_identity=8, seed=9056, test_share=0.99, spread=WIDE,
    )  # fmt: skip
    write_dataset(
        folder / "people-held-back",
        identities=161, cameras=12, per_identity=10, seed=9055, test_share=0.9938, spread=WIDE,
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
