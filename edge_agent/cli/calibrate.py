"""`edge-agent calibrate`: INT8 or FP16 engine, accuracy gate and match threshold for this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edge_agent.offline.calibrate.job import Job, Result
    from edge_agent.offline.calibrate.request import Progress, Request


class Precision(str, Enum):
    """What may be asked for."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Backend(str, Enum):
    """What may run the network."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"


class RangeMethod(str, Enum):
    """How activation ranges are found."""

    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MINMAX = "minmax"


def command(
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Market-1501 layout; without it: FP16 and no threshold."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="ONNX", help="ReID network; the configured or default one when absent."),
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="tao, imagenet, openvino-raw or swin.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of calibrations and plans; `engines` in the state folder."),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="auto: INT8 if it passes the gate, else FP16.", show_default="auto"),
    ] = None,
    backend: Annotated[
        Backend | None, typer.Option(help="auto: TensorRT where there is an NVIDIA GPU.", show_default="auto")
    ] = None,
    method: Annotated[
        RangeMethod, typer.Option(help="How activation ranges are found.")
    ] = RangeMethod.PERCENTILE,
    size: Annotated[int, typer.Option(min=1, help="Crops in the calibration sample.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the draw of that sample.")] = 0,
    target_fmr: Annotated[
        float | None,
        typer.Option(help="False-match rate of the threshold; identify.target_fmr when absent."),
    ] = None,
    max_map_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Gate: largest loss of mAP, as a fraction.")
    ] = 0.005,
    max_rank1_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Gate: largest loss of rank-1, as a fraction.")
    ] = 0.005,
    min_cosine: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="Gate: least median cosine to FP32.")
    ] = 0.99,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity", help="Measure each block's effect; keep the worst in FP16 until the gate passes."
        ),
    ] = False,
    site_pairs: Annotated[
        bool,
        typer.Option(
            "--site-pairs",
            help="Let the scores that this agent's gallery has of its site raise the threshold.",
        ),
    ] = False,
    bench_seconds: Annotated[
        float, typer.Option(min=0.0, help="How long each figure of the speed table takes; 0: no table.")
    ] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Forget what earlier runs of this found.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    state: Annotated[Path | None, typer.Option(help="State folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; see config.example.toml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Choose the precision that keeps the accuracy, and the match threshold; make both the active ones.

    An interrupted run goes on where it was; a finished one is not done again. A running agent takes the
    threshold over on SIGHUP, and the engine when it is restarted.
    """
    import json

    from edge_agent.agent import factory
    from edge_agent.cli.service import overrides
    from edge_agent.core.loading import load
    from edge_agent.core.logs import configure
    from edge_agent.engine.models import choose_model, prepare_model
    from edge_agent.engine.precision.calibration import engines_folder
    from edge_agent.offline.calibrate.gate import Bounds
    from edge_agent.offline.calibrate.job import Job
    from edge_agent.offline.calibrate.request import Request

    configure("warning")
    values = overrides(
        source=None, detector=None, model=model, preprocess=preprocess, broker=None, state=state
    )
    engine = values.setdefault("engine", {})
    for key, value in (("precision", precision), ("backend", backend)):
        if value is not None:
            engine[key] = value.value
    if output is not None:
        engine["folder"] = output
    if target_fmr is not None:
        values["identify"] = {"target_fmr": target_fmr}
    settings = load(config, values)
    folder = factory.state_folder(settings.state_dir)
    chosen = choose_model(settings.engine, folder)
    prepared, golden = prepare_model(chosen.path, chosen.preprocess, folder)
    request = Request(
        prepared=prepared,
        golden=golden,
        engines=engines_folder(settings.engine, folder),
        disk=folder,
        dataset=dataset,
        precision=settings.engine.precision,
        engine=settings.engine,
        quality=settings.quality,
        method=method.value,
        size=size,
        seed=seed,
        target_fmr=settings.identify.target_fmr,
        bounds=Bounds(max_map_loss, max_rank1_loss, min_cosine),
        sensitivity=sensitivity,
        site=factory.site_scores(settings, prepared) if site_pairs else None,
        bench_seconds=bench_seconds,
    )
    if dry_run:
        _tell_plan(Job(request), as_json=as_json)
        return
    result = _run(request, again=again)
    print(json.dumps(result.report, indent=2) if as_json else _summary(result))


def _run(request: Request, *, again: bool) -> Result:
    from edge_agent.offline.calibrate.job import Job

    with _progress() as progress:
        try:
            return Job(request, progress).run(again=again)
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on where it was", err=True)
            raise


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars where a person looks on, else a line on stderr for each step."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(
        *Bars.get_default_columns(), MofNCompleteColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        yield _Told(bars if console.is_terminal else None)


class _Told:
    """Shows the progress of a job."""

    def __init__(self, bars: Any) -> None:  # noqa: ANN401 - rich's Progress, imported late
        self._bars = bars
        self._task: Any = None

    def begin(self, step: str, total: int | None) -> None:
        """A new bar, the one before it ends; or a line."""
        if self._bars is None:
            typer.echo(f"{step} ...", err=True)
            return
        self.end()
        self._task = self._bars.add_task(step, total=total)

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, count)

    def end(self) -> None:
        """Fill the present bar."""
        if self._task is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._task)]
            self._bars.update(self._task, total=task.total or 1, completed=task.total or 1)


def _tell_plan(job: Job, *, as_json: bool) -> None:
    import json

    steps = job.steps()
    if as_json:
        print(json.dumps({"folder": str(job.folder), "done": job.is_done, "steps": steps}, indent=2))
        return
    print(f"would write {job.folder}" + (" (it is there already, whole)" if job.is_done else ""))
    for step in steps:
        note = "done" if step["done"] else step.get("condition", "")
        print(f"  {step['step']}" + (f"  ({note})" if note else ""))


def _summary(result: Result) -> str:
    """The outcome for people."""
    report = result.report
    threshold = report["threshold"]
    lines = [f"{report['model']['name']} on {report['backend']}: {report['precision'].upper()}"]
    for name, gate in report["gates"].items():
        lines += _gate_lines(name, gate)
    if threshold["value"] is None:
        lines.append(f"  threshold: none ({threshold['reason']})")
    else:
        lines.append(
            f"  threshold {threshold['value']:.4f} for FMR {threshold['target_fmr']:g} "
            f"from {threshold['pairs']} pairs"
        )
    lines += [f"  missing: {note}" for note in report["missing"]]
    lines += [f"  note: {note}" for note in report["notes"]]
    lines.append(f"  report: {report['report']}")
    if result.switched:
        lines.append("  it is the active engine from now on; a running agent needs a restart")
    else:
        lines.append("  it was the active engine already; nothing changed")
    return "\n".join(lines)


def _gate_lines(name: str, gate: dict[str, Any]) -> list[str]:
    word = {True: "passed", False: "failed", None: "not measured"}[gate["passed"]]
    figures = ""
    if gate["mAP_candidate"] is not None:
        figures = (
            f": mAP {100 * gate['mAP_fp32']:.2f} -> {100 * gate['mAP_candidate']:.2f} %, rank-1 "
            f"{100 * gate['rank1_fp32']:.2f} -> {100 * gate['rank1_candidate']:.2f} %, cosine median "
            f"{gate['cosine_median']:.4f}, 1st percentile {gate['cosine_p1']:.4f}, least "
            f"{gate['cosine_min']:.4f}"
        )
    return [f"  {name.upper()} {word}{figures}", *(f"    {reason}" for reason in gate["reasons"])]
