"""A model repository of the Triton Inference Server, with the network of the agent in it.

::

    DIR/reidentification/            or re_identification_tao, as in NVIDIA's TAO Triton apps
    ├── config.pbtxt                 batching, warm-up, instances; the model card as parameters
    └── 1/model.onnx                 or model.plan, for TensorRT

The prepared graph takes pixels and gives unit-length rows. With NVIDIA's names it is the bare graph, which
takes what the client has normalised. Fields of `config.pbtxt`: `model_config.proto` of
triton-inference-server/common.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from edge_agent.core.errors import ConfigError, InputError, ModelError
from edge_agent.core.files import shown
from edge_agent.core.manifest import write_error
from edge_agent.engine.graph.inference import shape_of
from edge_agent.engine.graph.prepared import PreparedGraph
from edge_agent.engine.tensorrt.builder import Progress, ignore_progress
from edge_agent.engine.tensorrt.recipe import BuildOptions, batches_for
from edge_agent.engine.triton.contract import CARD, PROFILE, SHA256, SPACE
from edge_agent.offline.exports.folders import check_target, write_folder
from edge_agent.offline.exports.network import ExportNetwork
from edge_agent.offline.exports.text_format import Word, text_format

MODEL_NAME, TAO_MODEL_NAME = "reidentification", "re_identification_tao"
_QUEUE_DELAY_US = 1000
"""A request waits this long for those of other agents. An agent fills batches itself, so more only delays."""
_FILES = _CONFIG, _ONNX, _PLAN = "config.pbtxt", "1/model.onnx", "1/model.plan"
_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8"}
"""Triton's names of ONNX's element types FLOAT and UINT8."""


@dataclass(frozen=True, slots=True)
class TritonExport:
    """A written model.

    Attributes:
        folder: of the model, inside the repository.
        model, sha256, bytes: file that the server loads.
        max_batch: largest batch that the server takes.
        card: as in the parameters.
    """

    folder: Path
    model: Path
    sha256: str
    bytes: int
    max_batch: int
    card: Mapping[str, Any]


def check_repository(repository: Path, *, tao: bool, overwrite: bool) -> Path:
    """Return the folder that the model would get, before anything is computed; InputError if it cannot."""
    name = shown(repository)
    if os.path.lexists(repository / _CONFIG):
        raise InputError(f"{name} is the folder of one model; name the repository above it")
    if os.path.lexists(repository) and not os.path.isdir(repository):  # noqa: PTH112 - False for all errors
        raise InputError(f"{name} exists and is not a folder; name the folder of a model repository")
    folder = repository / (TAO_MODEL_NAME if tao else MODEL_NAME)
    if os.path.lexists(folder) and not overwrite:
        raise InputError(
            f"{shown(folder)} exists already: name another repository, or give --overwrite to replace it. A "
            f"second version is not added, since {_CONFIG} belongs to all versions of a model and states the "
            "embedding space of one"
        )
    check_target(folder, _FILES, overwrite=overwrite)
    return folder


def export_triton(
    network: ExportNetwork,
    repository: Path,
    *,
    tao: bool = False,
    gpu: bool = False,
    overwrite: bool = False,
    progress: Progress = ignore_progress,
) -> TritonExport:
    """Write the model into a repository, which is made where it does not exist.

    Args:
        network: to export; for TensorRT its plan, which is built where there is none yet.
        repository: the folder that the server gets as `--model-repository`.
        tao: with the names, shapes and raw rows of NVIDIA's TAO Triton apps.
        gpu: let the server compute an ONNX file on its GPU; a plan always is.
        overwrite: replace a model of the same name.
        progress: called during the build of a plan.

    Raises:
        InputError: the model exists already, or the repository is no folder.
        ConfigError: Triton cannot serve what these settings ask for.
        ModelError, EngineError: the graph or the plan cannot be made.
        StorageError: the files cannot be written; nothing is left of them.
    """
    folder = check_repository(repository, tao=tao, overwrite=overwrite)
    graph = network.bare() if tao else network.graph
    card = {**network.card(), "rows": "as the network gives them" if tao else "of unit length"}
    profiles: tuple[int, ...] = ()
    if network.backend == "tensorrt":
        plan = _plan(network, graph, progress)
        name, data, profiles = _PLAN, plan.data, plan.batches
        card["plan"] = {"tensorrt": plan.machine["tensorrt"], "gpu": plan.machine["gpu"], "batches": profiles}
    else:
        name, data = _ONNX, graph.onnx
    batch = min(network.settings.max_batch, graph.batch or network.settings.max_batch)
    config = model_config(graph, folder.name, batch=batch, gpu=gpu, profiles=profiles, card=card)
    text = f"# Written by {card['producer']}\n" + "".join(f"{line}\n" for line in text_format(config))
    with _made(repository):
        write_folder(
            folder,
            {_CONFIG: text.encode(), name: data},
            _FILES,
            overwrite=overwrite,
            scratch=_scratch(repository),
        )
    digest = hashlib.sha256(data).hexdigest()
    return TritonExport(folder, folder / name, digest, len(data), batch, card)


def model_config(
    graph: PreparedGraph,
    name: str,
    *,
    batch: int,
    gpu: bool,
    profiles: Sequence[int],
    card: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the fields of `config.pbtxt`, by name.

    `profiles` are the largest batches of a plan's optimisation profiles; empty for an ONNX file. ConfigError
    where the plan or the graph does not take a batch of `batch`; ModelError where Triton could not serve the
    graph's tensors.
    """
    if batch > (limit := profiles[-1] if profiles else graph.batch or batch):
        raise ConfigError(
            f"{graph.name} takes at most {limit} pictures at once, and {batch} are wanted: give --max-batch "
            f"{limit}, or export the network with a free batch axis"
        )
    taken, given = _tensors(graph)
    sizes = [size for size in (profiles or batches_for(batch)) if size <= batch]
    instances: dict[str, Any] = {"kind": Word("KIND_GPU" if gpu or profiles else "KIND_CPU"), "count": 1}
    if len(profiles) > 1:  # without it, Triton uses the first one alone
        instances["profile"] = [str(index) for index in range(len(profiles))]
    fields: dict[str, Any] = {
        "name": name,
        "backend": "tensorrt" if profiles else "onnxruntime",
        "max_batch_size": batch,
        "input": [taken | {"format": Word("FORMAT_NCHW" if graph.bare else "FORMAT_NHWC")}],
        "output": [given],
        "instance_group": [instances],
        "version_policy": {"latest": {"num_versions": 1}},
        "model_warmup": [_warmup(size, taken) for size in sizes],
    }
    if batch > 1:
        preferred = [size for size in sizes if size > 1]
        fields["dynamic_batching"] = {
            "preferred_batch_size": preferred,
            "max_queue_delay_microseconds": _QUEUE_DELAY_US,
        }
    assert graph.profile is not None  # only detectors have none
    stated = {SPACE: graph.space, SHA256: graph.source_sha256, PROFILE: graph.profile.name}
    stated[CARD] = json.dumps(card, allow_nan=False)
    fields["parameters"] = [{"key": key, "value": {"string_value": text}} for key, text in stated.items()]
    return fields


def _tensors(graph: PreparedGraph) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return name, type and sizes without the batch of the graph's input and output."""
    import onnx

    body = onnx.load_model_from_string(graph.onnx).graph
    weights = {weight.name for weight in body.initializer}
    found = []
    for value in (*(one for one in body.input if one.name not in weights), *body.output):
        kind, shape = _TYPES.get(value.type.tensor_type.elem_type), shape_of(value)
        if kind is None or not shape or shape[0] is not None or not all(shape[1:]):
            raise ModelError(
                f"{graph.source}: tensor {value.name!r} is {shape}; Triton needs a free batch axis and fixed "
                "sizes behind it: export the network again"
            )
        found.append({"name": value.name, "data_type": Word(kind), "dims": cast("list[int]", shape[1:])})
    taken, given = found
    return taken, given


def _warmup(size: int, taken: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request of `size` empty pictures, which the server runs before it is ready."""
    content = {"data_type": taken["data_type"], "dims": taken["dims"], "zero_data": True}
    pictures = {"key": taken["name"], "value": content}
    return {"name": f"batch-{size}", "batch_size": size, "inputs": [pictures]}


@dataclass(frozen=True, slots=True)
class _PlanData:
    data: bytes
    batches: tuple[int, ...]
    machine: Mapping[str, Any]


def _plan(network: ExportNetwork, graph: PreparedGraph, progress: Progress) -> _PlanData:
    """Return the plan of the graph from the engines folder, else build it there."""
    from edge_agent.engine.plans.store import PlanStore
    from edge_agent.engine.tensorrt.supply import PlanBuilder

    settings = network.settings
    if settings.dla_core is not None:
        raise ConfigError(
            f"engine.dla_core {settings.dla_core}: a plan for the accelerator takes batches of a few exact "
            "sizes, and Triton fills none up; leave engine.dla_core out for the export"
        )
    options = BuildOptions(
        precision=cast("Literal['fp32', 'fp16', 'int8']", graph.precision),
        batches=batches_for(settings.max_batch),
        workspace_mb=settings.workspace_mb,
    )
    builder = PlanBuilder(PlanStore(network.engines), graph, options, progress=progress)
    plan = builder.plan()
    return _PlanData(plan.data, plan.batches, asdict(builder.order().machine))


def _scratch(repository: Path) -> Path:
    """Return where to write: beside the repository, since a server takes every folder inside for a model.

    Inside it, where the folder above is another disk, as of a container, or may not be written.
    """
    above = repository.absolute().parent
    same = not repository.exists() or repository.stat().st_dev == above.stat().st_dev
    return above if same and os.access(above, os.W_OK | os.X_OK) else repository


@contextlib.contextmanager
def _made(repository: Path) -> Iterator[None]:
    """Make the folder for the block, and remove it after an error where it is new."""
    new = not os.path.lexists(repository)
    try:
        repository.mkdir(exist_ok=True)
    except OSError as problem:
        raise write_error(repository, problem) from problem
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                repository.rmdir()
        raise
