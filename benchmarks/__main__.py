"""One command for every figure: `python -m benchmarks`.

    python -m benchmarks --only goals             the first table of docs/performance.md, in 20 minutes
    python -m benchmarks [--only NAME ...]        run, and write a JSON file each into benchmarks/results
    python -m benchmarks --quick --output DIR     seconds each, to check that all of them work
    python -m benchmarks --list
    python -m benchmarks report                   write the results into docs/performance.md

Benchmarks whose material is missing are skipped; failures are reported at the end, and the rest continues.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report, results
from benchmarks.catalogue import GOALS, REPO, Benchmark, Step, catalogue
from edge_agent.core.errors import InputError

STOP_S = 10.0
"""Time between SIGTERM and SIGKILL."""


class Failed(Exception):
    """A command produced no result; the text has the reason."""


def main() -> int:
    """Run the command line; return 1 if a benchmark failed."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("action", nargs="?", choices=("run", "report"), default="run")
    options.add_argument("--quick", action="store_true", help="short runs, to check that all of them work")
    options.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these; `goals`: those of the first table"
    )
    options.add_argument("--list", action="store_true", help="show the names")
    options.add_argument("--output", type=Path, metavar="DIR", help="benchmarks/results by default")
    options.add_argument(
        "--shared", type=Path, default=Path(os.path.relpath(REPO.parent / "shared", REPO)), metavar="DIR",
        help="real material: data/vtest.avi, models/*.onnx; ../shared by default",
    )  # fmt: skip
    chosen = options.parse_args()
    os.chdir(REPO)
    if chosen.action == "report":
        return report.write(chosen.output or results.FOLDER)
    known = catalogue(chosen.shared, quick=chosen.quick)
    if GOALS in (chosen.only or ()):
        chosen.only += [benchmark.name for benchmark in known if benchmark.goal]
    if unknown := set(chosen.only or ()) - {GOALS, *(benchmark.name for benchmark in known)}:
        options.error(f"no benchmark {sorted(unknown)[0]!r}; --list has the names")
    wanted = [
        benchmark
        for benchmark in known
        if (benchmark.name in chosen.only if chosen.only else chosen.list or not benchmark.long)
    ]
    if chosen.list:
        for benchmark in wanted:
            print(f"{benchmark.name:18} {benchmark.about}")
        return 0
    if chosen.quick and chosen.output is None:
        options.error("--quick needs --output: short runs must not replace results")
    folder = chosen.output or results.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return run(wanted, folder, quick=chosen.quick)


def run(wanted: list[Benchmark], folder: Path, *, quick: bool) -> int:
    """Run the benchmarks in sequence; return 1 if a command failed."""
    outcomes: dict[str, str] = {}
    failed = False
    for number, benchmark in enumerate(wanted, 1):
        began = time.monotonic()
        print(f"[{number}/{len(wanted)}] {benchmark.name}: {benchmark.about}", flush=True)
        missing = [str(path) for path in benchmark.needs if not path.exists()]
        missing += [name for name in benchmark.modules if importlib.util.find_spec(name) is None]
        if missing:
            outcomes[benchmark.name] = f"skipped: {missing[0]} is missing"
            continue
        problems = _measure(benchmark, folder, quick=quick)
        failed |= bool(problems)
        took = f"{time.monotonic() - began:.0f} s"
        outcomes[benchmark.name] = f"failed: {'; '.join(problems)}" if problems else f"done in {took}"
    print()
    for name, outcome in outcomes.items():
        print(f"{name:18} {outcome}")
    return int(failed)


def _measure(benchmark: Benchmark, folder: Path, *, quick: bool) -> list[str]:
    """Run the steps and write their results; return the failures. Without a result the old file is kept."""
    begin = results.circumstances()
    steps: list[dict[str, Any]] = []
    problems = []
    for step in benchmark.steps:
        command = " ".join(("python -m", *step.words))
        try:
            result = _run(step)
        except Failed as failure:
            problems.append(str(failure))
            steps.append({"point": dict(step.point), "command": command, "failed": str(failure)})
            print(f"    failed: {failure}", flush=True)
        else:
            steps.append({"point": dict(step.point), "command": command, "result": result})
    if any("result" in step for step in steps):
        head = {"benchmark": benchmark.name, "about": benchmark.about, "quick": quick}
        results.write(folder, benchmark.name, {**head, **begin, "steps": steps})
    return problems


def _run(step: Step) -> Any:  # noqa: ANN401 - JSON
    """Return the result of one command.

    Raises:
        Failed: it failed, exceeded its time limit, or produced no JSON.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "result.json"
        words = [sys.executable, "-m", *step.words, *(() if step.prints else ("--output", str(file)))]
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
        with subprocess.Popen(  # noqa: S603 - our own modules
            words, cwd=REPO, env=environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                printed, errors = process.communicate(timeout=step.limit_s)
            except subprocess.TimeoutExpired:
                raise Failed(f"{step.words[0]} took more than {step.limit_s:.0f} s") from None
            finally:
                _end(process)
        if process.returncode:
            last = (errors.strip() or printed.strip()).splitlines()[-1:] or ["no output"]
            raise Failed(f"{step.words[0]} ended with {process.returncode}: {last[0]}")
        try:
            return json.loads(printed if step.prints else file.read_text(), parse_constant=_refuse)
        except (OSError, ValueError) as problem:
            raise Failed(f"{step.words[0]} produced no result: {problem}") from problem


def _refuse(word: str) -> None:
    """Refuse NaN and infinity, which are not JSON."""
    raise ValueError(f"{word} is not a result")


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate the command and its children, for example a broker."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as problem:
        sys.exit(str(problem))
