"""The losses of the BNNeck recipe (Luo et al., "Bag of Tricks", CVPRW 2019, section 3).

All take embeddings `(N, D)` float and identities `(N,)` int64 in `0..classes-1`, and return scalars.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LABEL_SMOOTHING = 0.1
"""epsilon of Szegedy et al. 2016, the value of TAO's `label_smooth: True`."""


def identity_loss(logits: Tensor, identities: Tensor, *, smooth: bool) -> Tensor:
    """Return the cross entropy over the training identities, with label smoothing 0.1 if `smooth`."""
    return nn.functional.cross_entropy(logits, identities, label_smoothing=LABEL_SMOOTHING if smooth else 0.0)


def batch_hard_triplet(embeddings: Tensor, identities: Tensor, *, margin: float) -> Tensor:
    """Return the mean over anchors of max(0, farthest positive - nearest negative + margin), Euclidean.

    Hermans et al. 2017, equation 5. With `margin` 0, the soft margin log(1 + exp(.)) of the same paper, as in
    TAO. Anchors without a positive or a negative in the batch are ignored.
    """
    distances = pairwise_distances(embeddings)
    same = identities[:, None] == identities[None, :]
    itself = torch.eye(len(identities), dtype=torch.bool, device=embeddings.device)
    farthest = distances.masked_fill(~same | itself, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    usable = torch.isfinite(farthest) & torch.isfinite(nearest)
    gap = torch.where(usable, farthest, 0.0) - torch.where(usable, nearest, 0.0)
    cost = nn.functional.softplus(gap) if margin == 0 else torch.relu(gap + margin)
    return (cost * usable).sum() / usable.sum().clamp(min=1)


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Return the Euclidean distance of every pair: `(N, D)` -> `(N, N)`, in float32.

    Squares are at least 1e-12, since the slope of the square root at zero is infinite.
    """
    rows = embeddings.float()
    squares = rows.pow(2).sum(1)
    squared = squares[:, None] + squares[None, :] - 2 * rows @ rows.t()
    return squared.clamp(min=1e-12).sqrt()


class CenterLoss(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Mean squared distance of an embedding to the learnt centre of its identity (Wen et al. 2016)."""

    def __init__(self, classes: int, dimension: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(classes, dimension))

    def forward(self, embeddings: Tensor, identities: Tensor) -> Tensor:
        """`(N, D)`, `(N,)` -> scalar."""
        return (embeddings.float() - self.centers[identities]).pow(2).sum(1).mean()
