"""TAO's fields that this trainer does not implement, old names, and the marks of its configuration language.

Names and defaults are from NVIDIA's sources: `re_identification/config/default_config.py` of
tao_pytorch_backend (TAO 5.0 and 5.5) and of tao-core, `common_config.py` of both, the specs of tao_tutorials,
and the documentation of TAO 4.0.1 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

MISSING = "???"
"""How OmegaConf, TAO's configuration language, marks a value that must be given."""

OTHER_SECTIONS = (
    "inference",
    "gen_trt_engine",
    "dataset_convert",
    "quantize",
    "prune",
    "distill",
    "wandb",
    "clearml",
    "model_name",
)
"""Entries of a spec for commands and services that this program does not have."""

SECTIONS_OF_4 = {
    "model_config": "model",
    "train_config": "train",
    "dataset_config": "dataset",
    "re_ranking_config": "re_ranking",
}
"""Sections of TAO 4.0, and their names since TAO 5.0."""

RENAMED = {"train.optim.steps": "train.optim.lr_steps"}
"""Fields of TAO 5.0, and their present names."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A field of which only TAO's default is accepted; `since`: the first release in which it was read."""

    default: bool | int | float | str | list[int] | None
    since: str
    purpose: str


_SWIN = "Swin transformer"
_TRANSREID = "TransReID's patch rearrangement, Swin transformer"
_BEST = "best checkpoints by any figure; here `best.pth` by mAP"

FIXED: Mapping[str, Fixed] = {
    "model.input_channels": Fixed(3, "5.0", "colours"),
    "model.neck": Fixed("bnneck", "5.0", "batch normalisation before the classifier"),
    "model.pretrain_hw_ratio": Fixed(2.0, "5.2", "shape of the pretraining pictures, Swin transformer"),
    "model.id_loss_type": Fixed("softmax", "5.5", "other identity losses"),
    "model.id_loss_weight": Fixed(1.0, "5.5", "weight of the identity loss"),
    "model.triplet_loss_weight": Fixed(1.0, "5.5", "weight of the triplet loss"),
    "model.no_margin": Fixed(False, "5.2", "soft margin; here `train.optim.triplet_loss_margin: 0`"),
    "model.cos_layer": Fixed(False, "5.5", "cosine classifier"),
    "model.dropout_rate": Fixed(0.0, "5.5", "dropout before the classifier"),
    "model.drop_path": Fixed(0.1, "5.5", _SWIN),
    "model.drop_out": Fixed(0.0, "5.5", _SWIN),
    "model.att_drop_rate": Fixed(0.0, "5.5", _SWIN),
    "model.stride_size": Fixed([16, 16], "5.2", _SWIN),
    "model.stem_conv": Fixed(False, "5.5", _SWIN),
    "model.semantic_weight": Fixed(1.0, "5.5", _SWIN),
    "model.jpm": Fixed(False, "5.5", _TRANSREID),
    "model.shift_num": Fixed(5, "5.5", _TRANSREID),
    "model.shuffle_group": Fixed(2, "5.5", _TRANSREID),
    "model.devide_length": Fixed(4, "5.5", _TRANSREID),
    "model.re_arrange": Fixed(True, "5.5", _TRANSREID),
    "model.sie_coe": Fixed(3.0, "5.5", "camera and view embeddings, TransReID"),
    "model.sie_camera": Fixed(False, "5.5", "camera and view embeddings, TransReID"),
    "model.sie_view": Fixed(False, "5.5", "camera and view embeddings, TransReID"),
    "train.num_gpus": Fixed(1, "5.5", "several GPUs"),
    "train.num_nodes": Fixed(1, "5.5", "several computers"),
    "train.checkpoint_interval_unit": Fixed("epoch", "after 5.5", "checkpoints by steps"),
    "train.checkpointer.enable_topk": Fixed(False, "7", _BEST),
    "train.checkpointer.replace_periodic": Fixed(False, "7", _BEST),
    "train.checkpointer.monitor": Fixed(None, "7", _BEST),
    "train.checkpointer.mode": Fixed(None, "7", _BEST),
    "train.checkpointer.save_top_k": Fixed(1, "7", _BEST),
    "train.checkpointer.filename": Fixed("model_best_{epoch:03d}", "7", _BEST),
    "train.checkpointer.dirpath": Fixed(None, "7", _BEST),
    "train.checkpointer.auto_insert_metric_name": Fixed(False, "7", _BEST),
    "train.optim.lr_monitor": Fixed("val_loss", "5.0", "figure for schedulers that follow one"),
    "train.optim.cosine_margin": Fixed(0.5, "5.5", "cosine classifier"),
    "train.optim.cosine_scale": Fixed(30.0, "5.5", "cosine classifier"),
    "train.optim.trp_l2": Fixed(False, "5.5", "triplet loss on unit rows"),
    "evaluate.num_gpus": Fixed(1, "5.5", "several GPUs"),
    "evaluate.gpu_ids": Fixed([0], "5.5", "choice of the GPU; here `--backend`"),
    "evaluate.gpu_id": Fixed(0, "5.0", "choice of the GPU; here `--backend`"),
    "evaluate.num_nodes": Fixed(1, "5.5", "several computers"),
    "evaluate.trt_engine": Fixed(None, "after 5.5", "TensorRT plan; here `--backend tensorrt`"),
    "evaluate.batch_size": Fixed(-1, "after 5.5", "batch of a TensorRT plan"),
    "export.gpu_id": Fixed(0, "5.0", "choice of the GPU"),
}
"""Fields by name, whose default means the same here as in TAO, or nothing for the networks trained here."""

GROUPS = frozenset(key.rpartition(".")[0] for key in FIXED if key.count(".") == 2) - {"train.optim"}
"""Sections of which every field is in `FIXED`."""


def renamed(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a deep copy with present names, and faults where both names are given."""
    values, faults = {key: _copied(value) for key, value in content.items()}, []
    for old, new in RENAMED.items():
        section, name = _section(values, old)
        if section is None or name not in section:
            continue
        if new.rpartition(".")[2] in section:
            faults.append(f"{old} is the old name of {new}, which is given too: remove one")
        section.setdefault(new.rpartition(".")[2], section.pop(name))
    return values, faults


def settle(content: Mapping[str, Any], shown: Callable[[object], str]) -> tuple[dict[str, Any], list[str]]:
    """Return what is left of a spec without fields in `FIXED`, and what is wrong with those.

    Also refused are values that TAO would fill in or look up. `shown` formats a value for a fault.
    """
    values, faults = renamed(content)
    faults += _placeholders(values, shown)
    for key, fixed in FIXED.items():
        section, name = _section(values, key)
        if section is None or name not in section:
            continue
        value = section.pop(name)
        if not _same(value, fixed.default) and not is_placeholder(value):
            faults.append(
                f"{key}: {shown(value)} is not supported here, only TAO's default {shown(fixed.default)} "
                f"({fixed.purpose})"
            )
    for key in GROUPS:
        section, name = _section(values, key)
        if section is not None and section.get(name) in ({}, None):
            section.pop(name, None)
    return values, faults


def _section(values: Mapping[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The section that holds the last part of a dotted key, None where there is none, and that part."""
    *sections, name = key.split(".")
    found: Any = values
    for part in sections:
        found = found.get(part) if isinstance(found, dict) else None
    return (found if isinstance(found, dict) else None), name


def _copied(value: Any) -> Any:  # noqa: ANN401  # whatever YAML holds
    """A copy that shares nothing, also where aliases made one part occur twice."""
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _same(value: object, default: object) -> bool:
    """Whether a value is the default, read as leniently as TAO reads it: `"1"` is 1, and 1 is 1.0."""
    if default is None:
        return value in (None, "")
    if isinstance(value, bool) is not isinstance(default, bool) and not isinstance(value, str):
        return False
    kind: Any = list[int] if isinstance(default, list) else type(default)
    try:
        return bool(TypeAdapter(kind).validate_python(value) == default)
    except ValidationError:
        return False


def is_placeholder(value: object) -> bool:
    """Whether a value is one that TAO's configuration language fills in or looks up."""
    return isinstance(value, str) and (value == MISSING or "${" in value)


def _placeholders(values: Mapping[str, Any], shown: Callable[[object], str]) -> list[str]:
    faults = []
    for key, value in _leaves(values):
        if not is_placeholder(value):
            continue
        if value == MISSING:
            faults.append(f"{key} must be given, {MISSING} is TAO's mark for that: {key}=VALUE")
        else:
            named = f"{key}: {shown(value)}" if key != "encryption_key" else key
            faults.append(f"{named} is not looked up here: write the value itself, or give {key}=VALUE")
    return faults


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401  # whatever YAML holds
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one, key)
    else:
        yield key, value
