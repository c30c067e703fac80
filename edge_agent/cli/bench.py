"""`edge-agent bench`: the speed table of a network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_agent.bench import Measurement
    from edge_agent.config import Settings

PRECISIONS = ("fp32", "fp16", "int8")


def command(
    model: Annotated[
        Path | None,
        typer.Option(metavar="ONNX", help="ReID network; the configured or default one when absent."),
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="tao, imagenet, openvino-raw or swin.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, tensorrt or onnxruntime.", show_default="auto")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16 or int8; repeat it; all that can be had when absent.")
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Batch size; repeat it; 1, 16 and 64 when absent."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each figure is taken.")] = 5.0,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the table as Markdown.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write what --json prints.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="State folder, with calibrations and plans.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; see config.example.toml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Latency and rate by batch and precision, the network alone and end to end.

    INT8 is measured where a calibration of this network chose it. Figures published by NVIDIA stand beside.
    """
    import json

    from edge_agent import bench, factory
    from edge_agent.cli.evaluate import require_folders
    from edge_agent.cli.service import overrides
    from edge_agent.config import load
    from edge_agent.logs import configure
    from edge_agent.manifest import write_atomic, write_json_atomic

    configure("warning")
    wanted = tuple(dict.fromkeys(precision or PRECISIONS))
    if unknown := [name for name in wanted if name not in PRECISIONS]:
        raise typer.BadParameter(f"{unknown[0]!r} is no precision; choose of {', '.join(PRECISIONS)}")
    require_folders(markdown, output)
    values = overrides(
        source=None, detector=None, model=model, preprocess=preprocess, broker=None, state=state
    )
    if backend is not None:
        values.setdefault("engine", {})["backend"] = backend
    settings = load(config, values)
    folder = factory.state_folder(settings.state_dir)
    left_out: dict[str, str] = {}
    batches = tuple(dict.fromkeys(batch or bench.BATCHES))
    with factory.open_telemetry(settings, folder) as telemetry:
        board = telemetry.read().board
        rows = list(_measure(settings, folder, wanted, batches, seconds, board, left_out))
        told = bench.document(rows, left_out, _model(settings, folder), telemetry.read())
    if output is not None:
        write_json_atomic(output, told)
    if markdown is not None:
        write_atomic(markdown, bench.markdown(told).encode())
    print(json.dumps(told, indent=2) if as_json else bench.markdown(told), end="\n" if as_json else "")


def _measure(
    settings: Settings,
    folder: Path,
    precisions: Sequence[str],
    batches: Sequence[int],
    seconds: float,
    board: str | None,
    left_out: dict[str, str],
) -> Iterator[Measurement]:
    """Rows for every precision and batch; what cannot be had goes to `left_out` with the reason."""
    from rich.console import Console

    from edge_agent import bench, factory
    from edge_agent.errors import ConfigError, EngineError, ModelError

    calibration = factory.current_calibration(settings.engine, folder)
    largest = max(settings.engine.max_batch, *batches)  # one plan for all sizes
    with Console(stderr=True).status("") as status:
        for precision in precisions:
            for size in batches:
                status.update(f"measuring {precision}, batch {size}")
                engine = settings.engine.model_copy(update={"precision": precision, "max_batch": largest})
                try:
                    chosen = settings.model_copy(update={"engine": engine})
                    with factory.open_configured_embedder(
                        chosen, folder, calibration, max_batch=size
                    ) as embedder:
                        yield bench.measure(embedder, seconds=seconds, board=board)
                except (EngineError, ModelError, ConfigError) as problem:
                    if precision == "fp32":
                        raise  # the network itself does not run
                    left_out[precision] = str(problem)
                    break


def _model(settings: Settings, folder: Path) -> dict[str, Any]:
    from edge_agent import factory

    model = factory.choose_model(settings.engine, folder)
    prepared, _ = factory.prepare_model(model.path, model.preprocess, folder)
    return prepared.facts()
