"""Commands that keep their results in a file, which may be continued."""

from __future__ import annotations

import argparse
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.identity import ceilings as of_embeddings
from benchmarks.identity import levers as single
from benchmarks.identity import rivals as others
from benchmarks.identity.cache import default_folder
from benchmarks.identity.cases import CASES, OMZ, OSNET, SHIPPED, YOLOX, Material, Trial, kept, trials
from benchmarks.results import circumstances
from edge_agent.core.manifest import write_json_atomic

REPO = Path(__file__).resolve().parents[2]
Step = tuple[str, Callable[[], dict[str, Any]]]
"""A key, and how its result is computed."""


def _keep(chosen: argparse.Namespace, steps: Iterable[Step], line: Callable[[dict[str, Any]], str]) -> int:
    """Compute what the file of results lacks, and write it after each step; 1 where one failed."""
    path, failed = chosen.output / f"{chosen.name}.json", 0
    chosen.output.mkdir(parents=True, exist_ok=True)
    about = circumstances() | {"agent": _commit(chosen.agent or REPO)}
    for key, compute in steps:
        if chosen.list or (key in kept(path).get("results", {}) and not chosen.again):
            print(key)
            continue
        began = time.perf_counter()
        try:
            result = compute()
        except Exception:  # noqa: BLE001 - one must not end the others
            failed += 1
            traceback.print_exc()
            continue
        whole = kept(path)  # another process may have added to it
        whole["about"] = about
        whole.setdefault("results", {})[key] = result
        write_json_atomic(path, whole)
        print(f"{key}: {line(result)}; {time.perf_counter() - began:.0f} s", flush=True)
    return int(failed > 0)


def _commit(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _material(chosen: argparse.Namespace) -> Material:
    return Material(chosen.shared, chosen.made or default_folder())


def _figures(result: dict[str, Any]) -> str:
    last = result["final"]
    return (
        f"{result['online']['idf1']:.3f} {last['idf1']:.3f}, {last['recognised']} of {last['reentries']},"
        f" {last['merged']} merged, {last['identities']} for {last['people']}"
    )


def run(chosen: argparse.Namespace) -> int:
    """Run the agent in all situations."""
    from benchmarks.identity.__main__ import extra_settings

    material, extra = _material(chosen), extra_settings(chosen.set)

    def step(trial: Trial) -> Step:
        return trial.key, lambda: CASES[trial.case].run(material, trial.detector, trial.network, extra)

    return _keep(chosen, map(step, trials(chosen.only, chosen.networks)), _figures)


def ceilings(chosen: argparse.Namespace) -> int:
    """Compare the embeddings of each set by fixed thresholds."""
    material = _material(chosen)
    cases = ("70 people, 3 cameras", "300 people, 3 cameras", "visits of vtest.avi as crops")

    def step(trial: Trial) -> Step:
        case = CASES[trial.case]
        return trial.key, lambda: of_embeddings.of_set(case.play(material), material.network(trial.network))

    wanted = (trial for trial in trials(chosen.only, chosen.networks) if trial.case in cases)
    return _keep(chosen, map(step, wanted), lambda found: str(found["less camera means"]["recognised"]))


def levers(chosen: argparse.Namespace) -> int:
    """Run the agent with all changes, with none, with each alone, and with all but each."""
    material = _material(chosen)

    def step(trial: Trial) -> Step:
        def compute() -> dict[str, Any]:
            return single.each(CASES[trial.case], material, trial.detector, trial.network)

        return trial.key, compute

    wanted = (
        Trial(case, next(iter(CASES[case].tried)), network)
        for case in single.SITUATIONS
        for network in (SHIPPED, OMZ)
        if (not chosen.only or any(word in case for word in chosen.only))
        and (not chosen.networks or network in chosen.networks)
    )
    return _keep(chosen, map(step, wanted), ", ".join)


def rivals(chosen: argparse.Namespace) -> int:
    """Run other projects on the detections and embeddings of the real clip."""
    material = _material(chosen)
    clip = CASES["vtest.avi, plain"].clips(material)[0]
    seen = others.seen(clip, material.detector(YOLOX), material.network(OSNET))

    def step(name: str) -> Step:
        return name, lambda: others.scored(name, clip, seen)

    return _keep(chosen, map(step, others.RIVALS), str)
