"""Optimiser and learning-rate schedule of TAO's `train.optim`."""

from __future__ import annotations

import math

import torch

from edge_agent.offline.train.network import ReidNetwork
from edge_agent.offline.train.spec import Spec

_COSINE_FLOOR = 0.002
"""Final learning rate of the cosine schedule, share of `base_lr`: the value of TransReID and TAO."""


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
        rate = optim.base_lr
        decay = optim.weight_decay
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
