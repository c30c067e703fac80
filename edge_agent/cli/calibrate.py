"""`edge-agent calibrate`: engine precision and match threshold for this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from edge_agent.cli import arguments
from edge_agent.cli.output import bar_columns, console, print_result, say
from edge_agent.core.text import visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from edge_agent.core.config import Settings
    from edge_agent.offline.calibrate.job import Job, Result
    from edge_agent.offline.calibrate.request import Request

PrecisionOption = Annotated[
    Literal["auto", "fp32", "fp16", "int8"] | None,
    Option(help="auto: INT8 if it passes the gate, else FP16.", show_default="auto"),
]
BackendOption = Annotated[
    Literal["auto", "tensorrt", "onnxruntime"] | None,
    Option(help="auto: TensorRT where there is an NVIDIA GPU.", show_default="auto"),
]
OutputOption = Annotated[
    Path | None,
    Option(metavar="DIR", help="Folder of calibrations and plans; by default `engines` in the state folder."),
]
TargetFmrOption = Annotated[
    float | None, Option(help="False-match rate of two crops at the threshold; by default 0.001.")
]
MapLossOption = Annotated[float, Option(min=0.0, max=1.0, help="Gate: largest loss of mAP, as a fraction.")]
Rank1LossOption = Annotated[
    float, Option(min=0.0, max=1.0, help="Gate: largest loss of rank-1, as a fraction.")
]
CosineOption = Annotated[float, Option(min=-1.0, max=1.0, help="Gate: smallest median cosine to FP32.")]
SensitivityOption = Annotated[
    bool,
    Option(
        "--sensitivity", help="Measure each block's effect; keep the worst in FP16 until the gate passes."
    ),
]
SitePairsOption = Annotated[
    bool, Option("--site-pairs", help="Let the site's scores in this agent's gallery raise the threshold.")
]


def command(
    dataset: Annotated[
        Path | None, Option(metavar="DIR", help="Market-1501 layout; without it: FP16 and no threshold.")
    ] = None,
    model: arguments.ModelOption = None,
    preprocess: arguments.PreprocessOption = None,
    output: OutputOption = None,
    precision: PrecisionOption = None,
    backend: BackendOption = None,
    method: Annotated[
        Literal["percentile", "entropy", "minmax"], Option(help="Method that finds activation ranges.")
    ] = "percentile",
    size: Annotated[int, Option(min=1, help="Crops in the calibration sample.")] = 512,
    seed: Annotated[int, Option(help="Seed of that sample.")] = 0,
    target_fmr: TargetFmrOption = None,
    max_map_loss: MapLossOption = 0.005,
    max_rank1_loss: Rank1LossOption = 0.005,
    min_cosine: CosineOption = 0.99,
    sensitivity: SensitivityOption = False,
    site_pairs: SitePairsOption = False,
    bench_seconds: Annotated[
        float, Option(min=0.0, help="Seconds of each figure of the speed table; 0: no table.")
    ] = 1.0,
    again: Annotated[bool, Option("--again", help="Discard the results of earlier runs.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the steps without running them.")] = False,
    state: arguments.StateOption = None,
    config: arguments.ConfigOption = None,
    as_json: arguments.JsonOption = False,
) -> None:
    """Choose a precision that keeps the accuracy, and the match threshold; make both active.

    An interrupted run continues where it stopped; a finished one is not repeated. A running agent takes the
    threshold on SIGHUP, and the engine when it is restarted.
    """
    from edge_agent.core.config import PAIR_RATE
    from edge_agent.offline.calibrate.gate import Bounds
    from edge_agent.offline.calibrate.job import Job

    settings = arguments.load_settings(
        config, state=state, target_fmr=target_fmr, model=model, preprocess=preprocess, folder=output,
        precision=precision, backend=backend,
    )  # fmt: skip
    request = _request(
        settings, site_pairs=site_pairs, dataset=dataset, method=method, size=size, seed=seed,
        target_fmr=PAIR_RATE if target_fmr is None else target_fmr,
        bounds=Bounds(max_map_loss, max_rank1_loss, min_cosine), sensitivity=sensitivity,
        bench_seconds=bench_seconds,
    )  # fmt: skip
    if dry_run:
        _print_plan(Job(request), as_json=as_json)
        return
    with _bars() as bars:
        try:
            result = Job(request, _JobProgress(bars)).run(again=again)
        except KeyboardInterrupt:
            say("interrupted; the same command continues where it stopped", err=True)
            raise
        _keep_prior(settings, _JobProgress(bars))
    print_result(result.report, lambda: _summary(result), as_json=as_json)


def _request(settings: Settings, *, site_pairs: bool, **options: Any) -> Request:  # noqa: ANN401 - of `Request`
    """Return the request for the configured network; `options` are those of the command line."""
    from edge_agent.core.loading import state_folder
    from edge_agent.engine.models import choose_model, prepare_model
    from edge_agent.engine.precision.calibration import engines_folder
    from edge_agent.offline.calibrate.gate import site_scores
    from edge_agent.offline.calibrate.request import Request

    folder = state_folder(settings.state_dir)
    chosen = choose_model(settings.engine, folder)
    prepared, golden = prepare_model(chosen.path, chosen.preprocess, folder)
    return Request(
        prepared=prepared,
        golden=golden,
        engines=engines_folder(settings.engine, folder),
        disk=folder,
        precision=settings.engine.precision,
        engine=settings.engine,
        quality=settings.quality,
        site=site_scores(settings, prepared) if site_pairs else None,
        **options,
    )


def _keep_prior(settings: Settings, progress: _JobProgress) -> None:
    """Measure what the network gives for rendered people, where the state folder does not have it yet."""
    from edge_agent.core.loading import state_folder
    from edge_agent.embed.opening import open_embedder
    from edge_agent.embed.prior import load_or_measure
    from edge_agent.engine.precision.calibration import current_calibration

    state = state_folder(settings.state_dir)
    calibration = current_calibration(settings.engine, state)
    with open_embedder(settings.engine, settings.quality, state, calibration) as embedder:
        load_or_measure(embedder, state, lambda step: progress.begin(step, None))
    progress.end()


def _bars() -> Bars:
    from rich.progress import Progress

    screen = console(stderr=True)
    return Progress(*bar_columns(), console=screen, disable=not screen.is_terminal)


@dataclass(slots=True)
class _JobProgress:
    """Bars on a terminal, else a line on stderr for each step."""

    bars: Bars

    def begin(self, step: str, total: int | None) -> None:
        """Complete the present bar and start another."""
        if self.bars.disable:
            say(f"{step} ...", err=True)
        self.end()
        self.bars.add_task(visible(step), total=total)

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self.bars.tasks:
            self.bars.advance(self.bars.tasks[-1].id, count)

    def end(self) -> None:
        """Complete the present bar."""
        for task in self.bars.tasks[-1:]:
            self.bars.update(task.id, total=task.total or 1, completed=task.total or 1)


def _print_plan(job: Job, *, as_json: bool) -> None:
    steps = job.steps()
    lines = [f"would write {job.folder}" + (" (already complete)" if job.is_done else "")]
    for step in steps:
        note = "done" if step["done"] else step.get("condition", "")
        lines.append(f"  {step['step']}" + (f"  ({note})" if note else ""))
    result = {"folder": str(job.folder), "done": job.is_done, "steps": steps}
    print_result(result, lines, as_json=as_json)


def _summary(result: Result) -> list[str]:
    report = result.report
    threshold = report["threshold"]
    model = f"{report['model']['name']} (profile {report['model']['preprocess']})"
    lines = [f"{model} on {report['backend']}: {report['precision'].upper()}"]
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
    switched = "is the active engine now; a running agent needs a restart"
    lines.append(f"  it {switched if result.switched else 'was already the active engine; nothing changed'}")
    return lines


def _gate_lines(name: str, gate: dict[str, Any]) -> list[str]:
    word = {True: "passed", False: "failed", None: "not measured"}[gate["passed"]]
    figures = ""
    if gate["mAP_candidate"] is not None:
        figures = (
            f": mAP {100 * gate['mAP_fp32']:.2f} -> {100 * gate['mAP_candidate']:.2f} %, rank-1 "
            f"{100 * gate['rank1_fp32']:.2f} -> {100 * gate['rank1_candidate']:.2f} %, cosine median "
            f"{gate['cosine_median']:.4f}, 1st percentile {gate['cosine_p1']:.4f}, lowest "
            f"{gate['cosine_min']:.4f}"
        )
    return [f"  {name.upper()} {word}{figures}", *(f"    {reason}" for reason in gate["reasons"])]
