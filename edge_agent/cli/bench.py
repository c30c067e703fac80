"""`edge-agent bench`: the speed of a network, or of the whole agent, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from edge_agent.cli import arguments
from edge_agent.cli.output import print_result, working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agent.core.config import Settings

PRECISIONS = ("fp32", "fp16", "int8")

PIPELINE_ONLY = (
    "cameras", "people", "tallest", "identities", "exemplars", "load", "fps", "broker", "trace", "profile",
    "detector", "every", "motion", "busy",
)  # fmt: skip
"""Options that have an effect with --pipeline only."""

BackendOption = Annotated[
    str | None,
    Option(
        "--backend",
        "--engine",
        help="auto, tensorrt, onnxruntime, triton:HOST:PORT/MODEL; --pipeline: also simulated:orin-fp16 or"
        " simulated:FILE.json.",
        show_default="auto",
    ),
]
PrecisionsOption = Annotated[
    list[str] | None, Option(help="fp32, fp16 or int8; may be repeated; by default all available.")
]
BatchesOption = Annotated[
    list[int] | None, Option(min=1, max=1024, help="Batch size; may be repeated; by default 1, 16 and 64.")
]
CamerasOption = Annotated[int, Option(min=1, max=64, help="--pipeline: number of cameras.")]
PeopleOption = Annotated[int, Option(min=1, max=128, help="--pipeline: people in view of each camera.")]
TallestOption = Annotated[
    float, Option(min=0.05, max=1, help="--pipeline: tallest person, as a share of the frame's height.")
]
IdentitiesOption = Annotated[int, Option(min=0, help="--pipeline: people in the gallery.")]
ExemplarsOption = Annotated[int, Option(min=1, max=64, help="--pipeline: embeddings of each person.")]
LoadOption = Annotated[
    float, Option(min=0.01, help="--pipeline: offered crops, as a share of the engine's rate.")
]
FpsOption = Annotated[
    float | None, Option(min=0.1, help="--pipeline: frame rate of each camera, instead of --load.")
]
DetectorOption = Annotated[
    str | None,
    Option(
        metavar="simulated:FILE.json",
        help="--pipeline: a detector on the device of the simulated engine; by default boxes are given.",
    ),
]
EveryOption = Annotated[int, Option(min=1, max=100, help="--detector: detect people in every n-th frame.")]
MotionOption = Annotated[bool, Option("--motion", help="--detector: not in frames without motion.")]
BusyOption = Annotated[
    float, Option(min=0.01, max=1, help="--pipeline: share of the time with people in view of a camera.")
]
BrokerOption = Annotated[
    str | None, Option(metavar="URL", help="--pipeline: use this broker; by default start one.")
]
TraceOption = Annotated[
    Path | None,
    Option(metavar="FILE.json", help="--pipeline: trace of the threads for Perfetto, and a picture."),
]
ProfileOption = Annotated[Path | None, Option(metavar="FILE.svg", help="--pipeline: flame graph, by py-spy.")]


def command(
    context: typer.Context,
    model: arguments.ModelOption = None,
    preprocess: arguments.PreprocessOption = None,
    backend: BackendOption = None,
    precision: PrecisionsOption = None,
    batch: BatchesOption = None,
    seconds: Annotated[float, Option(min=0.1, help="Seconds of each measurement.")] = 5.0,
    markdown: Annotated[Path | None, Option(metavar="FILE.md", help="Write the table as Markdown.")] = None,
    output: arguments.ResultFileOption = None,
    state: arguments.StateOption = None,
    pipeline: Annotated[
        bool, Option("--pipeline", help="Measure the whole agent, from frames in memory to the broker.")
    ] = False,
    cameras: CamerasOption = 8,
    people: PeopleOption = 8,
    tallest: TallestOption = 0.25,
    identities: IdentitiesOption = 10_000,
    exemplars: ExemplarsOption = 4,
    load: LoadOption = 1.1,
    fps: FpsOption = None,
    detector: DetectorOption = None,
    every: EveryOption = 1,
    motion: MotionOption = False,
    busy: BusyOption = 1.0,
    broker: BrokerOption = None,
    trace: TraceOption = None,
    profile: ProfileOption = None,
    config: arguments.ConfigOption = None,
    as_json: arguments.JsonOption = False,
) -> None:
    """Measure latency and rate by batch and precision, of the network alone and end to end.

    INT8 is measured where a calibration of this network chose it. Figures published by NVIDIA are shown, too.
    With --pipeline, the whole agent is measured instead: cameras in memory, a gallery, a broker.
    """
    from edge_agent.cli.service import one_blas_thread

    one_blas_thread()
    from edge_agent.core.manifest import write_atomic, write_json_atomic

    _check(context, precision or ())
    arguments.require_folders(markdown, output, trace, profile)
    settings = arguments.load_settings(
        config, model=model, preprocess=preprocess, backend=backend, state=state
    )
    if pipeline:
        plan = {
            "cameras": cameras, "people": people, "identities": identities, "exemplars": exemplars,
            "seconds": seconds, "load": load, "fps": fps, "tallest": tallest, "trace": trace is not None,
            "detector": detector, "every": every, "motion": motion, "busy": busy,
        }  # fmt: skip
        result, text = _measure_pipeline(_single(settings, precision, batch), plan, broker, trace, profile)
    else:
        result, text = _measure_network(settings, precision, batch, seconds)
    if output is not None:
        write_json_atomic(output, result)
    if markdown is not None:
        write_atomic(markdown, text.encode())
    print_result(result, text.rstrip("\n").split("\n"), as_json=as_json)


def _check(context: typer.Context, precisions: Sequence[str]) -> None:
    """Refuse options that have no effect without another, and precisions that do not exist."""
    given = [
        name
        for name in PIPELINE_ONLY
        if getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
    ]
    for name in given:
        if not context.params["pipeline"]:
            raise typer.BadParameter(f"--{name} needs --pipeline")
        if name in {"every", "motion"} and context.params["detector"] is None:
            raise typer.BadParameter(f"--{name} needs --detector")
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise typer.BadParameter(f"{unknown[0]!r} is no precision; choose of {', '.join(PRECISIONS)}")


def _single(settings: Settings, precisions: list[str] | None, batches: list[int] | None) -> Settings:
    """Return the settings with at most one precision and one batch of the command line."""
    if len(precisions or ()) > 1 or len(batches or ()) > 1:
        raise typer.BadParameter("--pipeline measures one --precision and one --batch at a time")
    given = {"precision": precisions, "max_batch": batches}
    chosen = {key: values[0] for key, values in given.items() if values}
    return settings.model_copy(update={"engine": settings.engine.model_copy(update=chosen)})


def _measure_pipeline(
    settings: Settings, plan: dict[str, Any], broker: str | None, trace: Path | None, profile: Path | None
) -> tuple[dict[str, Any], str]:
    from edge_agent.core.loading import state_folder
    from edge_agent.offline.bench import pipeline
    from edge_agent.offline.bench.load import Plan

    state_folder(settings.state_dir)
    with working("measuring the pipeline"):
        result = pipeline.measure(Plan(**plan), settings, broker=broker, trace=trace, profile=profile)
    return result, pipeline.markdown(result)


def _measure_network(
    settings: Settings, precisions: list[str] | None, batches: list[int] | None, seconds: float
) -> tuple[dict[str, Any], str]:
    from edge_agent.core.loading import state_folder
    from edge_agent.core.served import is_served
    from edge_agent.offline.bench import speed

    folder, batches = state_folder(settings.state_dir), batches or list(speed.BATCHES)
    known = ("auto",) if is_served(settings.engine.backend) else PRECISIONS
    kinds, sizes = tuple(dict.fromkeys(precisions or known)), tuple(dict.fromkeys(batches))
    with working("") as on_step:
        result = speed.speed_table(
            settings, folder, precisions=kinds, batches=sizes, seconds=seconds, on_step=on_step
        )
    return result, speed.markdown(result)
