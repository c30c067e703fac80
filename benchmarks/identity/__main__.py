"""Identity quality of the whole agent: `python -m benchmarks.identity COMMAND`.

    run [--name after] [--only TEXT ...]       all situations; results into benchmarks/results/identity/
    ceilings, levers, rivals [--only TEXT ...] references, single changes, other projects; likewise
    report                                     write the results into docs/identity.md
    clip --video V --truth T --detector D      one recording with MOTChallenge truth
    crops SET [--alone] [--no-boxes] [--no-tracks]   one set in Market-1501 layout, as a site
    set FOLDER --people N                      render such a set

Results of networks are kept on disk by the content of their input (`--fresh`: compute them, to measure
time). The match threshold is what the agent chooses; `--set SECTION.KEY=VALUE` changes a setting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[2]

MEASURES = {
    "run": "all situations",
    "ceilings": "what the embeddings of the sets allow",
    "levers": "each change alone, and all without it",
    "rivals": "other projects on the same detections",
}
"""Commands that keep their results."""

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.identity.running import Network


def main() -> int:
    """Run the command line."""
    options = _options()
    chosen = options.parse_args()
    if chosen.agent is not None:  # before anything of it is imported
        sys.path.insert(0, str(chosen.agent.resolve()))
        os.environ["PYTHONPATH"] = str(chosen.agent.resolve())
    if chosen.command == "set":
        from benchmarks.identity.sets import render_set

        render_set(chosen.folder, people=chosen.people, crops=chosen.crops, seed=chosen.seed)
        return 0
    if chosen.command == "report":
        from benchmarks.identity.page import write_page

        write_page()
        return 0
    from edge_agent.cli.service import one_blas_thread
    from edge_agent.core.logs import configure

    one_blas_thread()
    configure("warning")
    with ExitStack() as stack:
        if not chosen.fresh:
            from benchmarks.identity.cache import cached

            stack.enter_context(cached(chosen.cache))
        if chosen.command in MEASURES:
            from benchmarks.identity import measuring

            measure: Callable[[argparse.Namespace], int] = getattr(measuring, chosen.command)
            return measure(chosen)
        result = _clip(chosen) if chosen.command == "clip" else _crops(chosen)
    print(json.dumps(result, indent=2))
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.identity",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    options.add_argument(
        "--agent", type=Path, metavar="CHECKOUT", help="measure the edge_agent of another checkout"
    )
    options.add_argument("--cache", type=Path, metavar="DIR", help="where results of networks are kept")
    options.add_argument("--fresh", action="store_true", help="compute all networks")
    commands = options.add_subparsers(dest="command", required=True)
    for name, about in MEASURES.items():
        step = commands.add_parser(name, help=about)
        step.add_argument("--name", default="after" if name == "run" else name, help="of the file of results")
        step.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cases by a part of a name")
        step.add_argument("--networks", nargs="+", default=[], choices=("shipped", "OSNet", "0267"))
        step.add_argument("--again", action="store_true", help="also what the file has already")
        step.add_argument("--list", action="store_true")
        step.add_argument("--shared", type=Path, default=REPO.parent / "shared", help="data/ and models/")
        step.add_argument("--made", type=Path, help="rendered material; beside the kept results by default")
        step.add_argument("--output", type=Path, default=REPO / "benchmarks/results/identity", metavar="DIR")
        step.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    commands.add_parser("report", help="write docs/identity.md")
    clip = commands.add_parser("clip", help="a recording with MOTChallenge truth")
    clip.add_argument("--video", type=Path, required=True)
    clip.add_argument("--truth", type=Path, required=True)
    clip.add_argument(
        "--visits", help="visits joined into people, 'a,b|c', or 'none'; those of PETS09-S2L1 by default"
    )
    clip.add_argument("--fps", type=float)
    clip.add_argument("--variant", default="plain", help="mirrored, 'half size', ...: see footage.py")
    clip.add_argument("--detector", default="hog")
    crops = commands.add_parser("crops", help="a set in Market-1501 layout, played by a timetable")
    crops.add_argument("folder", type=Path, metavar="SET")
    crops.add_argument("--alone", action="store_true", help="people one at a time")
    crops.add_argument("--no-boxes", action="store_true", help="no boxes in the JSON files")
    crops.add_argument("--no-tracks", action="store_true", help="no track ids in the JSON files")
    crops.add_argument("--people", type=int)
    crops.add_argument("--crops", type=int, default=12, help="of a visit")
    crops.add_argument("--seed", type=int, default=0, help="of the timetable")
    for parser in (clip, crops):
        parser.add_argument("--model", type=Path, help="the shipped network by default")
        parser.add_argument("--preprocess")
        parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    rendered = commands.add_parser("set", help="render people on three cameras")
    rendered.add_argument("folder", type=Path)
    rendered.add_argument("--people", type=int, default=70)
    rendered.add_argument("--crops", type=int, default=10)
    rendered.add_argument("--seed", type=int, default=0)
    return options


def _network(chosen: argparse.Namespace) -> Network:
    from benchmarks.identity.running import Network

    return Network("chosen", chosen.model, chosen.preprocess)


def extra_settings(words: list[str]) -> dict[str, dict[str, Any]]:
    """Return settings written as `section.key=value`, nested."""
    extra: dict[str, dict[str, Any]] = {}
    for word in words:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        try:
            extra.setdefault(section, {})[name] = json.loads(value)
        except ValueError:
            extra.setdefault(section, {})[name] = value
    return extra


def _clip(chosen: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.identity.cache import default_folder
    from benchmarks.identity.footage import of_file, variant
    from benchmarks.identity.running import run_clips
    from benchmarks.scoring import PETS_VISITS, people_of

    people = None if chosen.visits == "none" else people_of(chosen.visits or PETS_VISITS)
    footage = of_file(chosen.video, chosen.truth, people, fps=chosen.fps)
    clips = variant(chosen.variant, footage, chosen.cache or default_folder())
    return run_clips(clips, chosen.detector, _network(chosen), extra_settings(chosen.set))


def _crops(chosen: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.identity.running import run_crops
    from benchmarks.identity.timetable import played

    play = played(
        chosen.folder, crops=chosen.crops, company=not chosen.alone, boxes=not chosen.no_boxes,
        tracks=not chosen.no_tracks, people=chosen.people, seed=chosen.seed,
    )  # fmt: skip
    return run_crops(play, _network(chosen), extra_settings(chosen.set))


def _safely() -> int:
    """Report what is wrong with the input in one line."""
    try:
        return main()
    except Exception as problem:
        from edge_agent.core.errors import EdgeAgentError

        if not isinstance(problem, EdgeAgentError):
            raise
        print(f"python -m benchmarks.identity: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(_safely())
