"""The backend `triton` beside ONNX Runtime in this process, and beside a plain tritonclient on its server.

    python -m benchmarks.triton --model osnet.onnx --preprocess imagenet --pictures pets_market
        --video vtest.avi --detector yolox:yolox_nano.onnx --output result.json

The server is a real Triton 2.51 on this machine (`tests/kserve/environment.py` makes its environment), which
serves an exported repository on the CPU by ONNX Runtime, as in-process. Rates have two batches in flight. The
plain client sends the same pixels, with two requests in flight, and takes the rows. The video runs through
the whole agent, once with each backend.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.slices import in_turn
from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.logs import configure
from edge_agent.core.manifest import write_json_atomic
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import open_embedder
from edge_agent.engine.base import DEPTH
from edge_agent.engine.golden import least_cosine
from edge_agent.offline.dataset import MarketDataset
from edge_agent.offline.evaluate.embedding import embed_paths
from tests.kserve import environment

BATCHES = (1, 8, 16, 64)
ONE_OVER = 64
"""Pictures of one slice of a measurement, at least."""


@dataclass(frozen=True)
class Chosen:
    """The network, as the settings name it."""

    model: Path
    preprocess: str
    state: Path

    def open(self, backend: str, batch: int = 64, **more: str) -> Embedder:
        """Return the network on a backend; not yet entered."""
        named = {"model": self.model, "preprocess": self.preprocess, "max_batch": batch}
        settings = EngineSettings.model_validate({"backend": backend, **named, **more})
        return open_embedder(settings, QualitySettings(), self.state)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--preprocess", default="tao")
    options.add_argument("--pictures", type=Path, help="data set in Market-1501 layout")
    options.add_argument("--video", type=Path, help="video for the whole agent")
    options.add_argument("--detector", default="hog")
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--output", type=Path, required=True)
    given = options.parse_args()
    configure("warning")
    with TemporaryDirectory() as folder, _server(given, Path(folder)) as server:
        chosen, backend = (
            Chosen(given.model, given.preprocess, Path(folder)),
            server.backend("reidentification"),
        )
        result: dict[str, Any] = {"speed": [_speed(chosen, server, size, given.rounds) for size in BATCHES]}
        if given.pictures is not None:
            result["pictures"] = _agreement(chosen, backend, given.pictures)
        if given.video is not None:
            result["video"] = _video(given, Path(folder), backend)
    write_json_atomic(given.output, result)


@contextmanager
def _server(given: argparse.Namespace, folder: Path) -> Iterator[environment.Server]:
    network = given.model, "--preprocess", given.preprocess, "--backend", "onnxruntime"
    _agent("export", *network, "--triton", folder / "models", "--state", folder / "state")
    server = environment.triton(folder / "models", folder)
    with environment.running(server):
        yield server


def _agent(*words: object, **variables: str) -> None:
    subprocess.run(  # noqa: S603 - this package
        [sys.executable, "-m", "edge_agent", *map(str, words)],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, **variables},
    )  # fmt: skip


def _speed(chosen: Chosen, server: environment.Server, size: int, rounds: int) -> dict[str, Any]:
    """Measure one batch size: all alternatives in turn."""
    crops = np.random.default_rng(0).integers(0, 256, (size, 256, 128, 3), np.uint8)
    backend, batches = server.backend("reidentification"), max(4, ONE_OVER // size)
    with ExitStack() as stack:
        engines = {
            "in-process": chosen.open("onnxruntime", size),
            "triton": chosen.open(backend, size),
            "triton, no shared memory": chosen.open(backend, size, triton_shared_memory="off"),
        }
        calls = {name: _engine(stack.enter_context(one), crops) for name, one in engines.items()}
        calls["tritonclient"] = _plain(server, crops)
        rate = in_turn({name: _bound(call, batches) for name, call in calls.items()}, rounds)
        single = in_turn({name: _bound(call, 1) for name, call in calls.items()}, rounds)
    row: dict[str, Any] = {"batch": size}
    for name in calls:
        row[f"{name}, crops/s"] = round(batches * size / rate[name].wall, 1)
    for name in calls:
        row[f"{name}, ms"] = round(1e3 * single[name].wall, 1)
    row["over tritonclient"] = round(rate["tritonclient"].wall_over(rate["triton"]), 3)
    row["over in-process"] = round(rate["in-process"].wall_over(rate["triton"]), 3)
    return row


def _bound(call: Callable[[int], object], batches: int) -> Callable[[], object]:
    return lambda: call(batches)


def _engine(embedder: Embedder, crops: NDArray[np.uint8]) -> Callable[[int], object]:
    """Return a function that runs a number of batches, two in flight; each is filled, as packing does."""
    engine = embedder.engine

    def run(batches: int) -> None:
        for _ in range(batches):
            if engine.in_flight == DEPTH:
                engine.collect()
            engine.buffer()[:] = crops
            engine.submit(len(crops))
        while engine.in_flight:
            engine.collect()

    return run


def _plain(server: environment.Server, crops: NDArray[np.uint8]) -> Callable[[int], object]:
    """Return the same with tritonclient as in its examples."""
    import tritonclient.grpc as client

    connection = client.InferenceServerClient(f"127.0.0.1:{server.port}")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answered(result: Any, error: Exception | None) -> None:  # noqa: ANN401
        answers.put(error or result)

    def take() -> None:
        answer = answers.get(timeout=30)
        if isinstance(answer, Exception):
            raise answer
        answer.as_numpy("embedding")

    def run(batches: int) -> None:
        flying = 0
        for _ in range(batches):
            if flying == DEPTH:
                take()
                flying -= 1
            pixels = client.InferInput("crops", list(crops.shape), "UINT8")
            pixels.set_data_from_numpy(crops)
            connection.async_infer("reidentification", [pixels], answered)
            flying += 1
        for _ in range(flying):
            take()

    return run


def _agreement(chosen: Chosen, backend: str, pictures: Path) -> dict[str, Any]:
    """Compare the embeddings of all pictures of a data set."""
    dataset = MarketDataset.open(pictures)
    paths = [crop.path for crops in dataset.splits.values() for crop in crops]
    found = []
    for name in ("onnxruntime", backend):
        with chosen.open(name) as embedder:
            found.append(embed_paths(embedder, paths).vectors)
    return {"pictures": len(found[0]), "least cosine": round(least_cosine(*found), 9)}


def _video(given: argparse.Namespace, folder: Path, backend: str) -> dict[str, Any]:
    """Run the agent on a video with each backend, and compare all that it decides."""
    runs = []
    for name, engine in (("here", "onnxruntime"), ("there", backend)):
        mot, events = folder / f"{name}.txt", folder / f"{name}.jsonl"
        _agent(
            "run", "--source", given.video, "--detector", given.detector, "--model", given.model,
            "--preprocess", given.preprocess, "--state", folder / name, "--broker", "none",
            "--mot-final", mot, "--events", events, EDGE_AGENT__ENGINE__BACKEND=engine,
        )  # fmt: skip
        runs.append((mot.read_text().splitlines(), list(_decisions(events))))
    (rows, decisions), (other_rows, other_decisions) = runs
    return {
        "rows of MOT": len(rows),
        "equal rows of MOT": sum(a == b for a, b in zip(rows, other_rows, strict=False)),
        "identities": len({row.split(",")[1] for row in rows}),
        "decisions": len(decisions),
        "equal decisions": sum(a == b for a, b in zip(decisions, other_decisions, strict=False)),
        "same": rows == other_rows and decisions == other_decisions,
    }


def _decisions(events: Path) -> Iterator[tuple[object, ...]]:
    """Yield kind, camera, track, number of the person and rounded score of each decision, in order."""
    for line in events.read_text().splitlines():
        event = json.loads(line)
        data = event["data"]
        if ".identity." in event["type"]:
            score = data.get("score")
            keys = ("camera", "track_id", "number", "frame")
            yield (event["type"], *(data.get(key) for key in keys), score and round(score, 3))


if __name__ == "__main__":
    main()
