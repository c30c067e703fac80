"""`edge-agent dataset`: check or generate a data set in Market-1501 layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from edge_agent.cli.arguments import JsonOption
from edge_agent.cli.output import print_result, progress_bar
from edge_agent.offline.dataset import Split

if TYPE_CHECKING:
    from edge_agent.offline.dataset import MarketDataset, Problem, SyntheticList

_SHOWN_PROBLEMS = 20


def command(
    folder: Annotated[
        Path, Argument(metavar="DIR", help="Holds bounding_box_train, bounding_box_test and query.")
    ],
    *,
    as_json: JsonOption = False,
    contact_sheet: Annotated[
        Path | None, Option(metavar="FILE.png", help="Draw a sample of each split.")
    ] = None,
    synthetic_list: Annotated[
        Path | None,
        Option(metavar="FILE", help="Rendered people and cameras: `0760`, `c14` or `760-907` per line."),
    ] = None,
    check: Annotated[bool, Option(help="Decode every picture.")] = True,
    split: Annotated[list[Split] | None, Option(help="Check only this split; may be repeated.")] = None,
    generate: Annotated[
        int | None, Option(metavar="N", min=2, help="First render a set of N people into DIR.")
    ] = None,
    seed: Annotated[int, Option(help="With --generate: random seed.")] = 0,
    cameras: Annotated[int, Option(min=2, help="With --generate: number of cameras.")] = 12,
    per_identity: Annotated[int, Option(min=4, help="With --generate: crops of each person.")] = 20,
    workers: Annotated[
        int | None, Option(min=1, help="With --generate: processes; by default one per processor.")
    ] = None,
) -> None:
    """Count the pictures of a data set in Market-1501 layout, and list files that cannot be used."""
    from edge_agent.offline.dataset import MarketDataset, SyntheticList

    if generate is not None:
        from edge_agent.offline.synthetic.crops import write_dataset

        with progress_bar("rendering people", generate) as bar:
            write_dataset(
                folder,
                identities=generate,
                cameras=cameras,
                per_identity=per_identity,
                seed=seed,
                workers=workers,
                progress=bar.update,
            )
    synthetic = None if synthetic_list is None else SyntheticList.read(synthetic_list)
    dataset = MarketDataset.open(folder, tuple(split or Split))
    problems = [*dataset.problems, *(_broken(dataset) if check else [])]
    document = _document(dataset, synthetic, problems, checked=check)
    if contact_sheet is not None:
        _draw(dataset, contact_sheet)
    print_result(document, lambda: _table(document), as_json=as_json)


def _broken(dataset: MarketDataset) -> list[Problem]:
    """Return the pictures that cannot be decoded; DatasetError when these are all of a split."""
    from edge_agent.core.errors import DatasetError

    broken: list[Problem] = []
    with progress_bar("decoding", sum(len(crops) for crops in dataset.splits.values())) as bar:
        for problem in dataset.check_pictures():
            bar.advance()
            if problem is not None:
                broken.append(problem)
    bad = {problem.path for problem in broken}
    for split, crops in dataset.splits.items():
        if all(crop.path in bad for crop in crops):
            raise DatasetError(
                f"{dataset.root / split.folder}: none of its {len(crops)} pictures can be decoded; "
                f"the first, {crops[0].path.name}, {broken[0].reason}; copy the data set again"
            )
    return broken


def _document(
    dataset: MarketDataset, synthetic: SyntheticList | None, problems: list[Problem], *, checked: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from edge_agent.core.files import shown

    splits: dict[str, Any] = {split.value: asdict(counts) for split, counts in dataset.statistics().items()}
    if synthetic is not None:
        for split, (real, rendered) in dataset.statistics_by_origin(synthetic).items():
            splits[split.value] |= {"real": asdict(real), "synthetic": asdict(rendered)}
    return {
        "root": shown(dataset.root),
        "splits": splits,
        "decoded": checked,
        "notes": dataset.notes(),
        "problems": [{"path": shown(problem.path), "reason": problem.reason} for problem in problems],
    }


def _draw(dataset: MarketDataset, path: Path) -> None:
    import cv2

    from edge_agent.core.errors import InputError
    from edge_agent.core.manifest import write_atomic
    from edge_agent.offline.contact_sheet import contact_sheet

    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise InputError(f"{path}: a contact sheet is a .png or .jpg file")
    _, encoded = cv2.imencode(path.suffix.lower(), contact_sheet(dataset))
    write_atomic(path, encoded.tobytes())


def _table(document: dict[str, Any]) -> list[str]:
    """Return the model card's table, one row per split, then the problems."""
    head = ["split", "identities", "images", "cameras"]
    with_origin = any("real" in counts for counts in document["splits"].values())
    if with_origin:
        head += [f"{kind} {what}" for kind in ("real", "synthetic") for what in ("ids", "images", "cameras")]
    head += ["distractors", "junk"]
    rows = [head]
    for split, counts in document["splits"].items():
        parts = [counts, *((counts["real"], counts["synthetic"]) if with_origin else ())]
        cells = [str(part[key]) for part in parts for key in ("identities", "images", "cameras")]
        rows.append([split, *cells, str(counts["distractor_images"]), str(counts["junk_images"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += [f"warning: {note}" for note in document["notes"]]
    problems = document["problems"]
    if problems:
        lines.append(f"{len(problems)} files cannot be used:")
        lines += [f"  {problem['path']} {problem['reason']}" for problem in problems[:_SHOWN_PROBLEMS]]
    else:
        lines.append("every file can be used" if document["decoded"] else "every file name can be used")
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(problems) - _SHOWN_PROBLEMS} more (--json lists all)")
    return lines
