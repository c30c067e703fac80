"""The experiment spec: NVIDIA TAO's field names and defaults, and the additional section `edge_agent`.

Names and defaults are those of TAO's re-identification schema (`nvidia_tao_core/config/re_identification`),
so a spec file for `tao model re_identification train` can be used unchanged. No field is silently ignored: a
field of an unsupported feature (Swin transformer, several GPUs) accepts only its default.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import read_text

if TYPE_CHECKING:
    import yaml

_MAX_NODES = 100_000
"""Limit of the values in a spec, counted as often as aliases repeat them."""

BACKBONES = ("resnet_18", "resnet_34", "resnet_50", "resnet_101", "resnet_152", "mobilenet_v2")

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """`model`: the network, its losses and pretrained weights."""

    backbone: Literal[BACKBONES] = "resnet_50"  # type: ignore[valid-type]  # one list serves messages too
    # stride of the backbone's last stage: 1 keeps a 16 x 8 map for a 256 x 128 picture
    last_stride: Literal[1, 2] = 1
    # `imagenet`: `pretrained_model_path` holds backbone weights; `finetune`: a checkpoint from here
    pretrain_choice: Literal["imagenet", "finetune", "none"] = "imagenet"
    pretrained_model_path: Path | None = None
    input_channels: Literal[3] = 3
    input_width: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 128
    input_height: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 256
    neck: Literal["bnneck"] = "bnneck"
    feat_dim: Annotated[int, Field(ge=64, le=2048)] = 256
    # take the embedding before or after the batch normalisation
    neck_feat: Literal["before", "after"] = "after"
    metric_loss_type: Literal["triplet", "center", "triplet_center"] = "triplet"
    with_center_loss: bool = False
    # sum the embeddings of the picture and its mirror image (twice the computation at run time)
    with_flip_feature: bool = False
    label_smooth: bool = True
    pretrain_hw_ratio: Literal[2] = 2
    id_loss_type: Literal["softmax"] = "softmax"
    # insert a linear layer before the neck even if `feat_dim` equals the backbone's width
    reduce_feat_dim: bool = False
    drop_path: Literal[0.1] = 0.1  # type: ignore[valid-type]  # Swin's; only the default is accepted
    stride_size: tuple[Literal[16], Literal[16]] = (16, 16)
    gem_pooling: bool = False
    jpm: Literal[False] = False

    @property
    def uses_triplet(self) -> bool:
        """Whether the metric loss includes the triplet loss."""
        return self.metric_loss_type in ("triplet", "triplet_center")

    @property
    def uses_center(self) -> bool:
        """Whether the centre loss is added, by either of TAO's two options."""
        return self.with_center_loss or self.metric_loss_type in ("center", "triplet_center")


class DatasetSection(_Section):
    """`dataset`: folders in Market-1501 layout, batches and TAO's augmentation."""

    train_dataset_dir: Path | None = None
    test_dataset_dir: Path | None = None
    query_dataset_dir: Path | None = None
    num_classes: Count = 751
    batch_size: Count = 64
    val_batch_size: Count = 128
    # threads that decode and augment pictures; 0 for none, between two steps
    num_workers: Annotated[int, Field(ge=0)] = 8
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    pixel_std: tuple[Positive, Positive, Positive] = (0.226, 0.226, 0.226)
    # black border in pixels of the network's input, before a random crop of the original size
    padding: Annotated[int, Field(ge=0)] = 10
    prob: Probability = 0.5  # probability of a mirror image
    re_prob: Probability = 0.5  # probability of random erasing
    sampler: Literal["softmax", "triplet", "softmax_triplet"] = "softmax_triplet"
    num_instances: Annotated[int, Field(ge=2)] = 4


class ReRankingSection(_Section):
    """`re_ranking`: k-reciprocal re-ranking during the evaluation between epochs."""

    re_ranking: bool = False
    k1: Count = 20
    k2: Count = 6
    lambda_value: Probability = 0.3
    max_rank: Count = 10
    num_query: Count = 10


class OptimSection(_Section):
    """`train.optim`."""

    name: Literal["Adam", "AdamW", "SGD"] = "Adam"
    lr_monitor: Literal["val_loss"] = "val_loss"
    lr_steps: tuple[Count, ...] = (40, 70)
    gamma: Positive = 0.1
    bias_lr_factor: Positive = 1.0
    weight_decay: NotNegative = 5e-4
    weight_decay_bias: NotNegative = 5e-4
    warmup_factor: Probability = 0.01
    # epochs of warm-up before the multi-step schedule (TAO steps it once per epoch, despite the name)
    warmup_iters: NotNegative = 10
    warmup_epochs: NotNegative = 20  # epochs of warm-up before the cosine schedule
    # `linear` and `constant` start a multi-step schedule; `cosine` is a schedule of its own, as in TAO
    warmup_method: Literal["linear", "constant", "cosine"] = "linear"
    base_lr: Positive = 3.5e-4
    momentum: Probability = 0.9
    center_loss_weight: NotNegative = 5e-4
    center_lr: Positive = 0.5
    triplet_loss_margin: NotNegative = 0.3
    large_fc_lr: bool = False  # twice the learning rate for the classifier


class TrainSection(_Section):
    """`train`."""

    optim: OptimSection = OptimSection()
    num_epochs: Count = 120
    checkpoint_interval: Count = 10
    validation_interval: Count = 10
    grad_clip: NotNegative = 0.0  # largest norm of the gradient; 0 for no clipping
    seed: Annotated[int, Field(ge=0)] = 1234
    resume_training_checkpoint_path: Path | None = None
    results_dir: Path | None = None
    num_gpus: Literal[1] = 1
    gpu_ids: tuple[int] = (0,)
    num_nodes: Literal[1] = 1


class _TaoCommandSection(_Section):
    """Common fields of sections that are checked, but used only by TAO's own commands."""

    checkpoint: Path | None = None
    test_dataset: Path | None = None
    query_dataset: Path | None = None
    results_dir: Path | None = None
    gpu_id: int = 0
    num_gpus: int = 1
    gpu_ids: tuple[int, ...] = (0,)


class InferenceSection(_TaoCommandSection):
    """`inference` of TAO (here: `edge-agent embed`)."""

    output_file: Path | None = None


class EvaluateSection(_TaoCommandSection):
    """`evaluate` of TAO (here: `edge-agent evaluate`)."""

    output_sampled_matches_plot: Path | None = None
    output_cmc_curve_plot: Path | None = None


class ExportSection(_Section):
    """`export`: used by `edge-agent export SPEC.yaml`."""

    checkpoint: Path | None = None
    onnx_file: Path | None = None
    gpu_id: int = 0
    results_dir: Path | None = None


class ExtensionSection(_Section):
    """`edge_agent`: additions to TAO. The defaults leave TAO's recipe unchanged."""

    # the network averages n x n pixels first and computes on the smaller picture
    input_pool: Literal[1, 2, 4] = 1
    # horizontal stripes whose averages are appended to the global one before the embedding layer
    part_stripes: Annotated[int, Field(ge=0, le=8)] = 0
    # numbers of the backbone stages whose outputs are averaged in stripes; empty for the last one
    part_levels: tuple[Annotated[int, Field(ge=1, le=18)], ...] = ()
    # the first n backbone stages keep their pretrained weights and batch statistics
    frozen_stages: Annotated[int, Field(ge=0, le=18)] = 0
    backbone_lr_factor: Positive = 1.0
    # decay per step of the running mean of the weights, which is evaluated and exported; 0 for none
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # probability per step of mixing channel statistics between pictures in early stages (MixStyle)
    mixstyle_prob: Probability = 0.0
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    gamma: NotNegative = 0.0
    colour_cast: NotNegative = 0.0  # largest relative change of one channel's gain
    grey_prob: Probability = 0.0
    lighting_prob: Probability = 0.0  # probability of a brightness slope across the picture
    blur_prob: Probability = 0.0
    noise_prob: Probability = 0.0
    jpeg_prob: Probability = 0.0
    lowres_prob: Probability = 0.0  # probability of scaling down (by up to four) and up again
    # probability that a piece of another picture of the batch covers this one
    occlusion_prob: Probability = 0.0
    # largest share of width and height by which a side is cut or extended
    zoom: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    cache_dir: Path | None = None  # folder of decoded pictures; `results_dir` by default
    threads: Annotated[int, Field(ge=0)] = 0  # threads of the computation on a CPU; 0 for PyTorch's default


class Spec(_Section):
    """A whole experiment spec."""

    results_dir: Path | None = None
    # accepted for TAO's specs, with a warning: this trainer writes no encrypted files
    encryption_key: str | None = Field(default=None, repr=False)
    model: ModelSection = ModelSection()
    dataset: DatasetSection = DatasetSection()
    re_ranking: ReRankingSection = ReRankingSection()
    train: TrainSection = TrainSection()
    inference: InferenceSection = InferenceSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    edge_agent: ExtensionSection = ExtensionSection()

    @field_validator("*", mode="before")
    @classmethod
    def _empty_section(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401  # whatever YAML holds
        """Turn None, as YAML reads a section without content such as `train:`, into an empty section."""
        scalar = info.field_name in ("results_dir", "encryption_key")
        return {} if value is None and not scalar else value

    @model_validator(mode="after")
    def _fits_together(self) -> Spec:
        data, own = self.dataset, self.edge_agent
        if data.sampler != "softmax" and data.batch_size % data.num_instances:
            raise ValueError(
                f"dataset.batch_size {data.batch_size} is not a multiple of "
                f"dataset.num_instances {data.num_instances}"
            )
        if data.sampler == "triplet" and not self.model.uses_triplet:
            raise ValueError("dataset.sampler triplet needs model.metric_loss_type triplet or triplet_center")
        sides = (self.model.input_height, self.model.input_width)
        if any((side // own.input_pool) % 16 for side in sides):
            raise ValueError("edge_agent.input_pool makes a picture whose sides are not multiples of 16")
        if data.padding % own.input_pool:
            raise ValueError("dataset.padding must be a multiple of edge_agent.input_pool")
        return self


def load_spec(path: Path) -> Spec:
    """Read a spec file; ConfigError, with file and field, if it is unreadable, not YAML or invalid."""
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(f"specs are YAML files: {install_command('train')}") from error
    try:
        text = read_text(path)
        _bound_aliases(yaml.compose(text, yaml.SafeLoader), path)
        content = yaml.safe_load(text)
    except InputError as error:
        raise ConfigError(f"{error}".replace("cannot read", "cannot read the spec", 1)) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not a usable YAML file: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: e.g. a date that does not exist
        raise ConfigError(f"{path} is not a YAML file: {error}") from error
    if isinstance(content, Mapping | None):
        return parse_spec(content or {}, name=str(path))
    raise ConfigError(f"{path}: expected sections such as model: and dataset:, got {type(content).__name__}")


def _bound_aliases(root: yaml.Node | None, path: Path) -> None:
    """Raise ConfigError where aliases repeat parts of a document so often that it could not be held."""
    waiting, count = [root], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > _MAX_NODES:
            raise ConfigError(f"{path} is not a usable spec: it has more than {_MAX_NODES:,} values")
        if isinstance(children := getattr(node, "value", None), list):  # of a mapping: pairs
            waiting += itertools.chain(*(one if isinstance(one, tuple) else (one,) for one in children))


def parse_spec(content: Mapping[str, Any], *, name: str = "spec") -> Spec:
    """Validate a spec; ConfigError with every bad field and, for an unknown name, the nearest known one."""
    try:
        return Spec.model_validate(dict(content))
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors(include_url=False)]
        raise ConfigError(f"{name}: " + "; ".join(faults)) from None


def _describe(fault: Any) -> str:  # noqa: ANN401  # pydantic's ErrorDetails; not imported for one annotation
    where = [str(part) for part in fault["loc"]]
    field = ".".join(where)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[-1], _known_names(where[:-1]), n=1, cutoff=0.5)
        hint = f", did you mean {'.'.join([*where[:-1], near[0]])}?" if near else ""
        return f"unknown field {field}{hint}"
    message = fault["msg"].removeprefix("Value error, ")
    return message if not field else f"{field}: {message} (got {fault['input']!r})"


def _known_names(section: list[str]) -> list[str]:
    model: Any = Spec
    for part in section:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
