"""`edge-agent bench`: the speed table of a network on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_agent.core.config import Settings
    from edge_agent.offline.bench.speed import Measurement

PRECISIONS = ("fp32", "fp16", "int8")


PIPELINE_ALONE = (
    "cameras", "people", "tallest", "identities", "exemplars", "load", "fps", "broker", "trace", "profile",
)  # fmt: skip
"""Options that mean something with --pipeline alone."""


def command(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Option(metavar="ONNX", help="ReID network; the configured or default one when absent."),
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="tao, imagenet, openvino-raw or swin.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            "--engine",
            help="auto, tensorrt, onnxruntime; --pipeline: also simulated:orin-fp16 or simulated:FILE.json.",
            show_default="auto",
        ),
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
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Measure the whole agent, from frames in memory to the broker.")
    ] = False,
    cameras: Annotated[int, typer.Option(min=1, max=64, help="--pipeline: how many.")] = 8,
    people: Annotated[int, typer.Option(min=1, max=128, help="--pipeline: in view of each camera.")] = 8,
    tallest: Annotated[
        float,
        typer.Option(min=0.05, max=1, help="--pipeline: tallest person, as a share of the frame's height."),
    ] = 0.25,
    identities: Annotated[int, typer.Option(min=0, help="--pipeline: people in the gallery.")] = 10_000,
    exemplars: Annotated[int, typer.Option(min=1, max=64, help="--pipeline: embeddings of each.")] = 4,
    load: Annotated[
        float, typer.Option(min=0.01, help="--pipeline: crops offered, as a share of what the engine takes.")
    ] = 1.1,
    fps: Annotated[
        float | None, typer.Option(min=0.1, help="--pipeline: frame rate of each camera, instead of --load.")
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(metavar="URL", help="--pipeline: this broker, instead of one of its own."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="--pipeline: who was at work when, for Perfetto; a picture beside it."
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="--pipeline: a flame graph by py-spy.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; see config.example.toml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Latency and rate by batch and precision, the network alone and end to end.

    INT8 is measured where a calibration of this network chose it. Figures published by NVIDIA stand beside.
    With --pipeline, the whole agent instead: cameras in memory, a gallery, a broker.
    """
    from edge_agent.cli.service import one_blas_thread

    one_blas_thread()
    _refuse_unused(context, pipeline)
    from edge_agent.agent import factory
    from edge_agent.cli.evaluate import require_folders
    from edge_agent.cli.service import overrides
    from edge_agent.core.loading import load as read_settings
    from edge_agent.core.logs import configure
    from edge_agent.offline.bench import speed as bench

    configure("warning")
    wanted = tuple(dict.fromkeys(precision or PRECISIONS))
    if unknown := [name for name in wanted if name not in PRECISIONS]:
        raise typer.BadParameter(f"{unknown[0]!r} is no precision; choose of {', '.join(PRECISIONS)}")
    require_folders(markdown, output, trace, profile)
    values = overrides(
        source=None, detector=None, model=model, preprocess=preprocess, broker=None, state=state
    )
    if backend is not None:
        values.setdefault("engine", {})["backend"] = backend
    settings = read_settings(config, values)
    folder = factory.state_folder(settings.state_dir)
    if pipeline:
        from edge_agent.cli import pipeline_bench
        from edge_agent.offline.bench.throughput import Plan
        from edge_agent.offline.bench.throughput import markdown as as_markdown

        if len(precision or ()) > 1 or len(batch or ()) > 1:
            raise typer.BadParameter("--pipeline measures one --precision and one --batch at a time")
        plan = Plan(
            cameras=cameras, people=people, identities=identities, exemplars=exemplars, seconds=seconds,
            load=load, fps=fps, tallest=tallest, trace=trace is not None,
        )  # fmt: skip
        told = pipeline_bench.measured(
            plan,
            settings,
            precision=precision[0] if precision else None,
            batch=batch[0] if batch else None,
            broker=broker,
            trace=trace,
            profile=profile,
        )
        _tell(told, as_markdown(told), output, markdown, as_json)
        return
    left_out: dict[str, str] = {}
    batches = tuple(dict.fromkeys(batch or bench.BATCHES))
    with factory.open_telemetry(settings, folder) as telemetry:
        board = telemetry.read().board
        rows = list(_measure(settings, folder, wanted, batches, seconds, board, left_out))
        told = bench.document(rows, left_out, _model(settings, folder), telemetry.read())
    _tell(told, bench.markdown(told), output, markdown, as_json)


def _tell(told: dict[str, Any], text: str, output: Path | None, markdown: Path | None, as_json: bool) -> None:
    """Write and print what was measured."""
    import json

    from edge_agent.core.manifest import write_atomic, write_json_atomic

    if output is not None:
        write_json_atomic(output, told)
    if markdown is not None:
        write_atomic(markdown, text.encode())
    print(json.dumps(told, indent=2) if as_json else text, end="\n" if as_json else "")


def _refuse_unused(context: typer.Context, pipeline: bool) -> None:
    """An option that has no meaning here is an error, not ignored."""
    if pipeline:
        return
    for name in PIPELINE_ALONE:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name} needs --pipeline")


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

    from edge_agent.core.errors import ConfigError, EngineError, ModelError
    from edge_agent.embed.opening import open_embedder
    from edge_agent.engine.precision.calibration import current_calibration
    from edge_agent.offline.bench import speed as bench

    calibration = current_calibration(settings.engine, folder)
    largest = max(settings.engine.max_batch, *batches)  # one plan for all sizes
    with Console(stderr=True).status("") as status:
        for precision in precisions:
            for size in batches:
                status.update(f"measuring {precision}, batch {size}")
                engine = settings.engine.model_copy(update={"precision": precision, "max_batch": largest})
                try:
                    with open_embedder(
                        engine, settings.quality, folder, calibration, max_batch=size
                    ) as embedder:
                        yield bench.measure(embedder, seconds=seconds, board=board)
                except (EngineError, ModelError, ConfigError) as problem:
                    if precision == "fp32":
                        raise  # the network itself does not run
                    left_out[precision] = str(problem)
                    break


def _model(settings: Settings, folder: Path) -> dict[str, Any]:
    from edge_agent.engine.models import choose_model, prepare_model

    model = choose_model(settings.engine, folder)
    prepared, _ = prepare_model(model.path, model.preprocess, folder)
    return prepared.facts()
