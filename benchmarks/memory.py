"""Memory of the agent: per camera, per track, per identity, and over time.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.memory [--cameras 8] [--output memory.json]
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.memory --soak 3600 [--output soak.json]

*Per camera*: the whole agent with one and with more 1080p cameras, each frame in memory of its own, as a
decoder makes it; the peak of the resident memory of all its processes. *Per track*: what Python and numpy
allocate for a tracker and an identifier with people in view (`tracemalloc`). *Per identity*: the resident
memory of an open gallery. Each is the difference of two sizes, over the difference of the sizes.

*Soak*: the whole agent for a time. New people walk past all the time, so tracks begin and end, and a full
gallery enrols and evicts. Memory, open files, threads and file sizes are sampled; the slope is that of a line
through the last quarter, when everything that is bounded has reached its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.agent.daemon import Agent
from edge_agent.agent.stages import Supply
from edge_agent.core.config import Settings
from edge_agent.core.loading import load, state_folder
from edge_agent.core.logs import configure
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.structures import Detections, Embedded, Frame, ScoreLevels
from edge_agent.detect.opening import Detection
from edge_agent.detect.search import one_by_one
from edge_agent.engine import open_simulated
from edge_agent.gallery.gallery import open_gallery
from edge_agent.identify import Identifier
from edge_agent.offline.bench.arrivals import Arrivals
from edge_agent.offline.bench.environment import fill_gallery, open_broker
from edge_agent.offline.bench.load import given_detections
from edge_agent.track.tracker import Tracker

Result = TypeVar("Result")

ENGINE = "simulated:orin-fp16"
CROSSING_S = 8.0
"""Time for which a person is in view."""
RUN_S = 6.0
"""Length of a run for its peak."""
EXEMPLARS = 4
MEGABYTE = 1e6
_LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.5)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--soak", type=float, metavar="SECONDS", help="a long run instead")
    options.add_argument("--cameras", type=int, help="8; of a soak 4")
    options.add_argument("--people", type=int, default=4, help="in view of each camera")
    options.add_argument("--identities", type=int, help="people in the gallery; 10000, of a soak 2000")
    options.add_argument("--output", type=Path, help="write the result as JSON")
    chosen = options.parse_args()
    if chosen.soak is not None:
        load_ = Load(chosen.cameras or 4, chosen.people, (640, 360), 10.0, chosen.identities or 2000)
        result = soak(load_, chosen.soak)
        print(soak_markdown(result))
    else:
        result = parts(chosen.cameras or 8, chosen.people, chosen.identities or 10_000)
        print(markdown(result))
    if chosen.output is not None:
        write_json_atomic(chosen.output, result)


# --- cameras ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Cameras, people in view of each, `(width, height)`, frames per second, people in the gallery."""

    cameras: int
    people: int
    size: tuple[int, int]
    fps: float
    identities: int


class Passers:
    """A live camera that new people pass all the time; an `edge_agent.source.base.Source`."""

    live = True
    ends = True
    stall_seconds = None

    def __init__(self, number: int, load_: Load, over: threading.Event) -> None:
        self.id = f"cam{number}"
        self._load = load_
        self._over = over
        self._random = np.random.default_rng(number)
        width, height = load_.size
        self._background = self._random.integers(70, 140, (height, width, 3), np.uint8)
        self._rows = max(1, -(-load_.people // 12))
        self._tall = int(min(0.25 * height, 0.9 * height / self._rows))
        self._laps = [-1] * load_.people
        self._pictures: list[NDArray[np.uint8]] = [self._background[:1, :1]] * load_.people

    def frames(self) -> Generator[Frame | None, None, None]:
        """Yield frames when they are due, each a copy of its own."""
        number, begin = 0, time.monotonic()
        while not self._over.is_set():
            number += 1
            left = begin + number / self._load.fps - time.monotonic()
            if left > 0:
                time.sleep(left)
            elif left < -1 / self._load.fps:
                number += int(-left * self._load.fps)
            image = self._background.copy()
            boxes = np.array([self._draw(image, who, number) for who in range(self._load.people)], np.float32)
            boxes += self._random.normal(0, 0.015 * self._tall, boxes.shape).astype(np.float32)
            found = Detections(boxes, np.full(len(boxes), 0.9, np.float32))
            yield Frame(self.id, number, time.time(), image, found)

    def _draw(self, image: NDArray[np.uint8], who: int, number: int) -> tuple[int, int, int, int]:
        """Draw a person at its place, a new one at each crossing; return the box."""
        high, wide = self._tall, int(0.42 * self._tall)
        in_row = -(-self._load.people // self._rows)
        lap, along = divmod(number / self._load.fps / CROSSING_S + (who // self._rows) / in_row, 1.0)
        if self._laps[who] != lap:
            self._laps[who] = int(lap)
            colours = self._random.integers(0, 256, (8, 4, 3), np.uint8)
            self._pictures[who] = cv2.resize(colours, (wide, high), interpolation=cv2.INTER_LINEAR)
        left = int(along * (image.shape[1] - wide))
        top = int((who % self._rows) * image.shape[0] / self._rows) + 2
        image[top : top + high, left : left + wide] = self._pictures[who]
        return left, top, left + wide, top + high


@contextlib.contextmanager
def running(load_: Load, folder: Path, broker: str) -> Iterator[Agent]:
    """Run the whole agent with these cameras; its gallery is filled already."""
    over, stop = threading.Event(), threading.Event()
    cameras = [Passers(number, load_, over) for number in range(load_.cameras)]
    settings = settings_of(load_, folder, broker)
    agent = Agent(settings)
    agent.supply = Supply(
        cameras, Detection(one_by_one(given_detections), lambda _: _LEVELS, "given", lambda: 0.0)
    )
    run = threading.Thread(target=agent.run, args=(stop,), name="pipeline")
    with Arrivals(BrokerSettings.of(settings.mqtt)):
        run.start()  # with a subscriber, or the outbox would keep its events
        agent.opened.wait()
        try:
            yield agent
        finally:
            over.set()
            stop.set()
            run.join()


def settings_of(load_: Load, folder: Path, broker: str) -> Settings:
    """Return the settings of a run; its gallery is full, so that each new person displaces one."""
    settings = load(
        None,
        {
            "sources": [{"id": f"cam{n}", "url": f"memory:{n}"} for n in range(load_.cameras)],
            "engine": {"backend": ENGINE, "max_batch": 64},
            "mqtt": {"broker": broker, "site": "memory", "device": "memory"},
            "gallery": {"capacity": max(1, load_.identities)},
        },
    )
    return settings.model_copy(update={"state_dir": folder / "state"})


def fill(load_: Load, folder: Path) -> None:
    """Fill the gallery of a run."""
    configure("error")
    own = settings_of(load_, folder, "mqtt://127.0.0.1:1883")
    state_folder(own.state_dir)
    fill_gallery(own, open_simulated(ENGINE, max_batch=64).info, load_.identities, EXEMPLARS)


# --- readings -----------------------------------------------------------------------------------


def processes() -> list[int]:
    """Return this process and those that it started, except brokers."""
    own, found = os.getpid(), [os.getpid()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, fields = (entry / "stat").read_text().rpartition(")")[::2]
                if int(fields.split()[1]) == own and "mosquitto" not in name:
                    found.append(int(entry.name))
    return found


def status(pid: int, name: str) -> int:
    """Return a line of `/proc/PID/status` in bytes, or as a number."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            words = line.split()
            return int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return 0


def total(name: str) -> int:
    """Return the sum of a line of `/proc/PID/status` over the agent's processes."""
    found = 0
    for pid in processes():
        with contextlib.suppress(OSError):
            found += status(pid, name)
    return found


# --- parts --------------------------------------------------------------------------------------


def parts(cameras: int, people: int, identities: int) -> dict[str, Any]:
    """Return bytes per camera, track and identity, and the peak of the whole agent."""
    few, many = (Load(count, 2, (1920, 1080), 15.0, 1000) for count in (1, 1 + cameras))
    whole = Load(cameras, people, (1920, 1080), 15.0, identities)
    runs = [whole_agent(of) for of in (few, many, whole)]
    counts, sizes = (50, 250), (identities // 5, 2 * identities)
    tracks = [alone(track_bytes, count) for count in counts]
    galleries = [alone(gallery_bytes, size) for size in sizes]
    per_track = (tracks[1] - tracks[0]) / (counts[1] - counts[0])
    return {
        "runs": runs,
        "bytes": {
            "camera": (runs[1]["peak"] - runs[0]["peak"]) / cameras - 2 * per_track,
            "track": per_track,
            "identity": (galleries[1] - galleries[0]) / (sizes[1] - sizes[0]),
        },
        "exemplars": EXEMPLARS,
        "frame_bytes": frame_bytes(whole),
    }


def alone(step: Callable[..., Result], *given: Any) -> Result:  # noqa: ANN401 - what the step takes
    """Call a step in a process of its own, so that the memory is that of this step."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), configure, ("error",)) as own:
        return own.submit(step, *given).result()


def whole_agent(load_: Load) -> dict[str, Any]:
    """Return the memory of a run of some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        alone(fill, load_, Path(folder))
        return alone(_whole_agent, load_, Path(folder))


def _whole_agent(load_: Load, folder: Path) -> dict[str, Any]:
    with open_broker(folder) as (broker, _), running(load_, folder, broker) as agent:
        time.sleep(RUN_S)
        return {
            "cameras": load_.cameras,
            "people": load_.people,
            "identities": load_.identities,
            # The still background of each camera belongs to the benchmark.
            "peak": total("VmHWM") - load_.cameras * frame_bytes(load_),
            "threads": total("Threads"),
            "frames": sum(agent.pipeline.counters.frames.values()) if agent.pipeline else 0,
        }


def frame_bytes(load_: Load) -> int:
    """Return the bytes of a frame."""
    return 3 * load_.size[0] * load_.size[1]


def track_bytes(count: int) -> int:
    """Return what a tracker and an identifier allocate for people in view, until each has a full pool."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(Load(1, count, (1920, 1080), 15.0, 10_000), Path(folder), "mqtt://127.0.0.1")
        state_folder(settings.state_dir)
        with open_gallery(settings, open_simulated(ENGINE, max_batch=64).info, owner=True) as gallery:
            tracker = Tracker("cam", settings.tracker, _LEVELS)
            identifier = Identifier(gallery, "memory", settings.identify)
            random = np.random.default_rng(0)
            who = random.standard_normal((count, gallery.dimension), np.float32)
            left, top = 30.0 * (np.arange(count) % 60), 50.0 * (np.arange(count) // 60)
            boxes = np.stack([left, top, left + 20, top + 45], axis=1).astype(np.float32)
            tracemalloc.start()
            for frame in range(1, 41):
                seen = who + 0.03 * random.standard_normal(who.shape, np.float32)
                seen /= np.linalg.norm(seen, axis=1, keepdims=True)
                ones = np.ones(count, np.float32)
                embedded = Embedded(seen, ones.astype(np.bool_), 0.9 * ones, ("",) * count)
                identifier.update(
                    tracker.update(frame, frame / 10, (1920, 1080), Detections(boxes, 0.9 * ones), embedded)
                )
            gc.collect()
            return tracemalloc.get_traced_memory()[0]


def gallery_bytes(identities: int) -> int:
    """Return the resident memory of an open gallery after a search."""
    with tempfile.TemporaryDirectory() as folder:
        load_ = Load(1, 1, (640, 360), 1.0, identities)
        alone(fill, load_, Path(folder))
        settings = settings_of(load_, Path(folder), "mqtt://127.0.0.1")
        before = total("VmRSS")
        with open_gallery(settings, open_simulated(ENGINE, max_batch=64).info, owner=True) as gallery:
            gallery.search(np.eye(1, gallery.dimension, dtype=np.float32), 32)
            return total("VmRSS") - before


# --- over time ----------------------------------------------------------------------------------

EVERY_S = 10.0
"""Between two samples."""


def soak(load_: Load, seconds: float) -> dict[str, Any]:
    """Run the whole agent for a time; return samples and slopes."""
    with tempfile.TemporaryDirectory() as folder:
        alone(fill, load_, Path(folder))
        return _soak(load_, Path(folder), seconds)


def _soak(load_: Load, folder: Path, seconds: float) -> dict[str, Any]:
    configure("error")
    samples: list[dict[str, float]] = []
    with open_broker(folder) as (broker, _), running(load_, folder, broker) as agent:
        began, cpu, every = time.monotonic(), time.process_time(), min(EVERY_S, seconds / 40)
        while (now := time.monotonic() - began) < seconds:
            samples.append({"hours": now / 3600, **_sample(agent, folder)})
            time.sleep(every)
        cpu = time.process_time() - cpu
        assert agent.stages is not None
        embedded = agent.stages.embedder.counters.embedded
        evicted = agent.stages.gallery.retention.evicted
        lost = sum(reader.dropped for reader in agent.stages.sources.readers)
    return {
        **asdict(load_),
        "seconds": seconds,
        "crops": embedded,
        "evicted": evicted,
        "frames_lost": lost,
        "cpu_us_per_crop": 1e6 * cpu / max(1, embedded),
        "samples": samples[:: max(1, len(samples) // 120)],
    }


def _sample(agent: Agent, folder: Path) -> dict[str, float]:
    stages = agent.stages
    assert stages is not None
    files = {entry.name: entry.stat().st_size for entry in (folder / "state").iterdir() if entry.is_file()}
    return {
        "resident_mb": total("VmRSS") / MEGABYTE,
        "open_files": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes()),
        "threads": total("Threads"),
        "identities": len(stages.gallery),
        "gallery_file_mb": sum(size for name, size in files.items() if name.startswith("gallery")) / MEGABYTE,
        "outbox_file_mb": sum(size for name, size in files.items() if name.startswith("outbox")) / MEGABYTE,
    }


def slope(result: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return first, last and greatest value of a soak, and the slope per hour of the last quarter."""
    samples = result["samples"]
    values = np.array([sample[name] for sample in samples])
    hours = np.array([sample["hours"] for sample in samples])
    late = slice(3 * len(values) // 4, None)
    rise = np.polyfit(hours[late], values[late], 1)[0] if len(values) > 7 else 0.0
    return {
        "first": float(values[0]),
        "last": float(values[-1]),
        "greatest": float(values.max()),
        "per_hour": float(rise),
    }


# --- tables -------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of the parts as Markdown."""
    of = result["bytes"]
    frames = of["camera"] / result["frame_bytes"]
    lines = [
        "| each further | takes |",
        "|---|---|",
        f"| camera of 1920 x 1080 | {of['camera'] / MEGABYTE:.1f} MB, {frames:.1f} frames |",
        f"| track with a full pool of crops | {of['track'] / 1000:.1f} kB |",
        f"| identity with {result['exemplars']} embeddings of 256 numbers | {of['identity'] / 1000:.2f} kB |",
        "",
        "| cameras | people in view of each | identities | peak of all processes | threads |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['cameras']} | {run['people']} | {run['identities']:,} | {run['peak'] / MEGABYTE:.0f} MB |"
        f" {run['threads']} |"
        for run in result["runs"]
    ]
    return "\n".join(lines)


def soak_markdown(result: dict[str, Any]) -> str:
    """Return the table of a soak as Markdown."""
    width, height = result["size"]
    lines = [
        f"{result['cameras']} cameras of {width} x {height} with {result['people']} people each, a new one"
        f" every {CROSSING_S:g} s in each place, for {result['seconds'] / 60:.0f} minutes:"
        f" {result['crops']:,} crops, {result['evicted']:,} people enrolled into a full gallery of"
        f" {result['identities']:,} and as many evicted, {result['frames_lost']} frames lost,"
        f" {result['cpu_us_per_crop']:.0f} us of CPU per crop.",
        "",
        "| | at the start | at the end | greatest | per hour, last quarter |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name.replace('_mb', ', MB').replace('_', ' ')} | {of['first']:.4g} | {of['last']:.4g} |"
        f" {of['greatest']:.4g} | {round(of['per_hour'], 2) + 0.0:+.2f} |"
        for name, of in ((name, slope(result, name)) for name in result["samples"][0] if name != "hours")
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
