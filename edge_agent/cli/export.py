"""`edge-agent export`: the network of the agent, or a checkpoint, for other programs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from edge_agent.cli import arguments
from edge_agent.cli.output import print_result, working
from edge_agent.cli.tao import SpecOption, load

if TYPE_CHECKING:
    from edge_agent.offline.exports.network import ExportNetwork
    from edge_agent.offline.train.export import Exported

_Shown = tuple[dict[str, Any], list[str]]
"""The result as JSON values, and as lines."""
_TARGETS = "-o MODEL.onnx, --triton DIR or --deepstream DIR"
_NO_TARGET = f"name the target: {_TARGETS}"
_TRAINED = frozenset({".pth", ".pt", ".ckpt", ".tlt", ".etlt"})
_SPECS = frozenset({".yaml", ".yml"})


GivenArguments = Annotated[
    list[str] | None,
    Argument(
        metavar="MODEL|KEY=VALUE",
        help="Checkpoint of `edge-agent train`, a spec whose export section names one, or a network as "
        "engine.model takes it; without it, what the agent runs, with its active calibration. After a spec, "
        "values that replace its own.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path | None,
    Option("-o", "--output", metavar="MODEL.onnx", help="Write ONNX with TAO's tensor names."),
]
TritonOption = Annotated[
    Path | None,
    Option("--triton", metavar="DIR", help="Write a model into this repository of a Triton server."),
]
TaoOption = Annotated[
    bool,
    Option("--tao", help="With --triton: names, shapes and raw rows of NVIDIA's re_identification_tao."),
]
GpuOption = Annotated[
    bool, Option("--gpu", help="With --triton: the server computes an ONNX file on its GPU.")
]
MaxBatchOption = Annotated[
    int | None, Option(min=1, help="With --triton: largest batch of the server; else engine.max_batch.")
]
DeepStreamOption = Annotated[
    Path | None,
    Option("--deepstream", metavar="DIR", help="Write a network and settings for DeepStream as this folder."),
]
AspectOption = Annotated[
    bool,
    Option("--keep-aspect", help="With --deepstream: do not stretch people; another embedding space."),
]
CropsOption = Annotated[
    Path | None,
    Option(metavar="DIR", help="With --deepstream: measure on these crops instead of rendered people."),
]
BackendOption = Annotated[
    str | None,
    Option(help="tensorrt: the plan of this device; onnxruntime: ONNX; the configured one by default."),
]
PrecisionOption = Annotated[
    str | None, Option(help="auto, fp32, fp16 or int8; the configured one by default.")
]
NoteOption = Annotated[
    list[str] | None, Option(metavar="KEY=TEXT", help="Entry of the model card; may be repeated.")
]


def command(
    given: GivenArguments = None,
    *,
    spec: SpecOption = None,
    output: OutputOption = None,
    triton: TritonOption = None,
    tao: TaoOption = False,
    gpu: GpuOption = False,
    max_batch: MaxBatchOption = None,
    deepstream: DeepStreamOption = None,
    keep_aspect: AspectOption = False,
    crops: CropsOption = None,
    preprocess: arguments.PreprocessOption = None,
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    note: NoteOption = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace what exists.")] = False,
    state: arguments.StateOption = None,
    config: arguments.ConfigOption = None,
    as_json: arguments.JsonOption = False,
) -> None:
    """Export a network, checked, to ONNX, to a Triton model repository, or for DeepStream.

    A checkpoint needs PyTorch, and is compared with it to 1e-4. Any other network is exported as the agent
    runs it: in the same precision, and for TensorRT as the same plan. More: docs/triton.md,
    docs/deepstream.md.
    """
    from edge_agent.core.errors import ConfigError

    engine = {"backend": backend, "precision": precision, "max_batch": max_batch}
    model, spec, values = _named(given or [], spec)
    export = _Export(
        model, spec, values, _notes(note or []), preprocess, engine, overwrite, state=state, config=config
    )
    named = [path for path in (output, triton, deepstream) if path is not None]
    arguments.require_folders(*named)
    if len(named) > 1:
        raise ConfigError(f"there are {len(named)} targets, and one is possible: {_TARGETS}")
    if triton is None and (tao or gpu or max_batch is not None):
        raise ConfigError("--tao, --gpu and --max-batch belong to --triton DIR")
    if deepstream is None and (keep_aspect or crops is not None):
        raise ConfigError("--keep-aspect and --crops belong to --deepstream DIR")
    if triton is not None:
        result, lines = _to_triton(export, triton, tao=tao, gpu=gpu)
    elif deepstream is not None:
        result, lines = _to_deepstream(export, deepstream, crops, keep_aspect=keep_aspect)
    elif export.trained:
        result, lines = _trained_to_onnx(export, output)
    elif output is not None:
        result, lines = _network_to_onnx(export, output)
    else:
        raise ConfigError(_NO_TARGET)
    print_result(result, lines, as_json=as_json, indent=None)


def _named(given: list[str], spec: Path | None) -> tuple[Path | None, Path | None, list[str]]:
    """Return the model, the spec, and the values that replace those of the spec."""
    from edge_agent.core.errors import ConfigError

    if spec is not None:
        return None, spec, given
    model, *values = given or [""]
    if Path(model).suffix.lower() in _SPECS:
        return None, Path(model), values
    if values:
        raise ConfigError(f"{values[0]}: one model is exported; KEY=VALUE needs a spec, -e SPEC.yaml")
    return Path(model) if model else None, None, []


@dataclass(frozen=True)
class _Export:
    """What all targets have in common; `engine` are the given settings of the section of this name."""

    model: Path | None
    spec: Path | None
    values: list[str]
    notes: dict[str, str]
    preprocess: str | None
    engine: dict[str, Any]
    overwrite: bool
    state: Path | None
    config: Path | None

    @property
    def trained(self) -> bool:
        """Whether a checkpoint is exported, also one that a spec names."""
        return self.spec is not None or (self.model is not None and self.model.suffix.lower() in _TRAINED)

    def network(self) -> ExportNetwork:
        """Return the network as the agent runs it; one of a checkpoint is exported to ONNX first."""
        from edge_agent.core.errors import InputError
        from edge_agent.core.files import shown
        from edge_agent.offline.exports.network import open_network

        if self.model is not None and os.path.isdir(self.model):  # noqa: PTH112 - False for all errors
            name = shown(self.model)
            raise InputError(
                f"{name} is a folder: name a network, or, if it is a state folder, export what its agent "
                f"runs with --state {name}"
            )
        with TemporaryDirectory() as scratch:
            model = self.model
            if self.trained:
                checkpoint, _ = self.trained_files()
                model = Path(scratch) / f"{checkpoint.stem}.onnx"
                self.export_trained(checkpoint, model)
            settings = arguments.load_settings(
                self.config, state=self.state, model=model, preprocess=self.preprocess, **self.engine
            )
            if model is not None:  # the configured profile is that of the configured network
                engine = settings.engine.model_copy(update={"preprocess": self.preprocess})
                settings = settings.model_copy(update={"engine": engine})
            return open_network(settings, self.notes)

    def trained_files(self) -> tuple[Path, Path | None]:
        """Return the checkpoint, and the ONNX file where a spec names one."""
        from edge_agent.core.errors import ConfigError

        arguments.require_torch("exporting a checkpoint")
        if self.spec is None:
            assert self.model is not None  # see `trained`
            return self.model, None
        section = load(self.spec, self.values, "export").export
        if section.checkpoint is None:
            raise ConfigError(f"{self.spec}: export.checkpoint is missing")
        return section.checkpoint, section.onnx_file

    def export_trained(self, checkpoint: Path, target: Path) -> Exported:
        """Export a checkpoint to ONNX, checked against PyTorch."""
        from edge_agent.core.logs import configure
        from edge_agent.offline.train.export import export_onnx

        configure("warning")
        return export_onnx(checkpoint, target, notes=self.notes, overwrite=self.overwrite)


def _trained_to_onnx(export: _Export, output: Path | None) -> _Shown:
    from edge_agent.core.errors import ConfigError

    given = {"preprocess": export.preprocess, **export.engine, "state": export.state, "config": export.config}
    if useless := [f"--{name}" for name, value in given.items() if value is not None]:
        raise ConfigError(f"{', '.join(useless)}: a checkpoint is exported to ONNX as it was trained")
    checkpoint, named = export.trained_files()
    target = output or named
    if target is None:
        raise ConfigError(_NO_TARGET)
    done = export.export_trained(checkpoint, target)
    result = {
        "onnx": str(done.path),
        "sha256": done.sha256,
        "bytes": done.size,
        "dimension": done.dimension,
        "difference": done.difference,
        "card": dict(done.card),
    }
    lines = [_written(done.path, done.size, done.sha256, done.dimension)]
    return result, [*lines, f"largest difference to PyTorch: {done.difference:.1e}"]


def _network_to_onnx(export: _Export, output: Path) -> _Shown:
    from edge_agent.offline.exports.onnx import check_file, export_network

    check_file(output, overwrite=export.overwrite)
    network = export.network()
    done = export_network(network, output, overwrite=export.overwrite)
    result = {
        "onnx": str(done.path),
        "sha256": done.sha256,
        "bytes": done.bytes,
        "dimension": network.graph.dimension,
        "precision": network.graph.precision,
        "card": dict(done.card),
    }
    lines = [_written(done.path, done.bytes, done.sha256, network.graph.dimension), _origin(network)]
    return result, [*lines, f"input: RGB, normalised by the profile {network.profile.name}"]


def _to_triton(export: _Export, repository: Path, *, tao: bool, gpu: bool) -> _Shown:
    from edge_agent.offline.exports.triton import check_repository, export_triton

    check_repository(repository, tao=tao, overwrite=export.overwrite)
    network = export.network()
    with working(f"exporting {network.graph.name}") as step:

        def building(phase: str, done: int, total: int) -> None:
            step(f"building a plan of {network.graph.name}: {phase} {done}/{total}" if total else phase)

        done = export_triton(
            network, repository, tao=tao, gpu=gpu, overwrite=export.overwrite, progress=building
        )
    result = {
        "folder": str(done.folder),
        "model": str(done.model),
        "sha256": done.sha256,
        "bytes": done.bytes,
        "max_batch": done.max_batch,
        "card": dict(done.card),
    }
    lines = [_written(done.model, done.bytes, done.sha256, network.graph.dimension), _origin(network)]
    lines.append(f"serve it: tritonserver --model-repository={repository.absolute()}")
    if "plan" in done.card:
        plan = done.card["plan"]
        lines.append(f"the server needs TensorRT {plan['tensorrt']} and the GPU {plan['gpu']}")
    if tao:
        lines.append(
            "NVIDIA's client resizes and normalises in its own way, whatever the profile "
            f"({network.profile.name}): docs/triton.md states what that changes"
        )
    return result, lines


def _to_deepstream(export: _Export, folder: Path, crops: Path | None, *, keep_aspect: bool) -> _Shown:
    from dataclasses import asdict

    from edge_agent.cli.embed import pictures_of
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.exports.deepstream.crops import crops_of, rendered_crops
    from edge_agent.offline.exports.deepstream.export import check_folder, export_deepstream, precision_of

    if export.engine["backend"] is not None:
        raise ConfigError("--backend does not go with --deepstream, which computes on TensorRT")
    check_folder(folder, overwrite=export.overwrite)
    paths = [] if crops is None else pictures_of(crops, ())[0]
    network = export.network()
    precision, scales = precision_of(network)
    with working(f"exporting {network.graph.name}"):
        done = export_deepstream(
            network.prepared,
            folder,
            rendered_crops() if crops is None else crops_of(paths, crops),
            precision=precision,
            scales=scales,
            keep_aspect=keep_aspect,
            notes=network.notes,
            overwrite=export.overwrite,
        )
    rule, other = "stretched, as the agent does", "with the aspect ratio kept"
    if keep_aspect:
        rule, other = "with their aspect ratio kept", "stretched"
    lines = [
        f"{folder}: {done.source}, profile {done.profile}, {precision.upper()}; see {folder / 'README.md'}",
        f"embedding space {done.space} (detector.external_space): people {rule}",
        f"cosine to the agent's embedding, {done.crops}: {done.same.least:.6f} at least for the same crop, "
        f"{done.moved.mean:.3f} on average a pixel off, {done.padded.mean:.3f} {other}",
    ]
    return {"folder": str(folder), **asdict(done)}, lines


def _written(path: Path, size: int, digest: str, dimension: int) -> str:
    return f"{path}: {size:,} bytes, {dimension} numbers an embedding, sha256 {digest}"


def _origin(network: ExportNetwork) -> str:
    from edge_agent.core.files import shown

    by = "" if network.calibration is None else f" of the calibration {network.calibration.name}"
    return f"{shown(network.graph.source.name)}, {network.graph.precision.upper()}{by}"


def _notes(entries: list[str]) -> dict[str, str]:
    from edge_agent.core.errors import ConfigError
    from edge_agent.core.text import encodable

    notes = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key.isidentifier() or encodable(entry) != entry:
            raise ConfigError(f"--note {entry!r}: expected KEY=TEXT, as in --note licence=Apache-2.0")
        notes[key] = text
    return notes
