"""TAO's way to use a command: a spec with `-e`, values as `key=value`, results in TAO's layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from edge_agent.cli.output import say

if TYPE_CHECKING:
    from edge_agent.offline.dataset import MarketDataset
    from edge_agent.offline.evaluate.embedding import Network
    from edge_agent.offline.evaluate.protocol import Evaluation
    from edge_agent.offline.evaluate.rerank import ReRanking
    from edge_agent.offline.tao.status import StatusFile
    from edge_agent.offline.train.spec import Command, EvaluateSection, Spec

SpecOption = Annotated[
    Path | None,
    Option(
        "-e",
        "--experiment-spec-file",
        metavar="SPEC.yaml",
        help="TAO experiment spec; arguments KEY=VALUE, such as train.num_epochs=60, replace its values.",
    ),
]
ResultsOption = Annotated[
    Path | None, Option("--tao-results", metavar="DIR", help="Also write results in TAO's layout to DIR.")
]

_CMC, _MATCHES = "cmc_curve.png", "sampled_matches.png"


def spec_and_values(given: Path | None, arguments: list[str]) -> tuple[Path, list[str]]:
    """Return the spec, named by `-e` or first among the arguments, and the `key=value` arguments."""
    if given is not None:
        return given, arguments
    if not arguments or ("=" in arguments[0] and not Path(arguments[0]).exists()):
        raise typer.BadParameter("name the spec: -e SPEC.yaml")
    return Path(arguments[0]), arguments[1:]


def load(spec: Path, values: list[str], command: Command) -> Spec:
    """Return the spec; a note on standard error names the sections that are passed over."""
    from edge_agent.offline.train.spec_file import load_spec

    return load_spec(spec, values, command=command, note=lambda text: say(f"note: {text}", err=True))


@dataclass(frozen=True, slots=True)
class TaoResults:
    """Where the results of an evaluation go that TAO writes; None for what is not wanted."""

    folder: Path | None = None
    cmc: Path | None = None
    matches: Path | None = None
    depth: int = 10
    """Ranks of the curve."""
    rows: int = 10
    """Queries of the sampled matches."""
    columns: int = 10
    """Crops for each of them."""

    @staticmethod
    def of(directory: Path | None, spec: Spec | None = None) -> TaoResults:
        """Return what `--tao-results` and the spec ask for; ConfigError for a name of no picture."""
        from edge_agent.offline.tao.pictures import MOST_COLUMNS, MOST_ROWS, require_picture

        folder = None if directory is None else directory / "evaluate"
        if folder is None and spec is not None:
            folder = spec.evaluate.results_dir
        cmc, matches = (None if folder is None else folder / name for name in (_CMC, _MATCHES))
        if spec is None:
            return TaoResults(folder, cmc, matches)
        section, ranks = spec.evaluate, spec.re_ranking
        for named in (section.output_cmc_curve_plot, section.output_sampled_matches_plot):
            if named is not None:
                require_picture(named)
        return TaoResults(
            folder,
            section.output_cmc_curve_plot or cmc,
            section.output_sampled_matches_plot or matches,
            ranks.max_rank,
            min(ranks.num_query, MOST_ROWS),
            min(ranks.max_rank, MOST_COLUMNS),
        )

    @property
    def drawn(self) -> int:
        """Queries to keep for the picture of sampled matches."""
        return self.rows if self.matches is not None else 0

    @contextmanager
    def running(self) -> Iterator[StatusFile | None]:
        """Open the status file, if there is one, for the time of the evaluation.

        Before it, make the folders of the pictures, and raise an error where one cannot be written.
        """
        from edge_agent.cli.arguments import require_folders
        from edge_agent.offline.tao.pictures import make_folder
        from edge_agent.offline.tao.status import StatusFile

        for picture in (self.cmc, self.matches):
            if picture is not None:
                make_folder(picture)
        require_folders(self.cmc, self.matches)
        if self.folder is None:
            yield None
            return
        with StatusFile(self.folder, "evaluate") as status:
            yield status

    def write(self, done: Evaluation, status: StatusFile | None) -> None:
        """Write figures and pictures of an evaluation."""
        from edge_agent.offline.tao.pictures import cmc_picture, matches_picture, write_picture

        ranking = done.ranking
        if status is not None:
            ranks = {f"cmc_rank_{depth}": ranking.rank(depth) for depth in (1, 5, 10)}
            status.write("Test metrics generated.", kpi={"mAP": ranking.mean_average_precision, **ranks})
        if self.cmc is not None:
            depth = min(self.depth, len(done.sides.gallery))
            write_picture(self.cmc, cmc_picture(ranking.cmc(depth).tolist()))
        if self.matches is not None:
            write_picture(self.matches, matches_picture(done.drawn, done.sides))


def dataset_of(section: EvaluateSection) -> MarketDataset:
    """Return the crops that the section `evaluate` names; ConfigError where it names none."""
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.dataset import MarketDataset, Split

    folders = {Split.QUERY: section.query_dataset, Split.GALLERY: section.test_dataset}
    named = {split: folder for split, folder in folders.items() if folder is not None}
    if len(named) < len(folders):
        raise ConfigError(
            "evaluate.query_dataset and evaluate.test_dataset must name folders of crops, in the spec or as "
            "evaluate.query_dataset=DIR evaluate.test_dataset=DIR"
        )
    return MarketDataset.of_folders(named)


def reranking_of(spec: Spec) -> ReRanking | None:
    """Return the re-ranking of the section `re_ranking`; None where it is off."""
    from edge_agent.offline.evaluate.rerank import ReRanking

    chosen = spec.re_ranking
    return ReRanking(chosen.k1, chosen.k2, chosen.lambda_value) if chosen.re_ranking else None


@contextmanager
def network_of(section: EvaluateSection, **options: Any) -> Iterator[Network]:  # noqa: ANN401 - of `Network`
    """Give the network that `evaluate.checkpoint` names: an ONNX file, or a checkpoint of `edge-agent train`.

    A checkpoint is exported to a temporary file.
    """
    from tempfile import TemporaryDirectory

    from edge_agent.cli.arguments import require_torch
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.evaluate.embedding import Network

    if section.checkpoint is None:
        raise ConfigError(
            "evaluate.checkpoint must name a network, in the spec or as evaluate.checkpoint=FILE"
        )
    if section.checkpoint.suffix.lower() == ".onnx":
        yield Network(section.checkpoint, **options)
        return
    require_torch("evaluating a checkpoint")
    from edge_agent.offline.train.export import export_onnx

    with TemporaryDirectory() as scratch:
        exported = export_onnx(section.checkpoint, Path(scratch) / f"{section.checkpoint.stem}.onnx")
        yield Network(exported.path, **options)
