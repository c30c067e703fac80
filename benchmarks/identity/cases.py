"""What is measured: situations, with the detectors and networks that are tried in each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.identity.footage import COMPRESSED, VARIANTS, Footage, of_file, variant
from benchmarks.identity.running import Network, run_clips, run_crops
from benchmarks.identity.sets import render_set
from benchmarks.identity.streets import DEMO_SEEDS, open_street
from benchmarks.identity.timetable import Play, played
from benchmarks.scoring import PETS_VISITS, people_of

__all__ = ["CASES", "Case", "Material", "Trial", "trials"]

SHIPPED, OSNET, OMZ = "shipped", "OSNet", "0267"
ALL = (SHIPPED, OSNET, OMZ)
YOLOX, HOG, CROPS = "yolox", "hog", "crops"
SETS = {"70 people": (70, 12, 0), "300 people": (300, 9, 1), "1000 people": (1000, 8, 2)}
"""People, crops of a visit, and seed of each rendered set."""


@dataclass(frozen=True, slots=True)
class Material:
    """Where files are: real ones in `shared`, made ones in `made`."""

    shared: Path
    made: Path

    def network(self, name: str) -> Network:
        """Return a network by its name."""
        models = self.shared / "models"
        return {
            SHIPPED: Network(SHIPPED),
            OSNET: Network(OSNET, models / "osnet_x0_25_msmt17.onnx", "imagenet"),
            OMZ: Network(OMZ, models / "person-reidentification-retail-0267_gnfix.onnx", "openvino-raw"),
        }[name]

    def detector(self, name: str) -> str:
        """Return a detector as it is written in the settings."""
        return f"yolox:{self.shared / 'models' / 'yolox_nano.onnx'}" if name == YOLOX else name

    @property
    def video(self) -> Path:
        """PETS09-S2L1, view 1."""
        return self.shared / "data" / "vtest.avi"

    def pets(self) -> Footage:
        """Return it with its truth."""
        return of_file(
            self.video, self.shared / "data" / "vtest_gt.txt", people_of(PETS_VISITS), camera="vtest"
        )

    def set_folder(self, name: str) -> Path:
        """Return the folder of a set, rendered unless it is there."""
        if name not in SETS:
            return self.shared / "data" / name
        people, crops, seed = SETS[name]
        return render_set(self.made / f"p{people}", people=people, crops=crops, seed=seed)


@dataclass(frozen=True, slots=True)
class Case:
    """A situation.

    Attributes:
        name: unique.
        kind: `variant` of the real clip, rendered `street`, or `set` of crops.
        of: name of the variant, street or set.
        tried: detectors, each with its networks.
        options: of the timetable.
    """

    name: str
    kind: str
    of: str
    tried: Mapping[str, Sequence[str]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def clips(self, material: Material) -> list[Footage]:
        """Return the cameras of a variant or street."""
        if self.kind == "variant":
            return variant(self.of, material.pets(), material.made)
        return open_street(self.of, material.made / "streets")

    def play(self, material: Material) -> Play:
        """Return the timetable of a set."""
        return played(material.set_folder(self.of), **self.options)

    def run(
        self, material: Material, detector: str, network: str, extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the agent; return the figures."""
        chosen = material.network(network)
        if self.kind == "set":
            return run_crops(self.play(material), chosen, extra)
        return run_clips(self.clips(material), material.detector(detector), chosen, extra)


def _sets() -> Iterator[Case]:
    for name in SETS:
        networks = ALL if name != "1000 people" else (SHIPPED, OMZ)
        yield Case(f"{name}, 3 cameras", "set", name, {CROPS: networks})
        if name == "70 people":
            yield Case(f"{name}, no boxes", "set", name, {CROPS: networks}, {"boxes": False})
            yield Case(f"{name}, one at a time", "set", name, {CROPS: networks}, {"company": False})
            yield Case(f"{name}, no track ids", "set", name, {CROPS: (SHIPPED, OMZ)}, {"tracks": False})
        elif name == "300 people":
            yield Case(f"{name}, no boxes", "set", name, {CROPS: (SHIPPED,)}, {"boxes": False})
    yield Case("visits of vtest.avi as crops", "set", "pets_market_visits", {CROPS: ALL})


def _variants() -> Iterator[Case]:
    with_hog = ("plain", "half size", COMPRESSED)
    for name in (*VARIANTS, COMPRESSED):
        networks = (SHIPPED,) if name in {"backwards", "5 times in a row"} else ALL
        tried = {YOLOX: networks} | ({HOG: (SHIPPED,)} if name in with_hog else {})
        yield Case(f"vtest.avi, {name}", "variant", name, tried)


def _streets() -> Iterator[Case]:
    yield Case("street, 3 cameras, 12 people", "street", "3 cameras, 12 people", {YOLOX: ALL})
    alone = "one at a time, 1 camera"
    yield Case(f"street, {alone}", "street", alone, {YOLOX: (SHIPPED, OMZ), HOG: (SHIPPED,)})
    alone = "one at a time, 3 cameras"
    yield Case(f"street, {alone}", "street", alone, {YOLOX: (SHIPPED, OMZ)})
    yield Case("street, 8 side by side for 2.8 s", "street", "8 side by side for 2.8 s", {YOLOX: ALL})
    for seed in DEMO_SEEDS:
        yield Case(
            f"demo street {seed}", "street", f"demo street {seed}", {HOG: (SHIPPED,), YOLOX: (SHIPPED,)}
        )


CASES = {case.name: case for case in (*_sets(), *_variants(), *_streets())}


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one case."""

    case: str
    detector: str
    network: str

    @property
    def key(self) -> str:
        """Names it in a file of results."""
        return f"{self.case} / {self.detector} / {self.network}"


def trials(only: Sequence[str] = (), networks: Sequence[str] = ()) -> list[Trial]:
    """Return all runs, or those of cases whose name contains one of `only`, with these networks."""
    return [
        Trial(case.name, detector, network)
        for case in CASES.values()
        for detector, tried in case.tried.items()
        for network in tried
        if (not only or any(word in case.name for word in only)) and (not networks or network in networks)
    ]


def kept(path: Path) -> dict[str, Any]:
    """Return a file of results; empty where there is none."""
    return dict(json.loads(path.read_bytes())) if path.exists() else {}
