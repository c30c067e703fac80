"""CPU cost of cameras with an empty scene, by part and by thread.

    python -m benchmarks.idle [--cameras 2] [--seconds 30] [--size 1280x720] [--fps 15] [--output idle.json]

The scene is a rendered street without people, with sensor noise. First the CPU per frame of each part alone:
decoding (RTSP from GStreamer's server, left out where that is missing), the motion gate, the detector. Then
the CPU of each thread of the whole agent, in cores, with N such cameras after a warm-up: frames from memory
and from RTSP; without a detector, with it, and with the motion gate in front of it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.startup import rtsp
from edge_agent.agent.daemon import Agent
from edge_agent.agent.stages import Supply
from edge_agent.core.config import Settings
from edge_agent.core.loading import load
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.structures import Detections, Frame, ScoreLevels
from edge_agent.detect.motion import Motion
from edge_agent.detect.opening import Detection, add_motion_gate, open_detection
from edge_agent.detect.search import Begin, Search, one_by_one
from edge_agent.offline.bench.environment import machine
from edge_agent.offline.bench.stagetimes import cpu_of_threads
from edge_agent.offline.synthetic.street import Street
from edge_agent.source.opening import open_sources

PICTURES = 30
"""Number of different frames in a loop: the noise must change."""

WARM_UP_S = 12.0
"""Time until streams are open and the motion gates are settled."""

CODECS = ("h264", "mjpeg")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--cameras", type=int, default=2)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--size", default="1280x720")
    options.add_argument("--fps", type=int, default=15)
    options.add_argument("--detector", default="hog")
    options.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    chosen = options.parse_args()
    width, height = map(int, chosen.size.split("x"))
    pictures = empty_street((width, height))
    result: dict[str, Any] = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],  # of the machine when the measurement begins
        "cameras": chosen.cameras,
        "size": [width, height],
        "fps": chosen.fps,
        "detector": _named(chosen.detector),
        "frame_ms": dict(parts(pictures, chosen.fps, chosen.detector)),
        "agent": list(agents(pictures, chosen)),
    }
    if chosen.output is not None:
        write_json_atomic(chosen.output, result)
    print(markdown(result))


def empty_street(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Return pictures of one camera without people."""
    street = Street(4, cameras=1, people=1, seconds=60.0, fps=10.0, visits=1, size=size)
    frames = (street.frame("cam-a", number) for number in range(street.frames, 0, -1))
    return [frame.image for frame in itertools.islice((f for f in frames if not f.truth), PICTURES)]


# --- each part alone ----------------------------------------------------------------------------


def parts(pictures: Sequence[NDArray[np.uint8]], fps: int, detector: str) -> Iterator[tuple[str, float]]:
    """Return the CPU milliseconds of one frame, of all threads of the process."""
    for codec in CODECS:
        yield from decoding(pictures, fps, codec)
    motion = Motion((16, 48))
    looked = iter(range(1_000_000))
    yield "motion gate", _ms(lambda n: motion.moved(pictures[n % len(pictures)], next(looked) / fps), 200)
    with ExitStack() as stack:
        settings = load(None, {"detector": {"kind": detector}})
        found = open_detection(settings, stack, cameras={"cam": None})
        yield (
            _named(detector),
            _ms(lambda n: found.detect(Frame("cam", n, n / fps, pictures[n % len(pictures)])), 10),
        )


def _named(detector: str) -> str:
    """The name without the folder."""
    kind, _, path = detector.partition(":")
    return f"{kind}:{Path(path).name}" if path else kind


def _ms(call: Callable[[int], object], times: int) -> float:
    call(0)
    began = time.process_time()
    for number in range(1, times + 1):
        call(number)
    return round(1e3 * (time.process_time() - began) / times, 3)


def decoding(pictures: Sequence[NDArray[np.uint8]], fps: int, codec: str) -> Iterator[tuple[str, float]]:
    """RTSP through OpenCV's FFmpeg: to decode (`grab`), and to convert to BGR (`retrieve`)."""
    with tempfile.TemporaryDirectory() as folder:
        _write(pictures, Path(folder))
        with rtsp("--frames", folder, "--fps", str(fps), "--codec", codec) as url:
            if url is None:
                return
            capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG)
            _ms(lambda _: capture.grab(), 3 * fps)  # what came while it was opened
            yield f"{codec}: grab", _ms(lambda _: capture.grab(), 4 * fps)
            yield f"{codec}: grab and retrieve", _ms(lambda _: capture.read(), 4 * fps)
            capture.release()


def _write(pictures: Sequence[NDArray[np.uint8]], folder: Path) -> None:
    for number, picture in enumerate(pictures, start=1):
        cv2.imwrite(str(folder / f"{number:05}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])


# --- the whole agent ----------------------------------------------------------------------------


@dataclass(slots=True)
class Still:
    """A camera in memory; an `edge_agent.source.base.Source`."""

    id: str
    pictures: Sequence[NDArray[np.uint8]]
    fps: int
    over: threading.Event
    live: bool = True
    ends: bool = False
    stall_seconds: float | None = None

    def frames(self) -> Generator[Frame, None, None]:
        """Yield frames when they are due."""
        number, begin = 0, time.monotonic()
        while not self.over.is_set():
            number += 1
            time.sleep(max(0.0, begin + number / self.fps - time.monotonic()))
            yield Frame(self.id, number, time.time(), self.pictures[number % len(self.pictures)])


def agents(pictures: Sequence[NDArray[np.uint8]], chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Return all configurations."""
    name = _named(chosen.detector)
    ways = {"no detector": None, name: False, f"{name}, motion gate": True}
    for way, gate in ways.items():
        over = threading.Event()
        sources = [Still(f"cam{n}", pictures, chosen.fps, over) for n in range(chosen.cameras)]
        settings = configured(["rtsp://127.0.0.1/none"] * chosen.cameras, chosen.detector, gate=gate)
        yield {"frames": "memory", "way": way} | measured(settings, gate, chosen.seconds, sources)
        over.set()
    with tempfile.TemporaryDirectory() as folder:
        _write(pictures, Path(folder))
        with rtsp("--frames", folder, "--fps", str(chosen.fps)) as url:
            for way, gate in ways.items() if url is not None else ():
                settings = configured([str(url)] * chosen.cameras, chosen.detector, gate=gate)
                yield {"frames": "RTSP, H.264", "way": way} | measured(settings, gate, chosen.seconds)


def configured(urls: Sequence[str], detector: str, *, gate: bool | None) -> Settings:
    """Return the settings of a configuration."""
    values = {
        "sources": [{"id": f"cam{n}", "url": url} for n, url in enumerate(urls)],
        "detector": {"kind": detector},
        "motion": {"enabled": bool(gate)},
    }
    return load(None, values)


def measured(
    settings: Settings, gate: bool | None, seconds: float, sources: Sequence[Still] | None = None
) -> dict[str, Any]:
    """Return the CPU of each thread in cores, and the number of frames that reached the detector."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = settings.model_copy(update={"state_dir": Path(folder)})
        own = {f"cam{n}": source for n, source in enumerate(settings.sources)}
        if gate is None:
            detection = Detection(
                one_by_one(_nobody),
                lambda _: ScoreLevels(low=0.1, high=0.5, new_track=0.5),
                "nobody",
                lambda: 0.0,
            )
        else:
            detection = open_detection(settings, stack, cameras=dict.fromkeys(own))
        looks = [0]
        counted = replace(detection, begin=functools.partial(_counted, looks, detection.begin))
        given = open_sources(settings.sources, Path(folder)) if sources is None else sources
        counted = add_motion_gate(settings, counted, own, given)
        agent = Agent(settings, supply=Supply(given, counted))
        stop = threading.Event()
        run = threading.Thread(target=agent.run, args=(stop,), name="pipeline")
        run.start()
        agent.opened.wait()
        time.sleep(WARM_UP_S)
        before, seen, began = cpu_of_threads(), looks[0], time.monotonic()
        time.sleep(seconds)
        after, span = cpu_of_threads(), time.monotonic() - began
        seen = looks[0] - seen
        stop.set()
        run.join()
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    cameras = len(settings.sources)
    return {
        "percent_of_a_core_per_camera": round(100 * sum(spent.values()) / span / cameras, 2),
        "threads_percent": {
            name: round(100 * s / span, 2)
            for name, s in sorted(spent.items(), key=lambda of: -of[1])
            if s > 0
        },
        "looks_per_s_and_camera": round(seen / span / cameras, 2),
        "taken_in": None if agent.pipeline is None else agent.pipeline.counters.frames,
    }


def _nobody(_: Frame) -> Detections:
    return Detections.none()


def _counted(looks: list[int], begin: Begin, frames: Sequence[Frame]) -> Search:
    looks[0] += len(frames)
    return begin(frames)


# --- the report ---------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = ["| one frame | CPU ms |", "|---|---|"]
    lines += [f"| {name} | {ms:.2f} |" for name, ms in result["frame_ms"].items()]
    lines += [
        "",
        "| frames from | people found by | % of a core per camera | looks a second | threads, % of a core |",
        "|---|---|---|---|---|",
    ]
    for run in result["agent"]:
        threads = ", ".join(f"{name} {share}" for name, share in list(run["threads_percent"].items())[:5])
        lines.append(
            f"| {run['frames']} | {run['way']} | {run['percent_of_a_core_per_camera']} | "
            f"{run['looks_per_s_and_camera']} | {threads} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
