"""`edge-agent export`: a checkpoint as ONNX with TAO's tensor names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from edge_agent.cli.arguments import JsonOption, require_torch
from edge_agent.cli.output import print_result


def command(
    checkpoint: Annotated[
        Path,
        Argument(
            metavar="CHECKPOINT",
            help="Checkpoint of `edge-agent train`, or a spec whose export section names one.",
        ),
    ],
    output: Annotated[
        Path | None, Option("-o", "--output", metavar="MODEL.onnx", help="ONNX file to write.")
    ] = None,
    note: Annotated[
        list[str] | None, Option(metavar="KEY=TEXT", help="Entry of the model card; may be repeated.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a trained network to ONNX and check it against PyTorch to 1e-4."""
    require_torch("exporting")
    from edge_agent.core.logs import configure
    from edge_agent.offline.train.export import export_onnx

    configure("warning")
    source, target = _named_files(checkpoint, output)
    done = export_onnx(source, target, notes=_notes(note or []), overwrite=overwrite)
    result = {
        "onnx": str(done.path),
        "sha256": done.sha256,
        "bytes": done.size,
        "dimension": done.dimension,
        "difference": done.difference,
        "card": dict(done.card),
    }
    lines = (
        f"{done.path}: {done.size:,} bytes, {done.dimension} numbers an embedding, sha256 {done.sha256}",
        f"largest difference to PyTorch: {done.difference:.1e}",
    )
    print_result(result, lines, as_json=as_json, indent=None)


def _named_files(checkpoint: Path, output: Path | None) -> tuple[Path, Path]:
    """Return checkpoint and ONNX file; a spec may replace the checkpoint, as with `tao ... export -e`."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.train.spec import load_spec

    if checkpoint.suffix in (".yaml", ".yml"):
        section = load_spec(checkpoint).export
        if section.checkpoint is None:
            raise ConfigError(f"{checkpoint}: export.checkpoint is missing")
        checkpoint, output = section.checkpoint, output or section.onnx_file
    if output is None:
        raise ConfigError("name the ONNX file to write: -o MODEL.onnx")
    return checkpoint, output


def _notes(entries: list[str]) -> dict[str, str]:
    from edge_agent.core.errors import ConfigError

    notes = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key.isidentifier():
            raise ConfigError(f"--note {entry!r}: expected KEY=TEXT, as in --note licence=Apache-2.0")
        notes[key] = text
    return notes
