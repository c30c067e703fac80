"""Spec files in YAML, and values from the command line that replace theirs, as `key=value` does in TAO."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.core.distribution import install_command
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.files import read_text
from edge_agent.core.text import shortened
from edge_agent.offline.train.spec import Command, Spec, parse_spec
from edge_agent.offline.train.tao_fields import RENAMED, renamed

if TYPE_CHECKING:
    import yaml

_MAX_NODES = 100_000
"""Limit of the values in a spec, counted as often as aliases repeat them."""
_MAX_DEPTH = 50
"""Limit of the levels of a spec."""
_LONGEST = 80
"""Characters of an argument in an error."""


def load_spec(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    command: Command = "train",
    note: Callable[[str], None] | None = None,
) -> Spec:
    """Read the sections of a spec file that a command uses, with `key=value` in the place of its values.

    `note` is as for `parse_spec`.

    Raises:
        ConfigError: with file and field, if it is unreadable, not YAML or invalid.
    """
    _require_yaml()
    try:
        text = read_text(path)
    except InputError as error:
        raise ConfigError(f"{error}".replace("cannot read", "cannot read the spec", 1)) from error
    content = _parsed(text, str(path), "a YAML file")
    if not isinstance(content, Mapping | None):
        kind = type(content).__name__
        raise ConfigError(f"{path}: expected sections such as model: and dataset:, got {kind}")
    values = content or {}
    if overrides:
        values, faults = renamed(values)
        if faults:
            raise ConfigError(f"{path}: " + "; ".join(faults))
        for override in overrides:
            _replace(values, override)
    return parse_spec(values, name=str(path), command=command, note=note)


def _replace(values: dict[str, Any], override: str) -> None:
    """Set the field that `key=value` names; a mapping is merged into a section."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")) or key.count(".") > _MAX_DEPTH:
        shown = shortened(override, _LONGEST)
        raise ConfigError(f"{shown!r} is not KEY=VALUE, as in train.num_epochs=60")
    if key[0] in "+~":
        raise ConfigError(f"{key}: fields are neither added nor removed; write KEY=VALUE")
    *sections, name = RENAMED.get(key, key).split(".")
    section = values
    for part in sections:
        if not isinstance(section.get(part), dict):
            section[part] = {}
        section = section[part]
    _merge(section, name, _parsed(text, key, "a YAML value") if text else "")


def _merge(section: dict[str, Any], name: str, value: Any) -> None:  # noqa: ANN401  # whatever YAML holds
    if isinstance(value, Mapping) and isinstance(inner := section.get(name), dict):
        for key, one in value.items():
            _merge(inner, key, one)
    else:
        section[name] = value


def _require_yaml() -> None:
    """Raise ConfigError where PyYAML is not installed."""
    try:
        import yaml  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"specs are YAML files: {install_command('train')}") from error


def _parsed(text: str, name: str, what: str) -> Any:  # noqa: ANN401  # whatever YAML holds
    """One YAML document as plain values; ConfigError, with `name` and place, if it is none."""
    import yaml

    try:
        root = yaml.compose(text, yaml.SafeLoader)
        for node in _nodes(root, name):
            _refuse_twice(node, name)
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{name} is not {what} that can be used: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: e.g. a date that does not exist
        raise ConfigError(f"{name} is not {what}: {_problem(error, text)}") from error


def _nodes(root: yaml.Node | None, name: str) -> Iterator[yaml.Node]:
    """Yield all nodes; ConfigError where aliases repeat too many, RecursionError if too deep."""
    waiting, count = [(root, 0)] if root is not None else [], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > _MAX_NODES:
            raise ConfigError(f"{name} is not a usable spec: it has more than {_MAX_NODES:,} values")
        if depth > _MAX_DEPTH:
            raise RecursionError
        yield node
        if isinstance(children := getattr(node, "value", None), list):  # of a mapping: pairs
            parts = itertools.chain(*(one if isinstance(one, tuple) else (one,) for one in children))
            waiting += ((part, depth + 1) for part in parts)


def _refuse_twice(node: yaml.Node, name: str) -> None:
    """Raise ConfigError for a mapping with a name twice, of which YAML's reader would use the last."""
    lines: dict[str, int] = {}
    for key, _ in node.value if node.tag == "tag:yaml.org,2002:map" else ():
        if not isinstance(key.value, str) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ConfigError(f"{name}: {key.value} is given twice, in lines {lines[key.value]} and {line}")
        lines[key.value] = line


def _problem(error: Exception, content: str) -> str:
    """The error of YAML's reader in one line, with the place."""
    mark = getattr(error, "problem_mark", None)
    parts = [part for name in ("context", "problem") if (part := getattr(error, name, None))]
    text = ", ".join(parts) or str(error).splitlines()[0]
    if mark is None:
        return str(text)
    if mark.index < len(content) and content[mark.index] == "\t":
        text = "a tab; YAML is indented by spaces"
    return f"{text} (line {mark.line + 1}, column {mark.column + 1})"
