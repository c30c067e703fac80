"""ReIdentificationNet and a light variant: backbone, pooling, embedding layer, BNNeck, classifier.

The backbones are implemented here, since torchvision is no dependency; their parameters have torchvision's
names, so that its `.pth` files load unchanged (ResNet: He et al. 2016, the variant with the stride on the
3 x 3 convolution; MobileNetV2: Sandler et al. 2018, table 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edge_agent.offline.train.spec import ExtensionSection, ModelSection

_RESNETS = {
    # whether blocks are bottlenecks, blocks per stage
    "resnet_18": (False, (2, 2, 2, 2)),
    "resnet_34": (False, (3, 4, 6, 3)),
    "resnet_50": (True, (3, 4, 6, 3)),
    "resnet_101": (True, (3, 4, 23, 3)),
    "resnet_152": (True, (3, 8, 36, 3)),
}
_MOBILENET_BLOCKS = (
    # expansion, channels, repeats, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _ResidualBlock(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Basic block (two 3 x 3 convolutions) or bottleneck (1 x 1, 3 x 3, 1 x 1), with a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        wide = [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)]  # channels, kernel, stride
        layers = wide if bottleneck else [(width, 3, stride), (width, 3, 1)]
        channels = inputs
        for number, (count, kernel, step) in enumerate(layers, start=1):
            setattr(self, f"conv{number}", nn.Conv2d(channels, count, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(count))
            channels = count
        self.layers = len(layers)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, outputs, H/stride, W/stride)`."""
        y = x
        for number in range(1, self.layers + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = self.relu(y) if number < self.layers else y
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Stages: 1 stem, 2..5 `layer1`..`layer4`."""

    def __init__(self, name: str, last_stride: int) -> None:
        super().__init__()
        bottleneck, repeats = _RESNETS[name]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width, channels = 64, [64]
        for number, (count, stride) in enumerate(zip(repeats, (1, 2, 2, last_stride), strict=True), start=1):
            blocks = []
            inputs = channels[-1]
            for index in range(count):
                blocks.append(_ResidualBlock(inputs, width, stride if index == 0 else 1, bottleneck))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            channels.append(inputs)
            width *= 2
        self.channels = tuple(channels)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the five stages in order; each takes the output of the previous one."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return (stem, self.layer1, self.layer2, self.layer3, self.layer4)


class _Depthwise(nn.Conv2d):  # type: ignore[misc]  # torch carries no types for mypy here
    """Convolution of each channel for itself, always in float32: its backward pass in bfloat16 is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `nn.Conv2d`."""
        if x.dtype is not torch.bfloat16:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d if groups == 1 else _Depthwise
    return nn.Sequential(
        convolution(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn(inputs, hidden, 1)]
        layers += [
            _conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` -> `(N, outputs, H/stride, W/stride)`."""
        return x + self.conv(x) if self.residual else self.conv(x)


class _MobileNetV2(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Width 1.0. Stages: 1 stem, 2..18 the inverted residuals, 19 the 1 x 1 convolution to 1280 channels."""

    def __init__(self, last_stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn(3, 32, 3, 2)]
        channels = [32]
        for expansion, outputs, repeats, first_stride in _MOBILENET_BLOCKS:
            stride = last_stride if outputs == 160 else first_stride
            for index in range(repeats):
                layers.append(
                    _InvertedResidual(channels[-1], outputs, stride if index == 0 else 1, expansion)
                )
                channels.append(outputs)
        self.features = nn.Sequential(*layers, _conv_bn(channels[-1], 1280, 1))
        self.channels = (*channels, 1280)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the nineteen stages in order; each takes the output of the previous one."""
        return tuple(self.features)


class _GeM(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Generalised mean over the map (Radenovic et al. 2018); the learnt exponent starts at 3."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C)`."""
        return x.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class _MixStyle(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Mixes mean and deviation of each channel between pictures during training (Zhou et al. 2021).

    After the first layers these two numbers contain most of the appearance of a rendered camera.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> same shape; the input itself outside training."""
        if not self.training or float(torch.rand(())) >= self.probability:
            return x
        mean = x.mean((2, 3), keepdim=True).detach()
        deviation = (x.var((2, 3), keepdim=True, unbiased=False) + 1e-6).sqrt().detach()
        share = torch.distributions.Beta(0.1, 0.1).sample((len(x), 1, 1, 1)).to(x)
        other = torch.randperm(len(x)).to(x.device)
        mixed_mean = share * mean + (1 - share) * mean[other]
        mixed_deviation = share * deviation + (1 - share) * deviation[other]
        return (x - mean) / deviation * mixed_deviation + mixed_mean


class ReidNetwork(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """Normalised pictures `(N, 3, H, W)`, already averaged by `input_pool` -> embeddings.

    In training it returns `(before, after, logits)`: the embedding before the neck `(N, D)`, for the metric
    losses, after it, and the logits `(N, classes)`. Otherwise the embedding `(N, D)` before or after the
    neck, as `neck_feat` names. Embeddings are not of unit length: TAO normalises when it computes metrics,
    this agent in the prepared graph.
    """

    def __init__(self, model: ModelSection, own: ExtensionSection, classes: int) -> None:
        super().__init__()
        self.after = model.neck_feat == "after"
        self.mirrored = model.with_flip_feature
        self.backbone: nn.Module = (
            _MobileNetV2(model.last_stride)
            if model.backbone == "mobilenet_v2"
            else _ResNet(model.backbone, model.last_stride)
        )
        channels = self.backbone.channels
        self.gem = _GeM() if model.gem_pooling else None
        self.mixstyle = _MixStyle(own.mixstyle_prob) if own.mixstyle_prob else None
        self.mix_after = (1, 2) if len(channels) == 5 else (2, 4)
        self.frozen = own.frozen_stages
        self.stripes = own.part_stripes
        self.levels = (own.part_levels or (len(channels),)) if own.part_stripes else ()
        width = channels[-1] + self.stripes * sum(channels[level - 1] for level in self.levels)
        reduced = model.reduce_feat_dim or width != model.feat_dim
        self.embedding = nn.Linear(width, model.feat_dim, bias=False) if reduced else nn.Identity()
        self.neck = nn.BatchNorm1d(model.feat_dim)
        self.neck.bias.requires_grad_(False)  # BNNeck: classes are cones around the origin
        self.classifier = nn.Linear(model.feat_dim, classes, bias=False)
        self._initialise()
        for stage in self._stages()[: self.frozen]:
            for parameter in stage.parameters():
                parameter.requires_grad_(False)

    def _initialise(self) -> None:
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.embedding, nn.Linear):
            nn.init.xavier_normal_(self.embedding.weight)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def _stages(self) -> Sequence[nn.Module]:
        stages: Sequence[nn.Module] = self.backbone.stages()
        return stages

    def train(self, mode: bool = True) -> ReidNetwork:
        """Set the mode as in `nn.Module`, but frozen stages keep their batch statistics."""
        super().train(mode)
        for stage in self._stages()[: self.frozen]:
            stage.eval()
        return self

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        before = self._embed(x)
        if self.training:
            after = self.neck(before)
            return before, after, self.classifier(after)
        if self.mirrored:
            before = before + self._embed(x.flip(3))
        return self.neck(before) if self.after else before

    def _embed(self, x: Tensor) -> Tensor:
        pooled = []
        for number, stage in enumerate(self._stages(), start=1):
            x = stage(x)
            if self.mixstyle is not None and number in self.mix_after:
                x = self.mixstyle(x)
            if number in self.levels:
                pooled.append(_stripe_means(x, self.stripes))
        pooled.append(x.mean((2, 3)) if self.gem is None else self.gem(x))
        return self.embedding(torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0])


def _stripe_means(x: Tensor, stripes: int) -> Tensor:
    """Mean of each of `stripes` equal bands of rows: `(N, C, H, W)` -> `(N, C * stripes)`."""
    rows = x.mean(3)
    return nn.functional.avg_pool1d(rows, rows.shape[2] // stripes).flatten(1)


class Deployed(nn.Module):  # type: ignore[misc]  # torch carries no types for mypy here
    """The exported network: averages full-size pictures `(N, 3, 256, 128)` by `input_pool` first."""

    def __init__(self, network: ReidNetwork, input_pool: int) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(input_pool) if input_pool > 1 else nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, 256, 128)` -> `(N, D)`."""
        return self.network(self.shrink(x))


def build_network(model: ModelSection, own: ExtensionSection, classes: int) -> ReidNetwork:
    """Return the network of a spec with random weights, drawn from torch's random state."""
    return ReidNetwork(model, own, classes)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights on the CPU, in file order."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
