"""The experiment spec: NVIDIA TAO's field names and defaults, and the additional section `edge_agent`.

Names and defaults are those of TAO's re-identification schema, so a spec of TAO can be used unchanged.
`tao_fields` has the fields that this trainer does not implement, and old names; `spec_file` reads files
and overrides. No field is silently ignored.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from edge_agent.core.errors import ConfigError
from edge_agent.core.text import shortened
from edge_agent.offline.train.tao_fields import (
    FIXED,
    GROUPS,
    OTHER_SECTIONS,
    SECTIONS_OF_4,
    is_placeholder,
    settle,
)

_FAULTS = 10
"""Faults that an error names."""
_LONGEST_VALUE = 80
"""Characters of a value, or of a field's name, in an error."""

BACKBONES = ("resnet_18", "resnet_34", "resnet_50", "resnet_101", "resnet_152", "mobilenet_v2")

Probability = Annotated[float, Field(ge=0, le=1)]
# The bounds above only keep products of them within the numbers of PyTorch.
Positive = Annotated[float, Field(gt=0, le=1e15)]
NotNegative = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]


class _Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_tao_reads(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401  # whatever YAML holds
        """Read an empty section as its defaults and an empty path as none; refuse true as the number 1."""
        kind: Any = cls.model_fields[str(info.field_name)].annotation
        if value is None and isinstance(kind, type) and issubclass(kind, _Section):
            return {}
        if kind == Path | None and isinstance(value, str):
            if "\0" in value:
                raise ValueError("a path has no NUL character")
            return value or None
        several = value if isinstance(value, list) else [value]
        if kind is not bool and any(isinstance(one, bool) for one in several):
            raise ValueError("true and false are no value for it")
        return value


class ModelSection(_Section):
    """`model`: the network, its losses and pretrained weights."""

    backbone: Literal[BACKBONES] = "resnet_50"  # type: ignore[valid-type]  # one list serves messages too
    # stride of the backbone's last stage: 1 keeps a 16 x 8 map for a 256 x 128 picture
    last_stride: Literal[1, 2] = 1
    # `imagenet`: `pretrained_model_path` holds backbone weights; `finetune`: a checkpoint from here
    pretrain_choice: Literal["imagenet", "finetune", "none"] = "imagenet"
    pretrained_model_path: Path | None = None
    input_width: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 128
    input_height: Annotated[int, Field(ge=32, le=1024, multiple_of=16)] = 256
    feat_dim: Annotated[int, Field(ge=64, le=2048)] = 256
    # take the embedding before or after the batch normalisation
    neck_feat: Literal["before", "after"] = "after"
    metric_loss_type: Literal["triplet", "center", "triplet_center"] = "triplet"
    with_center_loss: bool = False
    # sum the embeddings of the picture and its mirror image (twice the computation at run time)
    with_flip_feature: bool = False
    label_smooth: bool = True
    # insert a linear layer before the neck even if `feat_dim` equals the backbone's width
    reduce_feat_dim: bool = False
    gem_pooling: bool = False

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
    padding: Annotated[int, Field(ge=0, le=1024)] = 10
    prob: Probability = 0.5  # probability of a mirror image
    re_prob: Probability = 0.5  # probability of random erasing
    sampler: Literal["softmax", "triplet", "softmax_triplet"] = "softmax_triplet"
    num_instances: Annotated[int, Field(ge=2, le=4096)] = 4


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


class CudnnSection(_Section):
    """`train.cudnn`: how kernels are chosen on an NVIDIA GPU."""

    benchmark: bool = False
    deterministic: bool = True


class TrainSection(_Section):
    """`train`."""

    optim: OptimSection = OptimSection()
    cudnn: CudnnSection = CudnnSection()
    num_epochs: Count = 120
    checkpoint_interval: Count = 10
    validation_interval: Count = 10
    grad_clip: NotNegative = 0.0  # largest norm of the gradient; 0 for no clipping
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1234  # PyTorch's limit
    resume_training_checkpoint_path: Path | None = None
    results_dir: Path | None = None
    gpu_ids: tuple[Annotated[int, Field(ge=0)]] = (0,)


class EvaluateSection(_Section):
    """`evaluate`: used by `edge-agent evaluate -e SPEC`."""

    # an ONNX file, or a checkpoint of this trainer
    checkpoint: Path | None = None
    query_dataset: Path | None = None
    test_dataset: Path | None = None
    output_cmc_curve_plot: Path | None = None
    output_sampled_matches_plot: Path | None = None
    results_dir: Path | None = None


class ExportSection(_Section):
    """`export`: used by `edge-agent export -e SPEC`."""

    checkpoint: Path | None = None
    onnx_file: Path | None = None
    results_dir: Path | None = None  # of TAO's log of an export; here the ONNX is the only file


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
    lowres_prob: Probability = 0.0  # probability of scaling down and up again
    lowres_factor: Annotated[float, Field(ge=1, le=16)] = 4.0  # largest factor of it
    # probability that a piece of another picture of the batch covers this one
    occlusion_prob: Probability = 0.0
    # largest share of width and height by which a side is cut or extended
    zoom: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    # colours and faults belong to cameras: the n-th picture of each person in a batch has the n-th camera
    batch_cameras: bool = False
    # weight of a contrastive loss between the cameras of a batch, after the mean of each is removed
    camera_loss_weight: NotNegative = 0.0
    # ONNX file of a network whose embeddings of the training pictures are learnt, with these weights: of the
    # distance of each embedding to the teacher's, and of the difference of all similarities in a batch
    teacher_path: Path | None = None
    teacher_loss_weight: NotNegative = 0.0
    teacher_relation_weight: NotNegative = 0.0
    cache_dir: Path | None = None  # folder of decoded pictures; `results_dir` by default
    # on a CPU, most of the forward and backward pass in bfloat16: faster where the processor computes with it
    bfloat16: bool = False
    threads: Annotated[int, Field(ge=0, le=1024)] = (
        0  # threads of the computation on a CPU; 0 for PyTorch's default
    )


class Spec(_Section):
    """A whole experiment spec."""

    results_dir: Path | None = None
    # accepted for TAO's specs, with a warning: this trainer writes no encrypted files
    encryption_key: Annotated[str | None, Field(repr=False, coerce_numbers_to_str=True)] = None
    model: ModelSection = ModelSection()
    dataset: DatasetSection = DatasetSection()
    re_ranking: ReRankingSection = ReRankingSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    edge_agent: ExtensionSection = ExtensionSection()

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
        if own.camera_loss_weight and not own.batch_cameras:
            raise ValueError("edge_agent.camera_loss_weight needs edge_agent.batch_cameras")
        if own.batch_cameras and data.sampler == "softmax":
            raise ValueError("edge_agent.batch_cameras needs dataset.sampler triplet or softmax_triplet")
        if (own.teacher_path is None) == bool(own.teacher_loss_weight or own.teacher_relation_weight):
            raise ValueError(
                "edge_agent.teacher_path and a weight, teacher_loss_weight or teacher_relation_weight, "
                "are given together"
            )
        return self

    def camera_of(self, place: int) -> int:
        """Number of the camera of a picture at this place of a batch, with `batch_cameras`."""
        return place % self.dataset.num_instances


Command = Literal["train", "evaluate", "export"]

SECTIONS_OF: Mapping[Command, tuple[str, ...]] = {
    "train": ("results_dir", "encryption_key", "model", "dataset", "re_ranking", "train", "edge_agent"),
    "evaluate": ("evaluate", "re_ranking"),
    "export": ("export",),
}
"""The entries of a spec that each command reads; it passes over the others."""


def parse_spec(
    content: Mapping[str, Any],
    *,
    name: str = "spec",
    command: Command = "train",
    note: Callable[[str], None] | None = None,
) -> Spec:
    """Validate the sections of a spec that a command uses.

    `note` is called with the names of the sections that are passed over, if there are any.

    Raises:
        ConfigError: with every bad field and, for an unknown name, the nearest known one.
    """
    others = {*OTHER_SECTIONS, *Spec.model_fields} - {*SECTIONS_OF[command]}
    unused = [key for key in content if key in others]
    used = {key: value for key, value in content.items() if key not in others}
    values, faults = settle(used, _shown)
    try:
        spec = Spec.model_validate(values)
    except ValidationError as error:
        found = [one for one in error.errors(include_url=False) if not is_placeholder(one["input"])]
        faults += [_describe(one) for one in found[:_FAULTS]]
        faults += [""] * (len(found) - _FAULTS)
    if faults:
        more = len(faults) - _FAULTS
        listed = [*faults[:_FAULTS], *([f"and {more:,} more faults"] if more > 0 else [])]
        raise ConfigError(f"{name}: " + "; ".join(listed))
    if unused and note is not None:
        note(f"not used by {command}: {', '.join(unused)}")
    return spec


def _describe(fault: Any) -> str:  # noqa: ANN401  # pydantic's ErrorDetails; not imported for one annotation
    where = [shortened(str(part), _LONGEST_VALUE) for part in fault["loc"]]
    field, kind = ".".join(where), fault["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        if field in GROUPS and isinstance(fault["input"], Mapping):
            return "; ".join(_unknown([*where, str(name)]) for name in fault["input"])
        return _expected(where) if field in GROUPS else _unknown(where)
    message = fault["msg"].removeprefix("Value error, ")
    if not field:
        return str(message)
    if field == "encryption_key":
        return f"{field}: {message}"
    if kind == "model_type":
        message = _expected(where)
    if field == "model.backbone" and str(fault["input"]).startswith("swin"):
        message += "; Swin transformers are not trained here, but NVIDIA's run with --preprocess swin"
    return f"{field}: {message} (got {_shown(fault['input'])})"


def _expected(where: list[str]) -> str:
    return f"expected fields, such as {'.'.join(where)}.{known_fields(where)[0]}"


def _unknown(where: list[str]) -> str:
    field, section = ".".join(where), where[:-1]
    if len(where) == 1 and field in SECTIONS_OF_4:
        return f"unknown field {field}: the section of TAO 4 is called {SECTIONS_OF_4[field]} since TAO 5"
    near = difflib.get_close_matches(where[-1], known_fields(section), n=1, cutoff=0.5)
    hint = f", did you mean {'.'.join([*section, near[0]])}?" if near else ""
    return f"unknown field {field}{hint}"


def known_fields(section: Iterable[str] = ()) -> list[str]:
    """Return the names that a section may have, those of `tao_fields` included."""
    model: Any = Spec
    prefix = ""
    for part in section:
        model = model.model_fields[part].annotation if part in getattr(model, "model_fields", ()) else None
        prefix += f"{part}."
    own = list(model.model_fields) if model is not None else []
    fixed = (key.removeprefix(prefix).partition(".")[0] for key in FIXED if key.startswith(prefix))
    return list(dict.fromkeys([*own, *(fixed if prefix else OTHER_SECTIONS)]))


def _shown(value: object) -> str:
    """A value as YAML has it, in one line of limited length."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), _LONGEST_VALUE)
