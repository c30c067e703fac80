"""Options that several commands have, and the settings that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agent.core.config import Settings

ConfigOption = Annotated[
    Path | None, Option("--config", help="Settings file; /etc/edge-agent/config.toml if it exists.")
]
StateOption = Annotated[Path | None, Option("--state", help="State folder; the configured one by default.")]
ModelOption = Annotated[
    Path | None,
    Option("--model", metavar="ONNX", help="ReID network; the configured or shipped one by default."),
]
ShippedModelOption = Annotated[
    Path | None, Option("--model", metavar="ONNX", help="ReID network; the shipped one by default.")
]
PreprocessOption = Annotated[
    str | None,
    Option(
        "--preprocess",
        metavar="PROFILE",
        help="Preprocess profile: tao, imagenet, openvino-raw or swin; by default that of the model.",
    ),
]
BackendOption = Annotated[
    str,
    Option(
        "--backend",
        help="Backend that runs the network: onnxruntime, tensorrt, triton:HOST:PORT/MODEL, or auto.",
    ),
]
PrecisionOption = Annotated[
    str,
    Option(
        "--precision",
        help="fp32, fp16, or int8 of the active calibration; auto: FP16 on TensorRT, else FP32.",
    ),
]
ResultFileOption = Annotated[
    Path | None, Option("--output", metavar="FILE.json", help="Write what --json prints.")
]
VideoOutOption = Annotated[
    Path | None,
    Option(
        "--video-out",
        metavar="FILE.mp4",
        help="Write the video with boxes, people and decisions; several cameras: FILE-CAMERA.mp4 for each.",
    ),
]
ReportOption = Annotated[
    Path | None,
    Option(
        "--report", metavar="FILE.html", help="Write a page with a card for each person, and a time line."
    ),
]
JsonOption = Annotated[bool, Option("--json", help="Print the result as JSON.")]
YesOption = Annotated[bool, Option("--yes", "-y", help="Do not ask.")]


def overrides(
    *,
    source: Sequence[str] | None = None,
    detector: str | None = None,
    broker: str | None = None,
    state: Path | None = None,
    target_fmr: float | None = None,
    log_format: str | None = None,
    **engine: Any,  # noqa: ANN401 - keys of the section `engine`
) -> dict[str, Any]:
    """Return the given options as nested settings; `None` means not given."""
    values: dict[str, Any] = {
        "sources": [{"url": url} for url in source or ()],
        "detector": {"kind": detector},
        "engine": engine,
        "identify": {"target_fmr": target_fmr},
        "mqtt": {"broker": broker},
        "state_dir": state,
        "log_format": log_format,
    }
    for section in ("detector", "engine", "identify", "mqtt"):
        values[section] = {key: value for key, value in values[section].items() if value is not None}
    return {key: value for key, value in values.items() if value}


def load_settings(config: Path | None, **options: Any) -> Settings:  # noqa: ANN401 - as for `overrides`
    """Return the settings of a file with `overrides` of the command line; log warnings only."""
    from edge_agent.core.loading import load
    from edge_agent.core.logs import configure
    from edge_agent.core.setting_secrets import secrets_of

    configure("warning")
    settings = load(config, overrides(**options))
    configure("warning", secrets=secrets_of(settings))
    return settings


def require_torch(what: str) -> None:
    """Raise ConfigError where PyTorch is not installed, before anything is read."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        from edge_agent.core.distribution import install_command
        from edge_agent.core.errors import ConfigError

        raise ConfigError(f"{what} needs PyTorch: {install_command('train')}") from error


def require_folders(*paths: Path | None) -> None:
    """Raise InputError, before a long run, where one of the given results could not be written."""
    from edge_agent.core.manifest import require_folder

    for path in paths:
        if path is not None:
            require_folder(path)
