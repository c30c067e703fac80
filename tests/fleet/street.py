"""A rendered street over three devices and six cameras, as real agents; who is recognised across devices.

    python -m tests.fleet.street DEVICE PLAN.json       one device (started by `play`)

Each device is a process of its own with a state folder, a broker and the site's store, and two live cameras,
whose pictures come at the times of the street with the boxes of the generator. The identities of tracks are
those that a subscriber has after the last event.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome
from edge_agent.agent.stages import Supply
from edge_agent.core.loading import load
from edge_agent.core.structures import Detections, Frame, ScoreLevels, iou_matrix
from edge_agent.detect.opening import Detection
from edge_agent.detect.search import one_by_one
from edge_agent.embed.opening import open_agent_embedder
from edge_agent.gallery.sync import Space
from edge_agent.offline.synthetic.street import Street, write_videos
from tests.fleet.postgres_site import Site

DEVICES = {"gate": ("cam-a", "cam-b"), "hall": ("cam-c", "cam-d"), "yard": ("cam-e", "cam-f")}
START_S = 15.0
"""From the start of the processes to the first picture."""
LINGER_S = 14.0
"""After the last picture with people: what is exchanged and joined in this time counts."""
END_S = 20.0
MIN_VISIT_S = 1.0
"""Shorter visits are not scored: nobody can be recognised in less."""
MIN_OVERLAP = 0.5
GIVEN = Detection(
    one_by_one(lambda frame: frame.external or Detections.none()),
    lambda _: ScoreLevels(low=0.1, high=0.5, new_track=0.5),
    "given",
    lambda: 0.0,
)

Boxes = dict[int, list[tuple[int, tuple[float, float, float, float]]]]
"""Person and box of everybody who can be seen, by frame."""


def street(seconds: float, *, people: int, seed: int, fps: float = 5.0) -> Street:
    """Return a street before all cameras."""
    return Street(seed, cameras=6, people=people, seconds=seconds, fps=fps, visits=4)


@dataclass(frozen=True)
class Result:
    """Who was recognised.

    Attributes:
        reentries: visits of people who had visited another device before.
        recognised: of these, those with an identity that the person had at another device before.
        people: number of people who made a visit.
        identities: of all visits; should equal `people`.
        merged: pairs of people who share an identity.
        fleet_matches: events of people known from the store's answer.
        corrected: events `corrected`, by reason.
    """

    reentries: int
    recognised: int
    people: int
    identities: int
    merged: int
    fleet_matches: int
    corrected: Mapping[str, int]
    frames: Mapping[str, int]
    """Pictures that each device processed; a busy machine drops some."""


# ---- one device, in its process


@dataclass
class Recorded:
    """A live camera that shows a video at the times of the street, then an empty picture for a while."""

    id: str
    folder: Path
    fps: float
    begin: float
    """Wall-clock time of the first picture."""
    live: bool = True
    ends: bool = True
    stall_seconds: float | None = None

    def frames(self) -> Generator[Frame | None, None, None]:
        """Give the pictures that are due."""
        seen = truth_of(self.folder / f"{self.id}.txt")
        video = cv2.VideoCapture(str(self.folder / f"{self.id}.avi"))
        number = 0
        try:
            while True:
                number += 1
                there, image = video.read()
                if not there:
                    break
                due = self.begin + number / self.fps
                time.sleep(max(0.0, due - time.time()))
                people = seen.get(number, [])
                boxes = np.array([box for _, box in people], np.float32).reshape(-1, 4)
                found = Detections(boxes, np.full(len(boxes), 0.9, np.float32))
                yield Frame(self.id, number, due, image, found)
        finally:
            video.release()
        for number_after in range(int(LINGER_S * 2)):  # decisions of ended tracks come with a picture
            time.sleep(0.5)
            yield Frame(self.id, number + number_after, time.time(), empty_picture(), None)


def empty_picture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an empty picture of a street's size."""
    return np.zeros((480, 640, 3), np.uint8)


def truth_of(path: Path) -> Boxes:
    """Read the truth of a camera: those who can be seen, cut to the picture."""
    found: Boxes = defaultdict(list)
    for line in path.read_text().splitlines():
        frame, person, left, top, width, height, counts = (float(cell) for cell in line.split(",")[:7])
        box = (max(0.0, left), max(0.0, top), min(640.0, left + width), min(480.0, top + height))
        if counts and box[2] - box[0] > 8 and box[3] - box[1] > 16:
            found[int(frame)].append((int(person), box))
    return found


@dataclass
class Watch:
    """Notes which track showed which person, for a device's cameras; the agent's `observe`."""

    truth: Mapping[str, Boxes]
    votes: Counter[tuple[str, int, int, int]] = field(default_factory=Counter)
    """Camera, track, person, frame // 1: one for each picture."""
    frames: int = 0

    def __call__(self, outcome: FrameOutcome) -> None:
        """Compare the tracks of a picture with the truth."""
        update = outcome.update
        people = self.truth[update.camera].get(update.frame, [])
        self.frames += bool(outcome.latency_ms)
        if not people or not update.seen:
            return
        overlap = iou_matrix(
            np.array([box for _, box in people], np.float32), np.stack([one.box for one in update.seen])
        )
        for row, (person, _) in enumerate(people):
            column = int(overlap[row].argmax())
            if overlap[row, column] >= MIN_OVERLAP:
                self.votes[update.camera, update.seen[column].track_id, person, update.frame] += 1


def device(name: str, plan: Mapping[str, Any]) -> None:
    """Run one device to the end of the street."""
    folder, own = Path(plan["street"]), Path(plan["devices"][name]["folder"])
    settings = load(own / "config.toml")
    cameras = [Recorded(camera, folder, plan["fps"], plan["begin"]) for camera in DEVICES[name]]
    watch = Watch({camera: truth_of(folder / f"{camera}.txt") for camera in DEVICES[name]})
    agent = Agent(
        settings, Outputs(events=own / "events.jsonl"), observe=watch, supply=Supply(cameras, GIVEN)
    )
    agent.run(threading.Event())
    seen = [[*key] for key in watch.votes]
    (own / "seen.json").write_text(json.dumps({"seen": seen, "frames": watch.frames}))


# ---- all devices


@dataclass
class Playing:
    """The street while it is played."""

    processes: dict[str, subprocess.Popen[bytes]]
    folders: dict[str, Path]
    begin: float
    seconds: float

    def wait(self) -> None:
        """Wait for the end of all devices that still run; a failure is an error with its log."""
        end = self.begin + self.seconds + LINGER_S + END_S
        for name, process in self.processes.items():
            try:
                code = process.wait(max(1.0, end - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code:
                raise RuntimeError(f"device {name} ended with {code}: {self.log(name)[-3000:]}")

    def log(self, name: str) -> str:
        """Return what a device has logged."""
        return (self.folders[name] / "log.txt").read_text()


@contextmanager
def play(street_: Street, folder: Path, states: Path, settings: Mapping[str, str]) -> Iterator[Playing]:
    """Play a street, rendered into `folder` unless it is there; `settings` are TOML by device, to append."""
    if not (folder / "street.json").exists():
        write_videos(street_, folder)
    folders = {name: states / name for name in DEVICES}
    begin = time.time() + START_S
    plan = {
        "street": str(folder),
        "fps": street_.fps,
        "begin": begin,
        "devices": {name: {"folder": str(own)} for name, own in folders.items()},
    }
    states.mkdir(parents=True, exist_ok=True)
    (states / "plan.json").write_text(json.dumps(plan))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, own in folders.items():
            own.mkdir(exist_ok=True)
            (own / "config.toml").write_text(config(name, own) + settings[name])
            with (own / "log.txt").open("wb") as log:
                command = [sys.executable, "-m", "tests.fleet.street", name, str(states / "plan.json")]
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
        yield Playing(processes, folders, begin, street_.frames / street_.fps)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def config(name: str, own: Path) -> str:
    """Return the settings of a device, without the fleet."""
    sources = "".join(f'[[sources]]\nid = "{one}"\nurl = "memory:{one}"\n' for one in DEVICES[name])
    return (
        f'state_dir = "{own / "state"}"\nlog_format = "text"\n{sources}'
        '[engine]\nbackend = "onnxruntime"\npacking = "here"\n[telemetry]\njtop = false\n'
    )


def shared(site: Site, name: str, broker: str) -> str:
    """Return the settings of a device of a site on PostgreSQL."""
    login = site.login(name)
    return (
        f'[mqtt]\nsite = "{site.name}"\ndevice = "{name}"\nbroker = "{broker}"\n'
        f'[fleet]\nenabled = true\nstore = "{login.address}"\npassword = "{login.password}"\nsync_s = 0.5\n'
    )


def alone(name: str, broker: str) -> str:
    """Return the settings of a device without the fleet."""
    return f'[mqtt]\nsite = "shop"\ndevice = "{name}"\nbroker = "{broker}"\n'


def space_of_network(state: Path) -> Space:
    """Return the embedding space of the shipped network."""
    settings = load(None, {"engine": {"backend": "onnxruntime", "packing": "here"}, "state_dir": str(state)})
    with open_agent_embedder(settings, state, None) as embedder:
        return Space(embedder.info.space, embedder.info.dimension)


# ---- the score


def scored(street_: Street, folders: Mapping[str, Path]) -> Result:
    """Compare the identities that subscribers have in the end with the truth."""
    events = {name: _events(own / "events.jsonl") for name, own in folders.items()}
    absorbed = _absorbed(one for found in events.values() for one in found)
    identity = {
        (name, camera, track): _root(id_, absorbed)
        for name, found in events.items()
        for (camera, track), id_ in _last(found).items()
    }
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    pictures: Counter[int] = Counter()
    frames = {}
    for name, own in folders.items():
        noted = json.loads((own / "seen.json").read_text())
        frames[name] = noted["frames"]
        for camera, track, person, frame in noted["seen"]:
            visit = _visit(street_, camera, person, frame)
            pictures[visit] += 1
            if (id_ := identity.get((name, camera, track))) is not None:
                votes[visit][id_] += 1
    scored_ = [visit for visit, count in pictures.items() if count >= MIN_VISIT_S * street_.fps]
    main = {visit: votes[visit].most_common(1)[0][0] for visit in scored_ if votes[visit]}
    reentries, recognised = _crossings(street_, sorted(scored_), main)
    owners: dict[str, set[int]] = defaultdict(set)
    for visit, id_ in main.items():
        owners[id_].add(street_.visits[visit].person)
    data = [one["data"] for found in events.values() for one in found if _kind(one) == "identity"]
    return Result(
        reentries,
        recognised,
        len({street_.visits[visit].person for visit in scored_}),
        len(owners),
        sum(len(people) * (len(people) - 1) // 2 for people in owners.values()),
        sum(one.get("origin") == "fleet" for one in data),
        dict(Counter(one["reason"] for one in data if one["kind"] == "corrected")),
        frames,
    )


def _crossings(street_: Street, visits: list[int], main: Mapping[int, str]) -> tuple[int, int]:
    """Count visits of people who were at another device before, and those with an identity from there."""
    of = {camera: name for name, cameras in DEVICES.items() for camera in cameras}
    earlier: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    reentries = recognised = 0
    for visit in visits:  # in order of their start
        person, here = street_.visits[visit].person, of[street_.visits[visit].camera]
        before = [id_ for device_, id_ in earlier[person] if device_ != here]
        reentries += bool(before)
        recognised += main.get(visit) is not None and main[visit] in before
        earlier[person].append((here, main.get(visit)))
    return reentries, recognised


def _visit(street_: Street, camera: str, person: int, frame: int) -> int:
    now = (frame - 1) / street_.fps
    return next(
        place
        for place, one in enumerate(street_.visits)
        if one.person == person and one.camera == camera and one.start <= now < one.end
    )


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _kind(event: Mapping[str, Any]) -> str:
    return str(event["type"]).split(".")[1]  # edge.KIND.DETAIL.v1


def _last(events: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    """Return the identity of each track by its latest event."""
    found: dict[tuple[str, int], str] = {}
    for one in events:
        data = one["data"]
        if _kind(one) == "identity" and data["kind"] != "departed" and data["identity_id"]:
            found[data["camera"], data["track_id"]] = data["identity_id"]
    return found


def _absorbed(events: Any) -> dict[str, str]:
    return {
        one["data"]["absorbed_id"]: one["data"]["identity_id"]
        for one in events
        if _kind(one) == "person" and one["data"]["kind"] == "merged"
    }


def _root(id_: str, absorbed: Mapping[str, str]) -> str:
    seen = set()
    while id_ in absorbed and id_ not in seen:
        seen.add(id_)
        id_ = absorbed[id_]
    return id_


if __name__ == "__main__":
    device(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
