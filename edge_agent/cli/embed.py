"""`edge-agent embed`: crops to embedding files."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.offline.dataset import Split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_agent.core.structures import EngineInfo
    from edge_agent.offline.evaluate.embedding import CropEmbedder, EmbeddedPaths


def command(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A picture, a folder of crops, or a data set.")
    ],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="FILE.npy, FILE.npz or FILE.json (TAO).")
    ],
    model: Annotated[
        Path | None, typer.Option(metavar="ONNX", help="ReID network; the default model when absent.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="tao, imagenet, openvino-raw or swin.")
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs the network; auto takes the fastest.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16, or int8 of the active calibration; auto: FP16 on TensorRT, else FP32."
        ),
    ] = "auto",
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Keep the network's own vector lengths, as TAO's files do (ONNX Runtime)."
        ),
    ] = False,
    split: Annotated[
        list[Split] | None, typer.Option(help="Of a data set, this split only; may be given again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Embed every crop; pictures that cannot be read are left out and listed."""
    import json
    import tempfile

    from edge_agent.core.errors import InputError
    from edge_agent.offline.evaluate.files import check_suffix, write_embeddings

    check_suffix(output)
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: the folder {output.parent} does not exist; make it first")
    paths = _pictures(source, tuple(split or ()))
    with (
        tempfile.TemporaryDirectory() as state,
        open_chosen(model, preprocess, Path(state), backend=backend, precision=precision, raw=raw) as (
            embedder,
            profile,
        ),
    ):
        done = with_progress(embedder, paths, "crops")
        facts = {**describe(embedder.info, profile), "unit_length": not raw, "input": str(source)}
    left_out = [{"path": str(problem.path), "reason": problem.reason} for problem in done.problems]
    names = [_name(paths[row], source, output) for row in done.rows]
    files = write_embeddings(output, names, done.vectors, {**facts, "left_out": left_out})
    result = {
        "files": [str(path) for path in files],
        "embedded": len(names),
        "dimension": int(done.vectors.shape[1]),
        "left_out": left_out,
        "model": facts,
    }
    print(json.dumps(result, indent=2) if as_json else _told(result))


def _pictures(source: Path, splits: tuple[Split, ...]) -> list[Path]:
    """The pictures that INPUT stands for, in a fixed order."""
    from edge_agent.core.errors import InputError
    from edge_agent.core.pictures import list_pictures
    from edge_agent.offline.dataset import MarketDataset

    present = tuple(split for split in Split if (source / split.folder).is_dir())
    if present:
        return [crop.path for crop in MarketDataset.open(source, splits or present).crops]
    if splits:
        raise InputError(f"{source} is not a data set in Market-1501 layout, so it has no splits to choose")
    if source.is_dir():
        return list(list_pictures(source))
    if not source.is_file():
        raise InputError(f"no picture, folder or data set {source}")
    return [source]


def _name(path: Path, source: Path, output: Path) -> str:
    """What a crop is called in the file: TAO's JSON has paths, the others names relative to INPUT."""
    if output.suffix.lower() == ".json":
        return str(path)
    return path.relative_to(source).as_posix() if source.is_dir() else path.name


@contextmanager
def open_chosen(
    model: Path | None,
    preprocess: str | None,
    state: Path,
    *,
    backend: str,
    precision: str = "auto",
    raw: bool = False,
) -> Iterator[tuple[CropEmbedder, str]]:
    """The chosen or shipped network, entered, with the name of its preprocess profile.

    Args:
        model: ReID ONNX, or the name of a built-in; None for the shipped default.
        preprocess: profile; None for what the model's manifest says.
        state: folder for what has to be made first.
        backend: what runs it; TensorRT's plans are kept where the agent keeps them.
        precision: INT8 is that of the agent's active calibration.
        raw: keep the network's own vector lengths; runs on ONNX Runtime only.

    Raises:
        ConfigError: no such profile or backend, or a raw run on another backend.
    """
    from edge_agent.core.errors import ConfigError
    from edge_agent.core.loading import load
    from edge_agent.core.logs import configure
    from edge_agent.embed.opening import open_embedder
    from edge_agent.engine import choose_backend
    from edge_agent.engine.graph.profiles import profile_named
    from edge_agent.engine.models import choose_model
    from edge_agent.engine.precision.calibration import current_calibration, engines_folder
    from edge_agent.offline.evaluate.embedding import RawEmbedder

    configure("warning")
    if preprocess is not None:
        profile_named(preprocess)
    choose_backend(backend)
    wanted = {"model": model, "preprocess": preprocess, "backend": backend, "precision": precision}
    settings = load(None, {"engine": wanted})
    engine = settings.engine.model_copy(
        update={"folder": engines_folder(settings.engine, settings.state_dir)}
    )
    chosen = choose_model(engine, state)
    if raw:
        if backend not in {"auto", "onnxruntime"} or precision not in {"auto", "fp32"}:
            raise ConfigError("raw embeddings are computed by ONNX Runtime in FP32 only")
        with RawEmbedder(chosen.path, chosen.preprocess) as network:
            yield network, chosen.preprocess
    else:
        calibration = current_calibration(engine, state) if precision == "int8" else None
        with open_embedder(engine, settings.quality, state, calibration) as embedder:
            yield embedder, chosen.preprocess


def with_progress(embedder: CropEmbedder, paths: Sequence[Path], what: str) -> EmbeddedPaths:
    """Embed `paths` with a progress bar where a person looks on."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from edge_agent.offline.evaluate.embedding import embed_paths

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(f"embedding {what}", total=len(paths))
        return embed_paths(embedder, paths, advance=lambda count: bar.advance(task, count))


def describe(info: EngineInfo, profile: str) -> dict[str, Any]:
    """What documents and manifests say about the network."""
    return {
        "name": info.model,
        "sha256": info.model_sha256,
        "preprocess": profile,
        "space": info.space,
        "dimension": info.dimension,
        "backend": info.backend,
        "precision": info.precision,
        "device": info.device,
    }


def _told(result: dict[str, Any]) -> str:
    lines = [f"{result['embedded']} embeddings of {result['dimension']} numbers"]
    lines += [f"  {path}" for path in result["files"]]
    if result["left_out"]:
        lines.append(f"left out since unreadable: {len(result['left_out'])}")
        lines += [f"  {problem['path']} {problem['reason']}" for problem in result["left_out"][:20]]
    return "\n".join(lines)
