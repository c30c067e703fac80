"""`edge-agent run`: the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from edge_agent.cli import arguments
from edge_agent.cli.output import print_result
from edge_agent.cli.run_view import showing, summary_lines
from edge_agent.core.detectors import FORMS, KINDS_TEXT


def command(
    source: Annotated[
        list[str] | None,
        Option(
            help="Video file, rtsp:// or http(s):// address, /dev/videoN, usb:N, csi:N or crops:FOLDER; "
            "may be repeated."
        ),
    ] = None,
    detector: Annotated[str | None, Option(help=f"{FORMS}. {KINDS_TEXT}.")] = None,
    model: arguments.ModelOption = None,
    preprocess: arguments.PreprocessOption = None,
    broker: Annotated[str | None, Option(help="mqtt://HOST:PORT, mqtts://HOST:PORT or none.")] = None,
    state: arguments.StateOption = None,
    events: Annotated[Path | None, Option(help="Write every event to this file, as JSON lines.")] = None,
    mot: Annotated[
        Path | None, Option(help="Write MOTChallenge rows with identities as known at each frame.")
    ] = None,
    mot_final: Annotated[
        Path | None, Option(help="Write MOTChallenge rows with the last identity of each track.")
    ] = None,
    video_out: arguments.VideoOutOption = None,
    report: arguments.ReportOption = None,
    config: arguments.ConfigOption = None,
    log_format: Annotated[
        str | None, Option(metavar="FORM", help="Form of the log: auto, text, json or journald.")
    ] = None,
    as_json: arguments.JsonOption = False,
) -> None:
    """Run the agent until it is stopped, or until all recordings have been read."""
    from dataclasses import asdict

    from edge_agent.cli import service
    from edge_agent.cli.native_output import logged_native_output

    service.one_blas_thread()
    from edge_agent.agent.daemon import Agent
    from edge_agent.agent.outputs import Outputs
    from edge_agent.agent.status import configure_logs
    from edge_agent.core.loading import load, secret_files
    from edge_agent.offline.record.attach import recording

    arguments.require_folders(events, mot, mot_final)
    values = arguments.overrides(
        source=source, detector=detector, model=model, preprocess=preprocess, broker=broker, state=state,
        log_format=log_format,
    )  # fmt: skip
    settings = load(config, values)
    configure_logs(settings)
    service.log_exposed(secret_files(settings, config))
    service.open_streams_at_once(settings)
    agent = Agent(settings, Outputs(events, mot, mot_final))
    try:
        with logged_native_output(service.stream_secrets(settings)):
            configure_logs(settings)  # again, to the stream that is not read back
            with showing(agent), recording(agent, video=video_out, report=report):
                service.run_until_stopped(agent, reload=lambda: load(config, values))
    finally:  # one of several recordings may have failed
        if (done := agent.summary) is not None:
            print_result(asdict(done), lambda: summary_lines(done, settings), as_json=as_json, indent=None)
