"""Finds out whether a network is of a kind, by what it gives for two start-up pictures.

Shapes alone do not decide: networks of different kinds share them, find nobody when they are read as each
other, and raise no error. Reasons and limits: `docs/decisions/039-detector-kinds-are-checked-on-pictures.md`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import structlog
from numpy.typing import NDArray

from edge_agent.core.detectors import KINDS_TEXT
from edge_agent.core.errors import ModelError
from edge_agent.detect.fit import Fit, Place
from edge_agent.detect.kinds import KINDS
from edge_agent.detect.kinds.base import Decoder, Kind
from edge_agent.detect.kinds.seen import Seen, Unlike
from edge_agent.engine.graph.detector import prepare_detector, read_detector, run_on_pictures
from edge_agent.engine.graph.prepared import PreparedGraph, PreprocessProfile
from edge_agent.engine.graph.reading import Layout, Network

_PEOPLE = Path(__file__).with_name("start_up.jpg")
"""People rendered by `offline.synthetic`, see `tests/detect/make_start_up_picture.py`."""

_FOUND = 0.25
"""A score of a person in the start-up picture from which on it sees people there. YOLOX nano gives 0.84 if
its input is prepared as in its training, and 0.00 if not."""

_CERTAIN = 0.5
"""A score of another class in that picture from which on the class of people is doubtful."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A network, the kind that it is of, and its decoder."""

    kind: Kind
    decoder: Decoder
    prepared: PreparedGraph


def recognise(path: Path, name: str, wanted_size: tuple[int, int] | None = None) -> Recognised:
    """Read a detector and check that it is of the kind with this name, or find its kind where that is "".

    `wanted_size` is the `(height, width)` of an input whose size is dynamic.

    Raises:
        ModelError: the file is no usable ONNX network, is not of this kind, or is of none or of several
            kinds. The message states which kind it resembles.
    """
    trial = _Trial(read_detector(Network(path)), wanted_size)
    kind = KINDS[name] if name else trial.only_kind()
    try:
        decoder = trial.read(kind)
    except Unlike as problem:
        alike = trial.alike(other for other in KINDS.values() if other is not kind)
        raise ModelError(f"{path} is not of kind {kind.name}: {problem}; {_advice(path, alike)}") from None
    trial.check_preprocessing(kind, decoder)
    prepared = prepare_detector(trial.network, trial.layout(kind), kind.profile, decoder.rows)
    return Recognised(kind, decoder, prepared)


class _Trial:
    """A network and its outputs for the start-up pictures, by input size and preprocessing."""

    def __init__(self, network: Network, wanted_size: tuple[int, int] | None) -> None:
        self.network = network
        self._wanted = wanted_size
        self._seen: dict[tuple[tuple[int, int], str], Seen] = {}

    def layout(self, kind: Kind) -> Layout:
        return self.network.detector_layout(self._wanted, kind.size)

    def read(self, kind: Kind, profile: PreprocessProfile | None = None) -> Decoder:
        """Return the decoder of a kind, with its preprocessing or another; Unlike where it does not fit."""
        profile = profile or kind.profile
        layout = self.layout(kind)
        key = (layout.size, profile.name)
        if key not in self._seen:
            pictures = start_up_pictures(layout.size)
            outputs = run_on_pictures(self.network, layout, profile, pictures)
            self._seen[key] = Seen(layout.size, outputs, self.network.class_names(), self.network.task())
        return kind.read(self._seen[key])

    def alike(self, kinds: Iterable[Kind]) -> list[Kind]:
        """Return those of these kinds that the network may be of."""
        found = []
        for kind in kinds:
            try:
                self.read(kind)
            except (Unlike, ModelError):
                continue
            found.append(kind)
        return self._by_preprocessing(found)

    def _by_preprocessing(self, kinds: list[Kind]) -> list[Kind]:
        """Of kinds that differ in preprocessing alone, keep the one with which the network sees people."""
        if len({kind.read for kind in kinds}) != 1:
            return kinds
        *others, first = sorted(kinds, key=lambda kind: self.read(kind).response.best)
        best = self.read(first).response.best
        clear = best >= _FOUND and all(self.read(kind).response.best < best / 2 for kind in others)
        return [first] if clear else kinds

    def only_kind(self) -> Kind:
        """Return the kind of the network; ModelError where it is of none or of several."""
        path = self.network.path
        alike = self.alike(KINDS.values())
        if len(alike) == 1:
            return alike[0]
        if alike:
            raise ModelError(
                f"{path} may be of several kinds of detectors; {_advice(path, alike)}; {KINDS_TEXT}"
            )
        reasons: list[str] = []
        for kind in KINDS.values():
            try:
                self.read(kind)
            except Unlike as problem:  # a ModelError, e.g. of the size, has a better message
                reasons.append(f"{kind.name}: {problem}")
        raise ModelError(f"{path} is of no kind of detector that is read ({'; '.join(reasons)})")

    def check_preprocessing(self, kind: Kind, decoder: Decoder) -> None:
        """Refuse a network that sees people only when its input is prepared as for another kind.

        One that sees none either way is accepted: rendered people are strange to some networks.
        """
        if decoder.response.best >= _FOUND:
            return
        path = self.network.path
        for profile in dict.fromkeys(one.profile for one in KINDS.values()):
            if profile == kind.profile or self._best(kind, profile) < _FOUND:
                continue
            alike = [one for one in KINDS.values() if one.read is kind.read and one.profile == profile]
            advice = (
                _advice(path, alike) if alike else "export it with that preprocessing inside, or as YOLOX"
            )
            raise ModelError(
                f"{path} finds people only in pictures of {profile.name}, kind {kind.name} gives it "
                f"{kind.profile.name}; {advice}"
            )
        self._check_class(decoder)
        _log.warning(
            "detector_found_nobody_at_start", detector=kind.name, file=str(path),
            hint="it finds none of the rendered people in the start-up picture; check it on your own",
        )  # fmt: skip

    def _check_class(self, decoder: Decoder) -> None:
        """Refuse a network without names that sees something else where people are."""
        seen = decoder.response
        if seen.other_best < _CERTAIN or self.network.class_names() is not None:
            return
        raise ModelError(
            f"{self.network.path} finds class {seen.other} in a picture of people, and not class "
            f"{seen.person}, the first, which is searched for; if those are people, write the names of all "
            "classes into the file: "
            "model = onnx.load(FILE); model.metadata_props.add(key='names', "
            f"value=\"{{0: 'name', ..., {seen.other}: 'person', ...}}\"); onnx.save(model, FILE)"
        )

    def _best(self, kind: Kind, profile: PreprocessProfile) -> float:
        try:
            return self.read(kind, profile).response.best
        except Unlike:
            return 0.0


def takes_batches(prepared: PreparedGraph) -> bool:
    """Return whether the network gives each of several pictures the rows that it gives it alone.

    A free batch axis does not tell: many exports have one, and reshape everything to one picture inside.
    """
    if prepared.batch is not None:
        return False
    from edge_agent.engine.onnxruntime import run_each_way

    pictures = np.stack(start_up_pictures(prepared.input_size))
    try:
        together, alone = run_each_way(prepared.onnx, pictures, str(prepared.source))
    except ModelError as problem:
        reason = str(problem)
    else:
        if together.shape == alone.shape and np.allclose(together, alone, rtol=1e-3, atol=1e-3):
            return True
        reason = "it mixes the pictures of a batch"
    _log.info("detector_searches_one_by_one", file=str(prepared.source), reason=reason)
    return False


def _advice(path: Path, alike: list[Kind]) -> str:
    """Return what to write instead."""
    if not alike:
        return f"it looks like no kind that is read; {KINDS_TEXT}"
    return "it looks like " + " or ".join(f"{kind.name}: write {kind.name}:{path}" for kind in alike)


def start_up_pictures(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Return an evenly grey picture and one with people, `(height, width, 3)` uint8 BGR each."""
    height, width = size
    grey = np.full((height, width, 3), 114, np.uint8)
    people = cv2.imread(str(_PEOPLE), cv2.IMREAD_COLOR)
    if people is None:
        raise ModelError(f"{_PEOPLE} is missing: the installation is incomplete")
    picture = grey.copy()
    Place.of(people.shape, size, Fit.CENTRE).draw(np.asarray(people, np.uint8), picture)
    return [grey, picture]
