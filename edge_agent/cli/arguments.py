"""Options that several commands have, and the settings that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agent.core.config import Settings

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file; /etc/edge-agent/config.toml if it exists.")
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="State folder; the configured one by default.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="ONNX", help="ReID network; the configured or shipped one by default."),
]
ShippedModelOption = Annotated[
    Path | None, typer.Option("--model", metavar="ONNX", help="ReID network; the shipped one by default.")
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="PROFILE",
        help="Preprocess profile: tao, imagenet, openvino-raw or swin; by default that of the model.",
    ),
]
BackendOption = Annotated[str, typer.Option("--backend", help="Backend that runs the network.")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32, fp16, or int8 of the active calibration; auto: FP16 on TensorRT, else FP32.",
    ),
]
ResultFileOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE.json", help="Write what --json prints.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def overrides(
    *,
    source: Sequence[str] | None = None,
    detector: str | None = None,
    model: Path | None = None,
    preprocess: str | None = None,
    backend: str | None = None,
    broker: str | None = None,
    state: Path | None = None,
) -> dict[str, Any]:
    """Return the given options as nested settings; `None` means not given, the broker `none` no broker."""
    values: dict[str, Any] = {}
    if source:
        values["sources"] = [{"url": url} for url in source]
    if detector is not None:
        values["detector"] = {"kind": detector}
    engine = {"model": model, "preprocess": preprocess, "backend": backend}
    if chosen := {key: value for key, value in engine.items() if value is not None}:
        values["engine"] = chosen
    if broker is not None:
        values["mqtt"] = {"broker": None if broker == "none" else broker}
    if state is not None:
        values["state_dir"] = state
    return values


def load_settings(config: Path | None, **options: Any) -> Settings:  # noqa: ANN401 - as for `overrides`
    """Return the settings of a file with `overrides` of the command line.

    Raises:
        ConfigError: they are not valid.
    """
    from edge_agent.core.loading import load

    return load(config, overrides(**options))


def require_folders(*paths: Path | None) -> None:
    """Check before a long run that its results can be written.

    Raises:
        InputError: the folder of a path does not exist.
    """
    from edge_agent.core.errors import InputError

    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
