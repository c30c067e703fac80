"""`edge-agent config`: check, show and describe the settings."""

from __future__ import annotations

import json
import re
from typing import Any

import typer

from edge_agent.cli.arguments import ConfigOption, JsonOption
from edge_agent.cli.output import print_json, say

app = typer.Typer(no_args_is_help=True, help="Check, show and describe the settings.")


@app.command()
def check(config: ConfigOption = None) -> None:
    """Check the settings, the files and folders that they name, and the host name of the broker."""
    from edge_agent.agent.preflight import all_problems
    from edge_agent.cli.output import warn_of_exposed
    from edge_agent.core.errors import ConfigError
    from edge_agent.core.loading import config_file, load, secret_files

    settings = load(config)
    warn_of_exposed(secret_files(settings, config))
    if problems := [str(problem) for problem in all_problems(settings)]:
        raise ConfigError(*problems)
    where = config_file(config) or "defaults and environment"
    say(f"{where}: valid, {len(settings.sources)} source(s)")


@app.command()
def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the active settings, without secrets."""
    from edge_agent.core.loading import load
    from edge_agent.core.setting_secrets import shown

    values = shown(load(config))
    if as_json:
        print_json(values, indent=2)
        return
    for key, value in _lines(values):
        say(f"{key} = {json.dumps(value)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file."""
    from edge_agent.core.config import Settings

    print_json(Settings.model_json_schema(), indent=2)


@app.command()
def reference() -> None:
    """Print every setting with default and description, as Markdown (docs/configuration.md)."""
    from edge_agent.core.config import Settings

    say(*_reference(Settings, "").rstrip().split("\n"))


def _reference(model: Any, prefix: str) -> str:  # noqa: ANN401  a pydantic model, imported late
    """Markdown tables of one section and its sections."""
    import inspect

    rows, below = [], []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            below.append(_reference(section, f"{prefix}{name}" + ("[]." if name == "sources" else ".")))
            if name != "sources":
                continue
        default = "" if field.is_required() or field.default_factory else f"`{_toml(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {_meaning(field)} |")
    intro = inspect.cleandoc(model.__doc__ or "")
    title = f"## `{prefix.rstrip('.').removesuffix('[]')}`\n\n" if prefix else ""
    table = "| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows)
    return f"{title}{intro}\n\n{table}\n\n" + "".join(below)


def _meaning(field: Any) -> str:  # noqa: ANN401  a field of a pydantic model
    """The description, with the choices that it does not name."""
    text = field.description or ""
    choices = _choices(field.annotation)
    if all(re.search(rf"\b{re.escape(one)}\b", text) for one in choices):
        return text
    return f"{text}; one of {', '.join(choices)}"


def _choices(annotation: Any) -> list[str]:  # noqa: ANN401  a type, or a value of a `Literal`
    """The texts that a setting takes, where its type lists them."""
    inner = getattr(annotation, "__args__", ())
    return [annotation] if isinstance(annotation, str) else [one for arg in inner for one in _choices(arg)]


def _section(annotation: Any) -> Any:  # noqa: ANN401  a type, or None
    """The settings model of a field, alone or in a tuple."""
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
