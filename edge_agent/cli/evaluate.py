"""`edge-agent evaluate`: the accuracy of a network on a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from edge_agent.cli import arguments, tao
from edge_agent.cli.compare import comparison, comparison_lines, heads, named_network, rows
from edge_agent.cli.output import print_result
from edge_agent.offline.dataset import JunkRule, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_agent.offline.dataset import MarketDataset
    from edge_agent.offline.evaluate.embedding import Network
    from edge_agent.offline.evaluate.labels import EmbeddedCrops
    from edge_agent.offline.evaluate.protocol import Evaluation
    from edge_agent.offline.evaluate.rerank import ReRanking
    from edge_agent.offline.train.spec import Spec

_SAMPLES = 8

GivenArguments = Annotated[
    list[str] | None,
    Argument(
        metavar="DATASET|KEY=VALUE",
        help="Data set in Market-1501 layout, unless --embeddings or -e names the crops; "
        "after a spec, values that replace its own.",
        show_default=False,
    ),
]


def command(
    given: GivenArguments = None,
    *,
    spec: tao.SpecOption = None,
    model: arguments.ShippedModelOption = None,
    preprocess: arguments.PreprocessOption = None,
    backend: arguments.BackendOption = "auto",
    precision: arguments.PrecisionOption = "auto",
    embeddings: Annotated[
        tuple[Path, Path] | None,
        Option(metavar="QUERY GALLERY", help="Two embedding files instead of a model."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        Option(
            metavar="A B",
            help="Two networks side by side, each FILE.onnx:PROFILE, with intervals of the differences.",
        ),
    ] = None,
    junk: Annotated[
        JunkRule, Option(help="Handling of person -1: left out, or read as 1 as TAO does.")
    ] = JunkRule.STRICT,
    rerank: Annotated[bool, Option("--rerank", help="Re-rank by k-reciprocals, 20/6/0.3.")] = False,
    remove_camera_means: Annotated[
        bool,
        Option("--remove-camera-means", help="Remove the mean of each camera's people, as the agent does."),
    ] = False,
    as_json: arguments.JsonOption = False,
    report: Annotated[
        Path | None, Option(metavar="FILE.html", help="Write a report with curves and pictures.")
    ] = None,
    output: arguments.ResultFileOption = None,
    tao_results: tao.ResultsOption = None,
) -> None:
    """Measure accuracy: rank-k, mAP and mINP, and false matches and misses by threshold."""
    from edge_agent.core.logs import configure
    from edge_agent.offline.evaluate.embedding import Network

    configure("warning")
    _refuse_contradictions(embeddings, compare, model, preprocess)
    arguments.require_folders(report, output)
    reranking, wanted = _reranking() if rerank else None, tao.TaoResults.of(tao_results)
    how = _Options(junk, reranking, remove_camera_means, as_json, report, output, wanted)
    if spec is not None:
        _refuse_with_spec(embeddings=embeddings, compare=compare, model=model, rerank=rerank or None)
        engine = {"preprocess": preprocess, "backend": backend, "precision": precision}
        _evaluate_spec(tao.load(spec, given or [], "evaluate"), tao_results, engine, how)
        return
    opened = _opened(given or [])
    if embeddings is not None:
        _evaluate(lambda: _from_files(embeddings, opened), opened, how)
    elif opened is None:
        raise typer.BadParameter("name a data set, two files with --embeddings, or a spec with -e")
    elif compare is not None:
        _compare(opened, [named_network(one, backend, precision) for one in compare], how)
    else:
        _evaluate(lambda: _from_model(opened, Network(model, preprocess, backend, precision)), opened, how)


def _evaluate_spec(plan: Spec, results: Path | None, engine: dict[str, str | None], how: _Options) -> None:
    """Evaluate the network and the crops that the sections `evaluate` and `re_ranking` of a spec name."""
    wanted = tao.TaoResults.of(results, plan)
    opened = tao.dataset_of(plan.evaluate)
    how = replace(how, reranking=tao.reranking_of(plan), tao=wanted)
    with tao.network_of(plan.evaluate, **engine) as network:
        _evaluate(lambda: _from_model(opened, network), opened, how)


def _opened(given: list[str]) -> MarketDataset | None:
    """The data set among the arguments; None where they name none."""
    from edge_agent.offline.dataset import MarketDataset

    if len(given) > 1:
        raise typer.BadParameter(f"one data set is evaluated, not {len(given)}; KEY=VALUE needs -e SPEC.yaml")
    return MarketDataset.open(Path(given[0]), (Split.QUERY, Split.GALLERY)) if given else None


def _refuse_with_spec(**options: object) -> None:
    named = ", ".join(f"--{name}" for name, value in options.items() if value is not None)
    if named:
        raise typer.BadParameter(
            f"{named} cannot be given with -e: the spec names what is evaluated, and how"
        )


def _reranking() -> ReRanking:
    from edge_agent.offline.evaluate.rerank import ReRanking

    return ReRanking()


@dataclass(frozen=True, slots=True)
class _Options:
    """How to evaluate, and where the result goes."""

    junk: JunkRule
    reranking: ReRanking | None
    without_means: bool
    as_json: bool
    report: Path | None
    output: Path | None
    tao: tao.TaoResults

    def prepared(
        self, embedded: tuple[EmbeddedCrops, EmbeddedCrops, dict[str, Any]]
    ) -> tuple[EmbeddedCrops, EmbeddedCrops, dict[str, Any]]:
        """The embeddings to compare, and the facts about them."""
        from edge_agent.offline.evaluate.cameras import sides_without_camera_means

        query, gallery, facts = embedded
        if self.without_means:
            query, gallery = sides_without_camera_means(query, gallery)
        return query, gallery, {**facts, "camera_means": "removed" if self.without_means else "kept"}

    def print(
        self, document: dict[str, Any], lines: Callable[[], list[str]], report: Callable[[], bytes]
    ) -> None:
        """Write the requested files, and print the document or its text."""
        from edge_agent.core.manifest import write_atomic, write_json_atomic

        if self.output is not None:
            write_json_atomic(self.output, document)
        if self.report is not None:
            write_atomic(self.report, report())
        print_result(document, lines, as_json=self.as_json)


def _refuse_contradictions(
    embeddings: tuple[Path, Path] | None,
    compare: tuple[str, str] | None,
    model: Path | None,
    preprocess: str | None,
) -> None:
    if (embeddings or compare) is not None and (model is not None or preprocess is not None):
        raise typer.BadParameter("--model and --preprocess have no effect with --embeddings or --compare")
    if embeddings is not None and compare is not None:
        raise typer.BadParameter("--embeddings and --compare exclude each other")


def _evaluate(
    embedded: Callable[[], tuple[EmbeddedCrops, EmbeddedCrops, dict[str, Any]]],
    dataset: MarketDataset | None,
    how: _Options,
) -> None:
    """Evaluate one network, whose rows `embedded` computes, and print its figures."""
    from edge_agent.offline.evaluate.protocol import evaluate
    from edge_agent.offline.evaluate.report import html_report

    samples = _SAMPLES if how.report is not None else 0
    with how.tao.running() as status:
        query, gallery, facts = how.prepared(embedded())
        done = evaluate(
            query,
            gallery,
            junk_rule=how.junk,
            reranking=how.reranking,
            samples=samples,
            drawn=how.tao.drawn,
            depth=how.tao.columns,
        )
        document = _document(done, facts, dataset) | _as_the_agent_compares(done, how)
        how.print(
            document,
            lambda: _summary(done, document),
            lambda: html_report(done, document, title=_title(document)),
        )
        how.tao.write(done, status)


def _as_the_agent_compares(done: Evaluation, how: _Options) -> dict[str, Any]:
    """Return the figures without the means of cameras, beside those with them."""
    from edge_agent.offline.evaluate.cameras import sides_without_camera_means
    from edge_agent.offline.evaluate.metrics import rank

    sides = done.sides
    ranking = None if how.without_means else rank(*sides_without_camera_means(sides.query, sides.gallery))
    if ranking is None:
        return {"camera_means_removed": None}
    figures = {f"rank{k}": ranking.rank(k) for k in (1, 5, 10)}
    return {"camera_means_removed": figures | {"mAP": ranking.mean_average_precision}}


def _compare(dataset: MarketDataset, networks: Sequence[Network], how: _Options) -> None:
    """Evaluate two networks on the same pictures and print them side by side."""
    if how.tao.folder is not None:
        raise typer.BadParameter("--tao-results holds the results of one network: leave out --compare")
    from edge_agent.offline.evaluate.compare import differences
    from edge_agent.offline.evaluate.protocol import evaluate
    from edge_agent.offline.evaluate.report import compared_report

    for network in networks:
        network.check()
    evaluations, documents = [], []
    for network in networks:
        query, gallery, facts = how.prepared(_from_model(dataset, network))
        evaluations.append(evaluate(query, gallery, junk_rule=how.junk, reranking=how.reranking))
        documents.append(_document(evaluations[-1], facts, dataset))
    document = comparison(differences(evaluations[0], evaluations[1]), documents)
    title = f"Two networks on {dataset.root.name}"
    how.print(
        document,
        lambda: comparison_lines(document),
        lambda: compared_report(evaluations, document, heads(document), rows(document), title=title),
    )


def _document(done: Evaluation, facts: dict[str, Any], dataset: MarketDataset | None) -> dict[str, Any]:
    from edge_agent.core.files import shown

    about = None
    if dataset is not None:
        problems = [{"path": shown(one.path), "reason": one.reason} for one in dataset.problems]
        about = {"root": str(dataset.root), "left_out": len(problems), "problems": problems}
    return {**done.document(), "dataset": about, **facts, "versions": _versions()}


def _from_files(
    paths: tuple[Path, Path], dataset: MarketDataset | None
) -> tuple[EmbeddedCrops, EmbeddedCrops, dict[str, Any]]:
    from edge_agent.offline.evaluate.files import (
        labelled_by_dataset,
        labelled_by_name,
        read_embeddings,
        require_one_space,
    )

    query, gallery = (read_embeddings(path) for path in paths)
    require_one_space([query, gallery])
    facts = {"model": query.about or None, "embeddings": [str(path) for path in paths], "unreadable": []}
    if dataset is None:
        return labelled_by_name(query, Split.QUERY), labelled_by_name(gallery, Split.GALLERY), facts
    crops = dataset.split(Split.QUERY), dataset.split(Split.GALLERY)
    return labelled_by_dataset(query, crops[0]), labelled_by_dataset(gallery, crops[1]), facts


def _from_model(
    dataset: MarketDataset, network: Network
) -> tuple[EmbeddedCrops, EmbeddedCrops, dict[str, Any]]:
    from edge_agent.cli.embed import with_progress
    from edge_agent.core.files import shown
    from edge_agent.offline.evaluate.embedding import labelled

    with network.open() as (embedder, description):
        sides = {"queries": dataset.split(Split.QUERY), "gallery": dataset.split(Split.GALLERY)}
        done = [with_progress(embedder, [one.path for one in crops], name) for name, crops in sides.items()]
    query, gallery = (labelled(side, crops) for side, crops in zip(done, sides.values(), strict=True))
    problems = [problem for side in done for problem in side.problems]
    unreadable = [{"path": shown(problem.path), "reason": problem.reason} for problem in problems]
    return query, gallery, {"model": description, "embeddings": None, "unreadable": unreadable}


def _versions() -> dict[str, str]:
    import platform

    import cv2
    import numpy as np
    import onnxruntime

    import edge_agent

    modules = {"edge-agent": edge_agent, "numpy": np, "opencv": cv2, "onnxruntime": onnxruntime}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    return {"python": platform.python_version(), **versions}


def _title(document: dict[str, Any]) -> str:
    model = document["model"] or {}
    name = model.get("name", "embeddings")
    if "preprocess" in model:
        name = f"{name} (profile {model['preprocess']})"
    where = Path(document["dataset"]["root"]).name if document["dataset"] else "given files"
    return f"Evaluation of {name} on {where}"


def _removed_line(figures: dict[str, float] | None) -> list[str]:
    if figures is None:
        return []
    shares = "  ".join(f"{key} {100 * value:.1f} %" for key, value in figures.items())
    return [f"  camera means removed, as the agent compares: {shares}"]


def _summary(evaluation: Evaluation, document: dict[str, Any]) -> list[str]:
    from edge_agent.offline.evaluate.openset import OperatingPoint

    keys = ("rank1", "rank5", "rank10", "mAP", "mINP")
    shares = "  ".join(f"{key} {100 * document[key]:.1f} %" for key in keys)
    lines = [
        _title(document),
        f"  {document['queries_evaluated']} of {document['queries'] + document['queries_dropped']} queries "
        f"ranked against "
        f"{document['gallery']} gallery crops; junk rule {document['junk_rule']}, "
        f"re-ranking {document['reranking'] or 'off'}, camera means {document['camera_means']}",
        f"  {shares}",
        *_removed_line(document["camera_means_removed"]),
        f"  pairs across cameras: {document['genuine_pairs']} of one person, "
        f"{document['impostor_pairs']} of different people",
    ]
    if document["eer"] is not None:
        lines.append(f"  EER {100 * document['eer']:.2f} % at cosine {document['eer_threshold']:.4f}")
    for point in evaluation.points:
        if not isinstance(point, OperatingPoint):
            lines.append(f"  FMR {point.target_fmr:g}: {point.reason}")
            continue
        missed = "no genuine pairs"
        if point.fnmr is not None and point.fnmr_ci is not None:
            low, high = point.fnmr_ci
            missed = f"FNMR {100 * point.fnmr:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"  FMR {point.target_fmr:g}: cosine {point.threshold:.4f}, {missed}")
    lines += [f"  warning: {note}" for note in document["notes"]]
    if document["dataset"] and document["dataset"]["problems"]:
        lines.append(
            f"  left out since unusable: {len(document['dataset']['problems'])} files, such as misnamed "
            "ones (--json lists them)"
        )
    if document["unreadable"]:
        lines.append(f"  left out since unreadable: {len(document['unreadable'])} crops (--json lists them)")
    return lines
