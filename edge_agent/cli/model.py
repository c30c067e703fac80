"""`edge-agent model`: install a re-identification network, and name it in the settings."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from edge_agent.cli.output import progress_bar, say

app = typer.Typer(
    no_args_is_help=True,
    help="Install a re-identification network on this device. Nothing is downloaded unasked.",
)

NGC_URL = (
    "https://api.ngc.nvidia.com/v2/models/org/nvidia/team/tao/reidentificationnet/deployable_v1.2/files"
    "?redirect=true&path=resnet50_market1501_aicity156.onnx"
)
NGC_NAME = "resnet50_market1501_aicity156.onnx"
"""NVIDIA TAO ReIdentificationNet, deployable_v1.2: ResNet50, 256 numbers, profile `tao`, 96,398,132 bytes."""

SYSTEM_FOLDER = Path("/etc/edge-agent/models")
"""Networks of the service; only root can write there, so the service cannot change them."""

OutputOption = Annotated[
    Path | None,
    Option(help=f"Folder; by default {SYSTEM_FOLDER}, or, if not writable, `models` in the state folder."),
]
UseOption = Annotated[
    Path | None, Option("--use", help="Settings file whose engine.model is set to the network.")
]


@app.command()
def fetch(
    output: OutputOption = None,
    use: UseOption = None,
    preprocess: Annotated[
        str | None, Option(help="Preprocess profile of the training; by default that which the file states.")
    ] = None,
    url: Annotated[str, Option(help="Address; by default NVIDIA's ReIdentificationNet.")] = NGC_URL,
    sha256: Annotated[str | None, Option(help="Digest of the file; required with --url.")] = None,
) -> None:
    """Download NVIDIA's ReIdentificationNet (96 MB) from NGC, or the file of --url.

    An interrupted download continues where it stopped. Proxies are those of the environment. The network's
    licence is NVIDIA's (see its page on NGC), not this project's.
    """
    from urllib.parse import urlsplit

    from rich.progress import DownloadColumn, TextColumn, TransferSpeedColumn

    from edge_agent.core.errors import InputError
    from edge_agent.core.redaction import public_address
    from edge_agent.engine.profiles import NVIDIA_SHA256, profile_of
    from edge_agent.offline.download import download

    if url != NGC_URL and sha256 is None:
        raise InputError(
            "--url needs --sha256: a network is loaded into the agent, so it must be the right one"
        )
    name = NGC_NAME if url == NGC_URL else Path(urlsplit(url).path).name
    if not name.endswith(".onnx"):
        raise InputError(f"--url must lead to a file called NAME.onnx: {public_address(url)}")
    target = _folder(output) / name
    columns = (TextColumn("{task.description}", markup=False), DownloadColumn(), TransferSpeedColumn())
    with progress_bar(name, columns=columns) as bar:
        download(url, target, sha256=sha256 or NVIDIA_SHA256, progress=bar.update)
    profile = preprocess or profile_of(target).name
    _check(target, profile)
    source = url.partition("?")[0] if url == NGC_URL else public_address(url)
    _register(target, profile, source=source, use=use)


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
    from edge_agent.core.loading import load, state_folder

    if output is None and os.access(SYSTEM_FOLDER, os.W_OK):
        return SYSTEM_FOLDER
    return state_folder(output if output is not None else load().state_dir / "models")


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
        name_in_settings(use, model.absolute())
        say(f"{use}: engine.model is set; the agent uses it from its next start")
    else:
        say(f'to use it, in [engine] of the settings: model = "{model.absolute()}"')
    say("embeddings of another network cannot be compared: see docs/gallery.md, embedding space")


def name_in_settings(config: Path, model: Path) -> None:
    """Set `engine.model` in a TOML file, and remove `engine.preprocess`, which was of the former network.

    The rest of the file stays as it is, with its comments. The file is replaced only by a valid one.
    """
    from tempfile import TemporaryDirectory

    from edge_agent.core.errors import ConfigError
    from edge_agent.core.files import read_text
    from edge_agent.core.loading import load
    from edge_agent.core.manifest import atomic_file

    before = load(config)
    text = _with_model(read_text(config), model)
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
