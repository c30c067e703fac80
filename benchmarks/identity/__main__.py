"""Identity quality of the whole agent: `python -m benchmarks.identity COMMAND`.

    run [--name after] [--only TEXT ...]       all situations; results into benchmarks/results/identity/
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
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPO = Path(__file__).resolve().parents[2]

if TYPE_CHECKING:
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
        if chosen.command == "run":
            return _run(chosen)
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
    run = commands.add_parser("run", help="all situations")
    run.add_argument("--name", default="after", help="of the file of results")
    run.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="cases whose name contains one of these"
    )
    run.add_argument("--networks", nargs="+", default=[], choices=("shipped", "OSNet", "0267"))
    run.add_argument("--again", action="store_true", help="also what the file has already")
    run.add_argument("--list", action="store_true")
    run.add_argument("--shared", type=Path, default=REPO.parent / "shared", help="data/ and models/")
    run.add_argument("--made", type=Path, help="rendered material; beside the kept results by default")
    run.add_argument(
        "--output", type=Path, default=REPO / "benchmarks" / "results" / "identity", metavar="DIR"
    )
    run.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    commands.add_parser("report", help="write docs/identity.md")
    clip = commands.add_parser("clip", help="a recording with MOTChallenge truth")
    clip.add_argument("--video", type=Path, required=True)
    clip.add_argument("--truth", type=Path, required=True)
    clip.add_argument("--visits", help="visits joined into people, 'a,b|c'; those of PETS09-S2L1 by default")
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


def _run(chosen: argparse.Namespace) -> int:
    import time
    import traceback

    from benchmarks.identity.cache import default_folder
    from benchmarks.identity.cases import CASES, Material, kept, trials
    from benchmarks.results import circumstances
    from edge_agent.core.manifest import write_json_atomic

    material = Material(chosen.shared, chosen.made or default_folder())
    path, failed = chosen.output / f"{chosen.name}.json", 0
    chosen.output.mkdir(parents=True, exist_ok=True)
    about = circumstances() | {"agent": _commit(chosen.agent or REPO)}
    for trial in trials(chosen.only, chosen.networks):
        if chosen.list or (trial.key in kept(path).get("results", {}) and not chosen.again):
            print(trial.key)
            continue
        began = time.perf_counter()
        try:
            result = CASES[trial.case].run(material, trial.detector, trial.network, _extra(chosen.set))
        except Exception:  # noqa: BLE001 - one case must not end the others
            failed += 1
            traceback.print_exc()
            continue
        whole = kept(path)  # another process may have added to it
        whole["about"] = about
        whole.setdefault("results", {})[trial.key] = {"agent": about["agent"], **result}
        write_json_atomic(path, whole)
        last = result["final"]
        print(
            f"{trial.key}: {result['online']['idf1']:.3f} {last['idf1']:.3f}, {last['recognised']} of"
            f" {last['reentries']}, {last['merged']} merged, {last['identities']} for {last['people']};"
            f" {time.perf_counter() - began:.0f} s", flush=True,
        )  # fmt: skip
    return int(failed > 0)


def _commit(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _network(chosen: argparse.Namespace) -> Network:
    from benchmarks.identity.running import Network

    return Network("chosen", chosen.model, chosen.preprocess)


def _extra(words: list[str]) -> dict[str, dict[str, Any]]:
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

    people = people_of(chosen.visits or PETS_VISITS)
    footage = of_file(chosen.video, chosen.truth, people, fps=chosen.fps)
    clips = variant(chosen.variant, footage, chosen.cache or default_folder())
    return run_clips(clips, chosen.detector, _network(chosen), _extra(chosen.set))


def _crops(chosen: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.identity.running import run_crops
    from benchmarks.identity.timetable import played

    play = played(
        chosen.folder, crops=chosen.crops, company=not chosen.alone, boxes=not chosen.no_boxes,
        tracks=not chosen.no_tracks, people=chosen.people, seed=chosen.seed,
    )  # fmt: skip
    return run_crops(play, _network(chosen), _extra(chosen.set))


if __name__ == "__main__":
    sys.exit(main())
