"""Losses of the BNNeck recipe, and the optimiser and learning-rate schedule of TAO's `train.optim`.

The recipe is Luo et al., "Bag of Tricks", CVPRW 2019, section 3. Losses take embeddings `(N, D)` float and
identities `(N,)` int64 in `0..classes-1`, and return scalars.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_agent.core.structures import PEOPLE_FOR_HALF
from edge_agent.offline.train.network import ReidNetwork
from edge_agent.offline.train.spec import Spec

_LABEL_SMOOTHING = 0.1  # epsilon of Szegedy et al. 2016, the value of TAO's `label_smooth: True`
_TEMPERATURE = 0.1  # of the contrastive loss, as in its paper
_COSINE_FLOOR = 0.002  # final rate of the cosine schedule, share of `base_lr`: as in TransReID and TAO


def identity_loss(logits: Tensor, identities: Tensor, *, smooth: bool) -> Tensor:
    """Return the cross entropy over the training identities, with label smoothing 0.1 if `smooth`."""
    smoothing = _LABEL_SMOOTHING if smooth else 0.0
    return nn.functional.cross_entropy(logits, identities, label_smoothing=smoothing)


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


def centred_by_camera(embeddings: Tensor, cameras: Tensor) -> Tensor:
    """Remove the mean of each camera of a batch from the unit embeddings `(N, D)`, as the agent does.

    A mean of k pictures, of as many people, is removed with the weight k / (k + 10). `cameras` is `(N,)`.
    """
    rows = nn.functional.normalize(embeddings.float())
    member = nn.functional.one_hot(cameras).to(rows)
    count = member.sum(0)
    means = (member.t() @ rows) / (count + PEOPLE_FOR_HALF)[:, None]
    return nn.functional.normalize(rows - means[cameras])


def camera_contrast(rows: Tensor, identities: Tensor) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020) of unit rows `(N, D)`, temperature 0.1.

    Anchors without a positive are ignored.
    """
    scores = rows @ rows.t() / _TEMPERATURE
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    same = (identities[:, None] == identities[None, :]) & ~itself
    log_share = scores - scores.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positives = same.sum(1)
    cost = -log_share.masked_fill(~same, 0).sum(1) / positives.clamp(min=1)
    return cost.sum() / (positives > 0).sum().clamp(min=1)


def teacher_distance(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 - cosine between each embedding `(N, D)` and its target, a unit row."""
    return 1 - (nn.functional.normalize(embeddings.float()) * targets).sum(1).mean()


def teacher_relation(rows: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines of all pairs: unit rows `(N, D)` and `(N, T)`."""
    apart = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return (rows @ rows.t() - targets @ targets.t())[apart].pow(2).mean()


class CenterLoss(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Mean squared distance of an embedding to the learnt centre of its identity (Wen et al. 2016)."""

    def __init__(self, classes: int, dimension: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(classes, dimension))

    def forward(self, embeddings: Tensor, identities: Tensor) -> Tensor:
        """`(N, D)`, `(N,)` -> scalar."""
        return (embeddings.float() - self.centers[identities]).pow(2).sum(1).mean()


def build_optimizer(network: ReidNetwork, spec: Spec) -> torch.optim.Optimizer:
    """Return Adam, AdamW or SGD; each group stores its full learning rate as `full_lr`.

    Biases have their own factor and decay, the classifier twice the rate with `large_fc_lr`, the backbone
    `backbone_lr_factor`. Frozen parameters are left out.
    """
    optim, own = spec.train.optim, spec.edge_agent
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate, decay = optim.base_lr, optim.weight_decay
        if name.endswith("bias"):
            rate *= optim.bias_lr_factor
            decay = optim.weight_decay_bias
        if name.startswith("backbone."):
            rate *= own.backbone_lr_factor
        if name.startswith("classifier.") and optim.large_fc_lr:
            rate *= 2
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [
        {"params": parameters, "lr": rate, "full_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    if optim.name == "SGD":
        return torch.optim.SGD(listed, lr=optim.base_lr, momentum=optim.momentum)
    chosen = torch.optim.Adam if optim.name == "Adam" else torch.optim.AdamW
    return chosen(listed, lr=optim.base_lr)


def rate_factor(spec: Spec, epoch: float) -> float:
    """Return the learning rate at `epoch` (from 0, with fractions) as a share of the full one.

    Multi-step: rises linearly from `warmup_factor` to 1 over `warmup_iters` epochs (or stays at it,
    `constant`), then times `gamma` at each of `lr_steps`. Cosine: linear rise over `warmup_epochs`, then half
    a cosine down to 0.2 %.
    """
    optim = spec.train.optim
    if optim.warmup_method == "cosine":
        if epoch < optim.warmup_epochs:
            return _ramp(optim.warmup_factor, epoch / optim.warmup_epochs)
        progress = (epoch - optim.warmup_epochs) / max(spec.train.num_epochs - optim.warmup_epochs, 1e-9)
        fall = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return _ramp(_COSINE_FLOOR, fall)
    steps = sum(epoch >= step for step in optim.lr_steps)
    factor = optim.gamma**steps
    if epoch < optim.warmup_iters:
        start = optim.warmup_factor
        factor *= start if optim.warmup_method == "constant" else _ramp(start, epoch / optim.warmup_iters)
    return factor


def _ramp(start: float, share: float) -> float:
    return start + (1 - start) * share


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to this share of its full learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor
