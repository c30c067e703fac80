"""`edge-agent embed`: embedding files of crops."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from edge_agent.cli import arguments
from edge_agent.cli.output import print_result, progress_bar
from edge_agent.offline.dataset import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agent.offline.dataset import Problem
    from edge_agent.offline.evaluate.embedding import CropEmbedder, EmbeddedPaths


def command(
    source: Annotated[Path, Argument(metavar="INPUT", help="A picture, a folder of crops, or a data set.")],
    *,
    output: Annotated[
        Path, Option("-o", "--output", metavar="OUT", help="FILE.npy, FILE.npz or FILE.json (TAO).")
    ],
    model: arguments.ShippedModelOption = None,
    preprocess: arguments.PreprocessOption = None,
    backend: arguments.BackendOption = "auto",
    precision: arguments.PrecisionOption = "auto",
    raw: Annotated[
        bool, Option("--raw", help="Keep the vector lengths of the network, as TAO does (ONNX Runtime).")
    ] = False,
    split: Annotated[
        list[Split] | None, Option(help="Only this split of a data set; may be repeated.")
    ] = None,
    as_json: arguments.JsonOption = False,
) -> None:
    """Embed crops; pictures that cannot be read are left out and listed."""
    from edge_agent.core.files import shown
    from edge_agent.core.logs import configure
    from edge_agent.offline.evaluate.embedding import Network
    from edge_agent.offline.evaluate.files import check_suffix, write_embeddings

    configure("warning")
    check_suffix(output)
    arguments.require_folders(output)
    paths, unusable = pictures_of(source, tuple(split or ()))
    with Network(model, preprocess, backend, precision, raw).open() as (embedder, description):
        done = with_progress(embedder, paths, "crops")
    facts = {**description, "unit_length": not raw, "input": shown(source)}
    left_out = [
        {"path": shown(problem.path), "reason": problem.reason} for problem in (*unusable, *done.problems)
    ]
    names = [_name(paths[row], source, output) for row in done.rows]
    files = write_embeddings(output, names, done.vectors, {**facts, "left_out": left_out})
    result = {
        "files": [shown(path) for path in files],
        "embedded": len(names),
        "dimension": int(done.vectors.shape[1]),
        "left_out": left_out,
        "model": facts,
    }
    print_result(result, _summary(result), as_json=as_json)


def with_progress(embedder: CropEmbedder, paths: Sequence[Path], what: str) -> EmbeddedPaths:
    """Embed pictures with a progress bar."""
    from edge_agent.offline.evaluate.embedding import embed_paths

    with progress_bar(f"embedding {what}", len(paths)) as bar:
        return embed_paths(embedder, paths, advance=bar.advance)


def pictures_of(source: Path, splits: tuple[Split, ...]) -> tuple[list[Path], Sequence[Problem]]:
    """Return the pictures, and files of a data set that cannot be used, such as misnamed ones."""
    from edge_agent.core.errors import InputError
    from edge_agent.core.pictures import list_pictures
    from edge_agent.offline.dataset import MarketDataset

    present = tuple(split for split in Split if (source / split.folder).is_dir())
    if present:
        dataset = MarketDataset.open(source, splits or present)
        return [crop.path for crop in dataset.crops], dataset.problems
    if splits:
        raise InputError(f"{source} is not a data set in Market-1501 layout, so it has no splits to choose")
    if source.is_dir():
        return list(list_pictures(source)), ()
    if not source.is_file():
        raise InputError(f"no picture, folder or data set {source}")
    return [source], ()


def _name(path: Path, source: Path, output: Path) -> str:
    """Return the name of a crop in the file: its path in TAO's JSON, else relative to INPUT.

    What is not text in it is written as an escape.
    """
    from edge_agent.core.files import shown

    if output.suffix.lower() == ".json":
        return shown(path)
    return shown(path.relative_to(source) if source.is_dir() else path.name)


def _summary(result: dict[str, Any]) -> list[str]:
    model = result["model"]
    by = f"{model['name']} (profile {model['preprocess']})"
    lines = [f"{result['embedded']} embeddings of {result['dimension']} numbers by {by}"]
    lines += [f"  {path}" for path in result["files"]]
    if result["left_out"]:
        lines.append(f"left out since unusable: {len(result['left_out'])}")
        lines += [f"  {problem['path']} {problem['reason']}" for problem in result["left_out"][:20]]
    return lines
