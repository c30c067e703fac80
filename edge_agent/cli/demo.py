"""`edge-agent demo`: the agent on a rendered street or a video, with a broker of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from edge_agent.cli.arguments import JsonOption, PreprocessOption, ReportOption, VideoOutOption, overrides
from edge_agent.cli.output import console, print_json, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.results import Summary
    from edge_agent.core.config import Settings
    from edge_agent.offline.demo.street import Scene
    from edge_agent.offline.synthetic.street import Street


def command(
    video: Annotated[
        list[str] | None,
        Option(help="Video file or stream address; may be repeated. By default a street is rendered."),
    ] = None,
    model: Annotated[
        Path | None,
        Option(help="ReID network, ONNX; by default the shipped one, or colour-stripes without it."),
    ] = None,
    preprocess: PreprocessOption = None,
    detector: Annotated[str | None, Option(help="As of run.")] = None,
    seconds: Annotated[
        float | None, Option(min=5, max=3600, help="Length of the rendered street; 60 by default.")
    ] = None,
    keep: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Keep videos, ground truth, gallery and events in this folder."),
    ] = None,
    video_out: VideoOutOption = None,
    report: ReportOption = None,
    page: Annotated[
        bool,
        Option("--page", help="Serve the operator's page meanwhile; the videos play at their own speed."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the agent at work: live events from a broker, and a table of the results.

    With --json, everything but the result goes to standard error.
    """
    from tempfile import TemporaryDirectory

    from edge_agent.cli.native_output import logged_native_output
    from edge_agent.cli.service import one_blas_thread

    one_blas_thread()
    from edge_agent.core.loading import state_folder
    from edge_agent.core.logs import configure
    from edge_agent.offline.demo import run
    from edge_agent.offline.demo.broker import DemoBroker
    from edge_agent.offline.demo.street import SECONDS, default_street

    if video and seconds is not None:
        raise typer.BadParameter("is the length of the rendered street; a --video has its own")
    scratch = nullcontext(state_folder(keep)) if keep else TemporaryDirectory(prefix="edge-agent-demo-")
    with logged_native_output(()), scratch as name, DemoBroker() as broker:
        configure("warning")  # to the stream that is not read back
        screen = console(stderr=as_json)
        folder = Path(name)
        given: dict[str, Any] = {"source": video, "detector": detector, "preprocess": preprocess}
        settings = _settings(folder, model=model, broker=broker.url, shown=page and video is None, **given)
        run.check(settings, folder)
        scene = None if video else _render(default_street(seconds or SECONDS), folder, screen)
        recorded = partial(_run_recorded, video=video_out, report=report)
        with _page(folder, screen) if page else nullcontext():
            result = run.run(settings, scene, folder, screen, recorded, realtime=page)
    if as_json:
        print_json(result)
    else:
        _print_result(result, screen, keep)


def _page(folder: Path, screen: Console) -> AbstractContextManager[None]:
    from edge_agent.cli.page_server import page_beside

    def show(link: str) -> None:
        screen.print(f"The page: {link}", soft_wrap=True, highlight=False, markup=False)

    return page_beside(folder, show)


def _run_recorded(agent: Agent, *, video: Path | None, report: Path | None) -> Summary:
    from edge_agent.cli.service import run_until_stopped
    from edge_agent.offline.record.attach import recording

    with recording(agent, video=video, report=report):
        return run_until_stopped(agent)


def _render(street: Street, folder: Path, screen: Console) -> Scene:
    from edge_agent.offline.demo.street import render

    cameras, people = len(street.cameras), len(street.people)
    screen.print(
        f"Rendering a street of {street.frames / street.fps:.0f} s: {cameras} cameras, {people} people,"
        f" {len(street.visits)} visits. The agent gets the videos only."
    )
    with progress_bar("rendering", screen=screen) as bar:
        return render(street, folder, bar.update)


def _settings(folder: Path, *, model: Path | None, shown: bool, **options: Any) -> Settings:  # noqa: ANN401 - of `overrides`
    """Return the settings of the run; no configuration file is read, so that they are the same everywhere.

    With `shown`, pictures and decisions are kept for the page: of rendered people, in a scratch folder.
    """
    import os

    from edge_agent.core.loading import load
    from edge_agent.engine.graph.stripes import STRIPES_NAME
    from edge_agent.engine.models import default_model
    from edge_agent.offline.demo.run import DEVICE

    if model is None and default_model() is None:
        model = Path(STRIPES_NAME)
    values = overrides(model=model, state=folder, **options)
    values["mqtt"] |= {"site": DEVICE, "device": DEVICE}
    if shown:
        values |= {"gallery": {"keep_crops": 8}, "record": {"enabled": True}}
    return load(Path(os.devnull), values)


_ROWS = (
    ("people", "people", "visible for a second or more"),
    ("visits", "visits", "passages of a person through a camera's view"),
    ("re-entries", "reentries", "visits of people who came before"),
    ("recognised", "recognised", "of these, given the earlier identity of the person"),
    ("  at once", "at_once", "... without a correction"),
    ("confused", "confused", "identities given to two or more people"),
    ("missed", "missed", "visits without any identity"),
    ("identities", "identities", "in use at the end"),
    ("seen again", "seen_again", "identities of two or more tracks"),
    ("frames", "frames", "of all cameras"),
    ("crops/s", "crops_per_s", "embedded, over the whole run with its detector"),
    ("  network", "network_crops_per_s", "... over the time inside the network alone"),
    ("latency, ms", "latency_ms", "of a frame, from detection to decision: median, 95th percentile"),
    ("delivery, ms", "delivery_ms", "from decision to subscriber: median, 95th percentile"),
)
"""Title, key of the result, meaning."""


def _print_result(result: dict[str, Any], screen: Console, keep: Path | None) -> None:
    from rich import box
    from rich.table import Table

    table = Table("", "", "", box=box.SIMPLE, show_header=False)
    for title, key, meaning in _ROWS:
        value = result.get(key)
        if value is not None:
            shown = f"{value['p50']:.0f}, {value['p95']:.0f}" if isinstance(value, dict) else f"{value}"
            table.add_row(title, shown, meaning)
    screen.print(table)
    kind = "" if result["trained"] else " (built in and untrained: it compares colours of clothing)"
    screen.print(f"model {result['model']}{kind}, detector {result['detector']}")
    made, received = sum(result["decisions"].values()), result["events_received"]
    screen.print(f"{received} of {made} events came back from the broker")
    if not result["complete"]:
        screen.print("stopped early, or frames were dropped: not scored against the truth")
    if keep is not None:
        screen.print(f"kept in {keep}")
