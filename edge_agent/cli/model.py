"""`edge-agent model`: install detectors and re-identification networks, and name them in the settings."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from edge_agent.cli.arguments import ConfigOption, JsonOption
from edge_agent.cli.output import print_json, progress_bar, say, table
from edge_agent.cli.settings_file import name_in_settings
from edge_agent.core.files import shown
from edge_agent.core.installed import MODELS, SYSTEM_FOLDER
from edge_agent.core.published import PUBLISHED, Published

if TYPE_CHECKING:
    from edge_agent.core.config import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Install a detector or a re-identification network on this device. Nothing is downloaded unasked.",
)

OutputOption = Annotated[
    Path | None,
    Option(help=f"Folder; by default {SYSTEM_FOLDER}, or, if not writable, `models` in the state folder."),
]
UseOption = Annotated[
    Path | None,
    Option("--use", help="Settings file where the network is named: in detector.kind or engine.model."),
]

_REID = "reidentificationnet"
_FETCH = f"""Install a published network by its name, or the re-identification network of --url.

NAME is one of {", ".join(PUBLISHED)}; without one, {_REID}. A detector is used from then on by every agent
whose detector.kind is auto. An interrupted download continues where it stopped; proxies are those of the
environment. The licence of each network is its publisher's, see `edge-agent model list`.
"""


@app.command(help=_FETCH)
def fetch(
    name: Annotated[str | None, Argument(help="Name of the network.")] = None,
    output: OutputOption = None,
    use: UseOption = None,
    preprocess: Annotated[
        str | None,
        Option(help="Preprocess profile of the training of a re-identification network; by default its own."),
    ] = None,
    source: Annotated[
        Path | None,
        Option("--from", metavar="FILE", help="Install NAME from this file; nothing is downloaded."),
    ] = None,
    url: Annotated[str | None, Option(help="Another address, e.g. of a mirror.")] = None,
    sha256: Annotated[
        str | None, Option(help="Digest that the file must have; required with --url and no NAME.")
    ] = None,
) -> None:
    """See `_FETCH`."""
    from edge_agent.core.errors import DownloadError
    from edge_agent.core.redaction import public_address
    from edge_agent.engine.profiles import profile_of
    from edge_agent.offline.networks import wanted_digest

    network = _wanted(name, url, sha256, source)
    if preprocess is not None and network.role == "detector":
        raise typer.BadParameter(
            f"--preprocess is for re-identification networks; {network.name} is a detector"
        )
    if network.sha256 is None and sha256 is None:
        _show_address(network)
    digest = wanted_digest(network, sha256)
    target = _folder(output) / network.file
    try:
        _obtain(network, target, digest, source, url)
    except DownloadError:
        if url is None:
            _show_address(network)
            say(f"without a network here: edge-agent model fetch {network.name} --from FILE", err=True)
        raise
    if source is not None:
        origin = shown(source)
    else:
        origin = public_address(url) if url is not None else network.url.partition("?")[0]
    if network.role == "detector":
        _use_detector(network, target, origin, use)
        return
    profile = preprocess or profile_of(target).name
    _check(target, profile)
    _register(target, profile, source=origin, use=use)


def _show_address(network: Published) -> None:
    """Print the address of a published file: errors show only what no address keeps secret."""
    say(f"{network.name} is published at {network.url}", err=True)


def _wanted(name: str | None, url: str | None, sha256: str | None, source: Path | None) -> Published:
    """Return the network of the command line."""
    from urllib.parse import urlsplit

    from edge_agent.core.errors import InputError
    from edge_agent.core.redaction import public_address
    from edge_agent.offline.networks import published

    if source is not None and (name is None or url is not None):
        raise typer.BadParameter("--from needs NAME, and no --url")
    if name is not None or url is None:
        return published(name or _REID)
    if sha256 is None:
        raise InputError(
            "--url needs NAME or --sha256: a network is loaded into the agent, so it must be the right one"
        )
    file = Path(urlsplit(url).path).name
    if not file.endswith(".onnx"):
        raise InputError(f"--url must lead to a file called NAME.onnx: {public_address(url)}")
    return Published(file, "reid", "", file, url, sha256, None, "")


def _obtain(network: Published, target: Path, digest: str, source: Path | None, url: str | None) -> None:
    """Fetch or copy the file, with a progress bar."""
    from rich.progress import DownloadColumn, TextColumn, TransferSpeedColumn

    from edge_agent.offline.download import received
    from edge_agent.offline.networks import obtain

    columns = (TextColumn("{task.description}", markup=False), DownloadColumn(), TransferSpeedColumn())
    try:
        with progress_bar(network.file, columns=columns) as bar:
            fresh = obtain(network, target, digest, source=source, url=url, progress=bar.update)
    except KeyboardInterrupt:
        kept = f"{received(target):,} bytes are kept, the same command continues there"
        say("stopped" if source is not None else f"stopped; {kept}", err=True)
        raise
    if not fresh:
        say(f"{target} is there already, with the right digest")


def _use_detector(network: Published, file: Path, origin: str, use: Path | None) -> None:
    """Check a detector, make it that of its folder, and print what uses it."""
    from edge_agent.core.installed import default_detector, register_detector
    from edge_agent.core.loading import load
    from edge_agent.core.logs import configure
    from edge_agent.detect.recognition import recognise

    configure("warning")
    recognise(file, network.kind)
    file = file.absolute()
    detector = register_detector(network.name, network.kind, file, origin)
    say(f"{file}: {network.name}, licence {network.licence}, checked on two pictures")
    if use is not None:
        name_in_settings(use, "detector", {"kind": str(detector)})
        say(f"{use}: detector.kind is set; the agent uses it from its next start")
        return
    default = default_detector(load().state_dir.absolute())
    if default == detector:
        whose = "this machine" if file.parent == SYSTEM_FOLDER else "this user"
        say(f"agents of {whose} whose detector.kind is auto, the default, use it from their next start")
    else:
        rather = "" if default is None else f" (by default {default} is used)"
        say(f"to use it: --detector {detector}{rather}")


@app.command(name="list")
def list_networks(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List the networks that can be fetched, those that are installed, and which detector is used."""
    from edge_agent.core.loading import load
    from edge_agent.offline.networks import listed

    settings = load(config)
    rows = listed(settings.state_dir)
    if as_json:
        fields = [asdict(row) | {"file": None if row.file is None else str(row.file)} for row in rows]
        in_use = {"detector": settings.detector.kind, "detector_in_use": _detector_in_use(settings)}
        print_json(in_use | {"networks": fields}, indent=2)
        return
    for line in table(
        ("name", "for", "MB", "licence", "installed"),
        [
            (
                row.name,
                {"reid": "re-identification"}.get(row.role, row.role),
                "" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
                row.licence,
                row.problem
                or ("" if row.file is None else shown(row.file)) + ("  (default)" if row.default else ""),
            )
            for row in rows
        ],
        right=("MB",),
        wrap="installed",
    ):
        say(line)
    say(f"detector.kind is {settings.detector.kind}: {_detector_in_use(settings)}")


def _detector_in_use(settings: Settings) -> str:
    """Return the common detector of these settings, or why it cannot be used."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.core.installed import chosen_detector

    try:
        return chosen_detector(settings.detector.kind, settings.state_dir)
    except ConfigError as problem:
        return str(problem)


@app.command()
def add(
    file: Annotated[Path, Argument(help="ReID network, ONNX.")],
    output: OutputOption = None,
    use: UseOption = None,
    preprocess: Annotated[
        str | None,
        Option(help="Preprocess profile of the training; by default that which FILE states."),
    ] = None,
) -> None:
    """Install a network from a file: check it, copy it, and write its manifest."""
    from edge_agent.core.files import open_regular
    from edge_agent.core.manifest import atomic_file
    from edge_agent.engine.profiles import profile_of

    profile = preprocess or profile_of(file).name
    _check(file, profile)
    target = _folder(output) / file.name
    if not (target.exists() and target.samefile(file)):
        with open_regular(file) as source, atomic_file(target) as copy:
            shutil.copyfileobj(source, copy)
    _register(target, profile, source=str(file), use=use)


def _folder(output: Path | None) -> Path:
    from edge_agent.core.errors import InputError
    from edge_agent.core.loading import load, state_folder
    from edge_agent.core.private import private_folder

    if output is None:
        return SYSTEM_FOLDER if os.access(SYSTEM_FOLDER, os.W_OK) else state_folder(load().state_dir / MODELS)
    try:
        private_folder(output)
    except OSError as problem:
        reason = f"{problem.strerror}; choose another with --output"
        raise InputError(f"the folder {shown(output)} cannot be created: {reason}") from None
    return output


def _check(model: Path, preprocess: str) -> None:
    """Run the network's self-test; ModelError if it fails, ConfigError if there is no such profile."""
    from tempfile import TemporaryDirectory

    from edge_agent.core.config import EngineSettings, QualitySettings
    from edge_agent.core.logs import configure
    from edge_agent.embed.opening import open_embedder
    from edge_agent.engine.graph.prepared import profile_named

    configure("warning")
    profile_named(preprocess)
    settings = EngineSettings(model=model, preprocess=preprocess, backend="onnxruntime", precision="fp32")
    with (
        TemporaryDirectory() as scratch,
        open_embedder(settings, QualitySettings(), Path(scratch), max_batch=8),
    ):
        pass


def _register(model: Path, preprocess: str, *, source: str, use: Path | None) -> None:
    """Write the manifest of a checked network, and print the next step."""
    from edge_agent import __version__
    from edge_agent.core.manifest import FileRecord, write_json_atomic

    record = FileRecord.of(model)
    manifest = {"kind": "model", "version": 1, "preprocess": preprocess, "agent": __version__}
    described = {"files": {model.name: asdict(record)}, "data": {"source": source}}
    write_json_atomic(model.with_suffix(".json"), manifest | described)
    for path in (model, model.with_suffix(".json")):
        path.chmod(0o644)  # readable for the service, with any umask
    say(f"{model}: sha256 {record.sha256}, profile {preprocess}")
    if use is not None:
        name_in_settings(use, "engine", {"model": str(model.absolute()), "preprocess": None})
        say(f"{use}: engine.model is set; the agent uses it from its next start")
    else:
        say(f'to use it, in [engine] of the settings: model = "{model.absolute()}"')
    say("embeddings of another network cannot be compared: see docs/gallery.md, embedding space")
