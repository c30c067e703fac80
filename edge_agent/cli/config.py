"""`edge-agent config`: check, show and describe the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Check, show and describe the settings.")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file; /etc/edge-agent/config.toml where it exists.")
]


@app.command()
def check(config: ConfigOption = None) -> None:
    """Read the settings and say whether they are right."""
    from edge_agent.core.config import DEFAULT_CONFIG, load

    settings = load(config)
    where = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else "defaults and environment")
    typer.echo(f"{where}: right, {len(settings.sources)} source(s)")


@app.command()
def show(
    config: ConfigOption = None, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False
) -> None:
    """Print the settings in force, without secrets."""
    from edge_agent.core.config import load, shown

    values = shown(load(config))
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for key, value in _lines(values):
        typer.echo(f"{key} = {json.dumps(value)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file."""
    from edge_agent.core.config import Settings

    typer.echo(json.dumps(Settings.model_json_schema(), indent=2))


@app.command()
def reference() -> None:
    """Print every setting with its default and meaning, as Markdown (docs/configuration.md)."""
    from edge_agent.core.config import Settings

    typer.echo(_reference(Settings, "").rstrip())


def _reference(model: Any, prefix: str) -> str:  # noqa: ANN401  a pydantic model, imported late
    """Markdown tables of one section and of those in it."""
    import inspect

    rows, below = [], []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            below.append(_reference(section, f"{prefix}{name}" + ("[]." if name == "sources" else ".")))
            if name != "sources":
                continue
        default = "" if field.is_required() else f"`{_toml(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {field.description or ''} |")
    intro = inspect.cleandoc(model.__doc__ or "")
    title = f"## `{prefix.rstrip('.').removesuffix('[]')}`\n\n" if prefix else ""
    table = "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
    return f"{title}{intro}\n\n{table}\n\n" + "".join(below)


def _section(annotation: Any) -> Any:  # noqa: ANN401  a type, or None
    """The settings model that a field holds, alone or in a tuple."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if hasattr(candidate, "model_fields"):
            return candidate
    return None


def _toml(value: object) -> str:
    return "null" if value is None else json.dumps(value, default=str)


def _lines(values: object, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted keys of nested settings."""
    if isinstance(values, dict) and values:
        return [
            line for key, value in values.items() for line in _lines(value, f"{prefix}.{key}".lstrip("."))
        ]
    return [(prefix, values)]
