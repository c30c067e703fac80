"""What a server states about a model, and whether the agent can use it.

Two kinds of models are served: the prepared graph (`uint8 [N, H, W, 3]` BGR -> unit rows), and a network as
TAO exports it (`float32 [N, 3, H, W]` -> rows of any length), whose pre- and postprocessing is done here.
Sizes and types come from the model's metadata. Its configuration, which not every server gives, adds the
largest batch and the parameters that `edge-agent export --triton` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_agent.core.arrays import MOST_NUMBERS
from edge_agent.core.errors import ConfigError, ModelError
from edge_agent.core.text import visible
from edge_agent.engine.graph.prepared import (
    PROFILES,
    PreparedGraph,
    PreprocessProfile,
    embedding_space,
    profile_named,
)
from edge_agent.engine.graph.reading import MOST_PIXELS

if TYPE_CHECKING:
    from edge_agent.core.served import ServedModel

SPACE, SHA256 = "edge_agent_space", "edge_agent_model_sha256"
PROFILE, CARD = "edge_agent_profile", "edge_agent_card"
"""Parameters of a model's configuration: its embedding space, what it is made of, and the card as JSON."""

_PRECISIONS = ("fp32", "fp16", "int8")
_ADVICE = "export it with `edge-agent export --triton`"


@dataclass(frozen=True, slots=True)
class Network:
    """The network whose rows are wanted; fields as in `PreparedGraph`."""

    name: str
    sha256: str
    space: str
    dimension: int
    input_size: tuple[int, int]
    profile: PreprocessProfile

    @staticmethod
    def of(prepared: PreparedGraph) -> Network:
        """Return the network of a local file."""
        assert prepared.profile is not None  # only detectors have none
        return Network(
            prepared.name,
            prepared.source_sha256,
            prepared.space,
            prepared.dimension,
            prepared.input_size,
            prepared.profile,
        )


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server.

    Attributes:
        model: where it is.
        input, output: names of its tensors.
        prepared: whether it is a prepared graph.
        input_size: `(height, width)`; None where the model takes any.
        dimension: numbers of a row; None where the server does not state it.
        most: pictures of one request; None without a limit.
        platform: as the server names it.
        stated: parameters of the configuration.
    """

    model: ServedModel
    input: str
    output: str
    prepared: bool
    input_size: tuple[int, int] | None
    dimension: int | None
    most: int | None
    platform: str
    stated: Mapping[str, str]

    def network(self) -> Network:
        """Return the network that the server states.

        Raises:
            ConfigError: it states none; the settings must name it.
            ModelError: the statement is not consistent.
        """
        space, sha256, name = (self.stated.get(key, "") for key in (SPACE, SHA256, PROFILE))
        if not space:
            raise ConfigError(
                f"the server does not state the embedding space of {self.model} (parameter {SPACE}): name the"
                " ONNX file of this network by engine.model, and its profile by engine.preprocess, or"
                f" {_ADVICE}"
            )
        if name not in PROFILES or self.dimension is None or self.input_size is None:
            raise ModelError(
                f"{self.model} states an embedding space, but not a known profile ({PROFILE}:"
                f" {', '.join(sorted(PROFILES))}) and fixed sizes of input and output; {_ADVICE}"
            )
        profile = profile_named(name)
        if embedding_space(sha256, profile, self.dimension) != space:
            raise ModelError(
                f"{self.model}: the stated {SPACE} does not follow from {SHA256}, {PROFILE} and"
                f" {self.dimension} numbers per row; {_ADVICE} again"
            )
        stated = str(self.card().get("name") or self.model.model)
        return Network(visible(stated, 64), sha256, space, self.dimension, self.input_size, profile)

    def card(self) -> Mapping[str, Any]:
        """Return the stated model card; empty where there is none."""
        with suppress(ValueError, RecursionError):
            card = json.loads(self.stated.get(CARD, ""))
            if isinstance(card, dict):
                return card
        return {}

    def precision(self, wanted: str) -> str:
        """Return what it computes in: as wanted, as stated, or as is usual; `wanted` may be `auto`.

        ConfigError: it states another one than is wanted.
        """
        stated = str(self.card().get("precision", ""))
        if stated not in _PRECISIONS:
            stated = ""
        if wanted != "auto" and stated and wanted != stated:
            raise ConfigError(f"engine.precision is {wanted}, but {self.model} computes in {stated}")
        if wanted != "auto":
            return wanted
        return stated or ("fp16" if "tensorrt" in self.platform else "fp32")

    def check(self, wanted: Network) -> None:
        """Raise ModelError where the server states another network than the wanted one, or other sizes."""
        stated = self.stated.get(SPACE, "")
        if stated and stated != wanted.space:
            raise ModelError(
                f"{self.model} has the embedding space {visible(stated, 64)}, but {wanted.name} with profile"
                f" {wanted.profile.name} has {wanted.space}: they cannot be compared; name the served network"
                " by engine.model, or serve the one that is named"
            )
        sizes, dimensions = (None, wanted.input_size), (None, wanted.dimension)
        if self.input_size not in sizes or self.dimension not in dimensions:
            raise ModelError(
                f"{self.model} takes pictures of {_size(self.input_size)} and gives {self.dimension} numbers,"
                f" but {wanted.name} takes {_size(wanted.input_size)} and gives {wanted.dimension}"
            )


def _size(size: tuple[int, int] | None) -> str:
    return "any size" if size is None else f"{size[1]} x {size[0]}"


def read_served(model: ServedModel, metadata: Any, config: Any) -> Served:  # noqa: ANN401 - protobuf messages
    """Read `ModelMetadataResponse` and `ModelConfig`, which may be None.

    ModelError: the model has other inputs, outputs, types or shapes than one of the two kinds.
    """
    shown = f"{model} {_signature(metadata)}"
    if len(metadata.inputs) != 1 or len(metadata.outputs) != 1:
        raise ModelError(f"{shown}: expected one input and one output")
    source, target = metadata.inputs[0], metadata.outputs[0]
    batch, *shape = list(source.shape) or [0]
    prepared = source.datatype == "UINT8"
    laid = len(shape) == 3 and shape[2 if prepared else 0] == 3
    if not laid or source.datatype not in {"UINT8", "FP32"}:
        raise ModelError(
            f"{shown}: expected UINT8 [-1, H, W, 3], the prepared graph, or FP32 [-1, 3, H, W]; {_ADVICE}"
        )
    if target.datatype != "FP32" or len(target.shape) != 2:
        raise ModelError(f"{shown}: expected FP32 [-1, D] as output; {_ADVICE}")
    if batch not in {-1, 1} or target.shape[0] not in {-1, batch}:
        raise ModelError(f"{shown}: the first axis must be the batch, and free; {_ADVICE}")
    size = tuple(shape[:2] if prepared else shape[1:])
    free = min(size) == -1
    fits = free or (min(size) > 0 and size[0] * size[1] <= MOST_PIXELS)
    if not fits or target.shape[1] > MOST_NUMBERS:
        raise ModelError(f"{shown}: the sizes are not those of a network for people")
    stated, most = {}, None
    if config is not None:
        most = max(config.max_batch_size, 0) or None
        stated = {key: value.string_value for key, value in config.parameters.items()}
    return Served(
        model=model,
        input=source.name,
        output=target.name,
        prepared=prepared,
        input_size=None if free else (size[0], size[1]),
        dimension=None if target.shape[1] < 1 else int(target.shape[1]),
        most=1 if batch == 1 else most,
        platform=metadata.platform,
        stated=stated,
    )


def _signature(metadata: Any) -> str:  # noqa: ANN401
    def tensors(found: Sequence[Any]) -> str:
        return ", ".join(f"{visible(one.name, 64)} {one.datatype} {list(one.shape)}" for one in found[:4])

    return f"takes {tensors(metadata.inputs)} and gives {tensors(metadata.outputs)}"
