"""`edge-agent model`: bring a re-identification network onto this device, and name it in the settings."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Bring a re-identification network onto this device. Nothing is fetched without being asked for.",
)

NGC_URL = (
    "https://api.ngc.nvidia.com/v2/models/org/nvidia/team/tao/reidentificationnet/deployable_v1.2/files"
    "?redirect=true&path=resnet50_market1501_aicity156.onnx"
)
NGC_NAME = "resnet50_market1501_aicity156.onnx"
NGC_SHA256 = "0e21d09278508ec835955f422a9fdd3cd59b2a6ecdef98d705f388f33cebac2b"
"""NVIDIA TAO ReIdentificationNet, deployable_v1.2: ResNet50, 256 numbers, profile `tao`, 96,398,132 bytes."""

SYSTEM_FOLDER = Path("/etc/edge-agent/models")
"""Networks of the service: root writes them, so that the service cannot change what it runs."""

OutputOption = Annotated[
    Path | None,
    typer.Option(
        help=f"Folder for the network; {SYSTEM_FOLDER} when absent, or `models` in the state folder "
        "for who may not write there."
    ),
]
UseOption = Annotated[
    Path | None, typer.Option("--use", help="Settings file in which to name the network as engine.model.")
]


@app.command()
def fetch(
    output: OutputOption = None,
    use: UseOption = None,
    preprocess: Annotated[str, typer.Option(help="Profile that the network was trained with.")] = "tao",
    url: Annotated[str, typer.Option(help="Address; NVIDIA's ReIdentificationNet when absent.")] = NGC_URL,
    sha256: Annotated[str | None, typer.Option(help="Digest of the file; must be given with --url.")] = None,
) -> None:
    """Fetch NVIDIA's ReIdentificationNet (96 MB) from NGC, or what --url names.

    What was interrupted goes on where it stopped. Proxies are those of the environment. The network's
    licence is NVIDIA's (see its page on NGC), not this project's.
    """
    from urllib.parse import urlsplit

    from edge_agent.core.errors import InputError
    from edge_agent.offline.download import download

    if url != NGC_URL and sha256 is None:
        raise InputError(
            "--url needs --sha256: a network is loaded into the agent, so it must be the right one"
        )
    name = NGC_NAME if url == NGC_URL else Path(urlsplit(url).path).name
    if not name.endswith(".onnx"):
        raise InputError(f"--url must lead to a file called NAME.onnx, not {name!r}")
    target = _folder(output) / name
    with _progress(name) as advance:
        download(url, target, sha256=sha256 or NGC_SHA256, progress=advance)
    _register(target, preprocess, source=url.partition("?")[0], use=use)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="ReID network, ONNX.")],
    output: OutputOption = None,
    use: UseOption = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="Profile that it was trained with; what FILE's own manifest says when absent, else tao."
        ),
    ] = None,
) -> None:
    """Take over a network from a file: check that it fits, copy it, and write down what it is."""
    from edge_agent.core.errors import InputError
    from edge_agent.core.manifest import atomic_file, read_json

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    beside = file.with_suffix(".json")
    if preprocess is None and beside.is_file():
        preprocess = read_json(beside).get("preprocess")
    profile = preprocess or "tao"
    _check(file, profile)
    target = _folder(output) / file.name
    if not (target.exists() and target.samefile(file)):
        with file.open("rb") as source, atomic_file(target) as copy:
            shutil.copyfileobj(source, copy)
    _register(target, profile, source=str(file), use=use)


def _folder(output: Path | None) -> Path:
    from edge_agent.agent.factory import state_folder
    from edge_agent.core.loading import load

    if output is None and os.access(SYSTEM_FOLDER, os.W_OK):
        return SYSTEM_FOLDER
    return state_folder(output if output is not None else load().state_dir / "models")


def _check(model: Path, preprocess: str) -> None:
    """ModelError where it is no network that fits, ConfigError for a profile that there is not."""
    from edge_agent.engine.graph import prepare_reid
    from edge_agent.engine.graph.profiles import profile_named

    prepare_reid(model, profile_named(preprocess))


def _register(model: Path, preprocess: str, *, source: str, use: Path | None) -> None:
    """Check, write the manifest that the agent reads the profile from, and say what to do next."""
    from edge_agent import __version__
    from edge_agent.core.manifest import FileRecord, write_json_atomic

    _check(model, preprocess)
    record = FileRecord.of(model)
    manifest = {
        "kind": "model",
        "version": 1,
        "preprocess": preprocess,
        "agent": __version__,
        "files": {model.name: {"sha256": record.sha256, "bytes": record.bytes}},
        "data": {"source": source},
    }
    write_json_atomic(model.with_suffix(".json"), manifest)
    for path in (model, model.with_suffix(".json")):
        path.chmod(0o644)  # the service reads them, whatever root's umask is
    typer.echo(f"{model}: sha256 {record.sha256}, profile {preprocess}")
    if use is not None:
        name_in_settings(use, model.absolute())
        typer.echo(f"{use}: engine.model names it now; the agent takes it at its next start")
    else:
        typer.echo(f'to use it, in [engine] of the settings: model = "{model.absolute()}"')
    typer.echo("embeddings of another network cannot be compared: see docs/gallery.md, embedding space")


def name_in_settings(config: Path, model: Path) -> None:
    """Set `engine.model` in a TOML file, and take away an `engine.preprocess` of the former network.

    The rest of the file stays as it is, comments too. It is replaced only by one that reads well.
    """
    from tempfile import TemporaryDirectory

    from edge_agent.core.errors import ConfigError
    from edge_agent.core.loading import load
    from edge_agent.core.manifest import atomic_file

    before = load(config)  # says what is wrong with it, if anything is
    text = _with_model(config.read_text(), model)
    with TemporaryDirectory() as folder:
        candidate = Path(folder) / config.name
        candidate.write_text(text)
        after = load(candidate)
    if after.engine.model != model or after.sources != before.sources:
        raise ConfigError(f'{config}: could not be changed; in [engine], write: model = "{model}"')
    owner = config.stat()
    with atomic_file(config, mode=0o600) as file:
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.fchmod(file.fileno(), owner.st_mode & 0o777)
        file.write(text.encode())


def _with_model(text: str, model: Path) -> str:
    """TOML whose section `engine` names `model`."""
    lines = text.splitlines()
    header = re.compile(r"\s*\[engine\]\s*(#.*)?")
    start = next((at for at, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        lines += ["", "[engine]"]
        start = len(lines) - 1
    end = next((at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
    body = [line for line in lines[start + 1 : end] if not re.match(r"\s*(model|preprocess)\s*=", line)]
    named = f"model = {json.dumps(str(model))}"
    return "\n".join([*lines[: start + 1], named, *body, *lines[end:]]) + "\n"


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal; silence elsewhere."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns: list[Any] = [TextColumn(name), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
