"""Settings of a replay that differ from the recorded ones, as they are typed, and their combinations."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.errors import ConfigError
from edge_agent.core.sections import Section

SECTIONS: dict[str, tuple[type[Section], tuple[str, ...]]] = {
    "identify": (IdentifySettings, tuple(IdentifySettings.model_fields)),
    "gallery": (GallerySettings, ("capacity", "max_exemplars", "index", "exact_up_to")),
}
"""Sections, and their keys on which decisions on given tracks depend."""
MOST_RUNS = 64
"""Combinations of one sweep."""
THRESHOLD = "identify.threshold"

Changes = dict[str, dict[str, Any]]


def sweep(texts: Sequence[str], threshold: float | None) -> list[tuple[str, Changes]]:
    """Return all combinations of `SECTION.KEY=VALUE[,VALUE...]`, each with a name.

    `identify.threshold-=0.1` stands for a threshold 0.1 below `threshold`, that of the recording; `+=` for
    one above. Without texts there is none.

    Raises:
        ConfigError: not of this form, not a setting on which a decision depends, a wrong value, or more than
            `MOST_RUNS` combinations.
    """
    choices = [_choices(text, threshold) for text in texts]
    keys = [options[0][0] for options in choices]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ConfigError(f"--set {sorted(twice)[0]} is given twice; list its values: KEY=ONE,TWO")
    runs = 1
    for options in choices:
        runs *= len(options)
    if runs > MOST_RUNS:
        raise ConfigError(f"{runs} combinations of settings are too many, at most {MOST_RUNS}")
    found = []
    for combination in itertools.product(*choices) if choices else ():
        changes: Changes = {}
        for key, value in combination:
            section, _, name = key.partition(".")
            changes.setdefault(section, {})[name] = value
        for section, values in changes.items():
            _validate(section, values)
        found.append((", ".join(f"{key} = {_shown(value)}" for key, value in combination), changes))
    return found


def _choices(text: str, threshold: float | None) -> list[tuple[str, Any]]:
    key, equals, values = text.partition("=")
    key = key.strip()
    sign = {"-": -1, "+": 1}.get(key[-1:], 0)
    key = key.rstrip("+-").strip()
    section, _, name = key.partition(".")
    if not equals or not values.strip():
        raise ConfigError(f"--set {text}: write SECTION.KEY=VALUE, e.g. identify.target_fmr=1e-4")
    if section not in SECTIONS or name not in SECTIONS[section][1]:
        raise ConfigError(
            f"--set {key}: decisions on recorded tracks do not depend on it; these can be set:"
            f" {', '.join(f'{one}.{each}' for one, (_, keys) in SECTIONS.items() for each in keys)}"
        )
    parsed = [_value(part.strip()) for part in values.split(",")]
    if not sign:
        return [(key, value) for value in parsed]
    if key != THRESHOLD or not all(type(value) in (int, float) for value in parsed):
        raise ConfigError(f"--set {text}: only {THRESHOLD} can be given relative to the recorded one")
    if threshold is None:
        raise ConfigError(f"--set {text}: no threshold was in force in the recording; give {THRESHOLD}=VALUE")
    return [(key, round(threshold + sign * value, 4)) for value in parsed]


def _value(text: str) -> Any:  # noqa: ANN401 - a JSON scalar
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (list, dict)) else value


def _validate(section: str, values: Mapping[str, Any]) -> None:
    try:
        SECTIONS[section][0].model_validate(dict(values))
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or next(iter(values))
        raise ConfigError(f"--set {section}.{where}: {first['msg']}") from problem


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
