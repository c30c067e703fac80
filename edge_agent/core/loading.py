"""Load the settings from command line, environment, secret files and TOML file."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from edge_agent.core.config import Settings, SourceSettings, file_values
from edge_agent.core.errors import ConfigError, InputError, MissingFile
from edge_agent.core.files import read_text, shown
from edge_agent.core.private import private_folder
from edge_agent.core.redaction import MASK
from edge_agent.core.setting_secrets import holds_secret, sets_secret

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_CONFIG = Path("/etc/edge-agent/config.toml")
ENVIRONMENT_FILES = (Path("/etc/default/edge-agent"), Path("/etc/edge-agent/environment"))
"""Usual names for `EnvironmentFile=` of a service; a program does not learn where its environment is from."""
_PLAIN_KEY = re.compile(r"[\w -]{1,64}")


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Load the settings; without `config`, `DEFAULT_CONFIG` is read where it exists.

    `overrides` are nested values of the command line. ConfigError: the file cannot be read, or a key or value
    is invalid; names file and key.
    """
    path = config_file(config)
    values = _read_toml(path) if path is not None else {}
    _refuse_unknown_sections()
    token = file_values.set(values)
    try:
        return Settings(**(overrides or {}))
    except ValidationError as error:
        raise ConfigError(*_explain(error, str(path or "settings"))) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(_bad_credential()) from None
    except RuntimeError as error:  # of pathlib before Python 3.13, for a link that leads to itself
        raise ConfigError(f"credentials: {error}; remove the link") from None
    finally:
        file_values.reset(token)


def _bad_credential() -> str:
    """The error of the first credential file that is not UTF-8."""
    for file in sorted(Path(os.environ.get("CREDENTIALS_DIRECTORY") or os.devnull).iterdir()):
        try:
            read_text(file)
        except InputError as problem:
            if file.is_file():
                return f"credential: {problem}"
    return "a credential is not UTF-8 text"


def secret_files(settings: Settings, config: Path | None) -> list[Path]:
    """Return the files that the settings take secrets from: configuration, credentials, key, environment."""
    found = []
    if (path := config_file(config)) is not None and holds_secret(_read_toml(path)):
        found.append(path)
    credentials = Path(os.environ.get("CREDENTIALS_DIRECTORY") or os.devnull)
    if credentials.is_dir():
        found += sorted(file for file in credentials.iterdir() if "__" in file.name)
    mqtt, kafka, engine, fleet = settings.mqtt, settings.kafka, settings.engine, settings.fleet
    keys = mqtt.key_file, kafka.key_file, engine.triton_key_file, fleet.key_file
    found += [path for path in keys if path is not None]
    return found + [path for path in ENVIRONMENT_FILES if _sets_secret(path)]


def _sets_secret(path: Path) -> bool:
    """Whether a file of environment variables sets a secret, or an address."""
    try:
        return sets_secret(read_text(path))
    except InputError:  # missing, or not readable
        return False


def state_folder(path: Path) -> Path:
    """Create the folder for everything that the agent keeps, with mode 0700, and return it.

    ConfigError: it does not exist and cannot be created.
    """
    try:
        private_folder(path)
    except OSError as error:
        raise ConfigError(
            f"state folder {path} cannot be created: {error.strerror}; choose another with --state"
        ) from None
    return path


def config_file(config: Path | None) -> Path | None:
    """Return the TOML file that `load` reads; None without one, and for `/dev/null`.

    ConfigError: this user may not read the file of the service; without it another agent would be meant.
    """
    if config is not None:
        return None if config == Path(os.devnull) else config
    try:
        return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None
    except PermissionError:
        raise ConfigError(
            f"{DEFAULT_CONFIG} may not be read by this user: run the command as the user of the service "
            "(sudo -u edge-agent edge-agent ...), or name a file with --config"
        ) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path).removeprefix("\ufeff"))
    except MissingFile:
        raise ConfigError(f"{shown(path)}: no such configuration file") from None
    except InputError as error:
        raise ConfigError(f"configuration: {error}") from None
    except RecursionError:
        raise ConfigError(f"{shown(path)}: not usable TOML: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise ConfigError(f"{shown(path)}: not valid TOML: {error}") from None


def _refuse_unknown_sections() -> None:
    """Raise ConfigError for variables and credential files of unknown sections, which pydantic ignores."""
    prefix = "EDGE_AGENT__"
    names = {name: name[len(prefix) :] for name in os.environ if name.upper().startswith(prefix)}
    folder = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""))
    if os.environ.get("CREDENTIALS_DIRECTORY") and folder.is_dir():
        # A credential without `__` may be meant for another program.
        names |= {str(file): file.name for file in folder.iterdir() if "__" in file.name}
    known = list(Settings.model_fields)
    for where, name in sorted(names.items()):
        section = name.split("__")[0].lower()
        if section not in known:
            raise ConfigError(
                f"{where}: there is no section or key {section!r}; {_suggestion(section, known)}"
            )


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(known)}"


def _shown_key(part: str | int) -> str:
    """Return a key as it may be shown: an address in its place may hold a login."""
    return str(part) if isinstance(part, int) or _PLAIN_KEY.fullmatch(part) else MASK


def _explain(error: ValidationError, origin: str) -> list[str]:
    """One line for each error: file, key, problem, and the nearest valid key."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        location, key = fault["loc"], ".".join(map(_shown_key, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            hint = _suggestion(str(location[-1]), _known_keys(location))
            lines.append(f"{origin}: unknown key {key!r}; {hint}")
        else:
            lines.append(f"{origin}: {key or 'settings'}: {fault['msg'].removeprefix('Value error, ')}")
    return lines


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Valid keys of the section with the last part of `location`."""
    model: Any = Settings
    for part in location[:-1]:
        if not isinstance(part, int):
            field = model.model_fields.get(part)
            model = SourceSettings if part == "sources" else getattr(field, "annotation", None)
            if not hasattr(model, "model_fields"):
                return []
    return list(model.model_fields)
