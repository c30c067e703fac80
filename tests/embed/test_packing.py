"""A separate process gives the same pictures as this one; its death is an error and no hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import open_embedder
from edge_agent.embed.packer import PARCEL, InlinePacker, SubprocessPacker
from edge_agent.embed.quality import QualityGate
from edge_agent.engine import open_simulated
from edge_agent.engine.graph.prepared import PROFILES

SIZE, MOST = (64, 32), 8
PROFILE = PROFILES["tao"]
NOISE = np.random.default_rng(4).integers(0, 256, (600, 400, 3), dtype=np.uint8)
FLAT = np.full((90, 40, 3), 120, np.uint8)


@pytest.fixture
def subprocess_packer() -> Iterator[SubprocessPacker]:
    with SubprocessPacker(PROFILE, 0.05, SIZE, MOST) as packer:
        yield packer


def crops(seed: int, count: int = MOST) -> list[np.ndarray]:
    """Views into a picture, as the pipeline has them; of any size."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        height, width = int(random.integers(5, 400)), int(random.integers(5, 200))
        y, x = int(random.integers(0, 600 - height)), int(random.integers(0, 400 - width))
        found.append(NOISE[y : y + height, x : x + width])
    return found


def room() -> np.ndarray:
    return np.zeros((PARCEL, *SIZE, 3), np.uint8)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_both_give_the_same(subprocess_packer: SubprocessPacker) -> None:
    here = InlinePacker(PROFILE, 0.05)
    for seed in range(6):
        given = crops(seed, count=1 + seed)
        given[0] = FLAT  # refused: it leaves no hole
        mine, theirs = room(), room()
        here.begin(given)
        subprocess_packer.begin(given)
        sharp = here.finish(mine)
        np.testing.assert_array_equal(subprocess_packer.finish(theirs), sharp)
        assert sharp[0] < 0.05
        np.testing.assert_array_equal(mine, theirs)
        for row, crop in enumerate(given[1:]):
            np.testing.assert_array_equal(theirs[row], cv2.resize(crop, SIZE[::-1]))


def test_results_come_in_the_order_of_the_crops(subprocess_packer: SubprocessPacker) -> None:
    batches = [crops(seed) for seed in range(9)]
    subprocess_packer.begin(batches[0])
    for now, coming in zip(batches, [*batches[1:], None], strict=True):
        if coming is not None:
            subprocess_packer.begin(coming)
        target = room()
        subprocess_packer.finish(target)
        np.testing.assert_array_equal(target[0], cv2.resize(now[0], SIZE[::-1]))


def test_memory_grows_with_the_crops(subprocess_packer: SubprocessPacker) -> None:
    for side in (50, 500, 3000):
        large = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        for _ in range(3):  # every slot
            target = room()
            subprocess_packer.begin([large, large])
            subprocess_packer.finish(target)
            np.testing.assert_array_equal(target[1], cv2.resize(large, SIZE[::-1]))


def test_a_dead_process_loses_its_crops_and_no_others(subprocess_packer: SubprocessPacker) -> None:
    subprocess_packer.begin(crops(1))
    subprocess_packer.finish(room())
    first = subprocess_packer.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    while Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    subprocess_packer.begin(crops(2))
    subprocess_packer.begin(crops(3))
    for _ in range(2):
        with pytest.raises(EngineError, match="ended"):
            subprocess_packer.finish(room())
    target = room()
    subprocess_packer.begin(crops(4))
    subprocess_packer.finish(target)
    np.testing.assert_array_equal(target[0], cv2.resize(crops(4)[0], SIZE[::-1]))
    assert subprocess_packer.pid != first


def test_signals_to_the_group_do_not_end_it_and_the_end_does() -> None:
    with SubprocessPacker(PROFILE, 0.05, SIZE, MOST) as packer:
        packer.begin(crops(1))
        packer.finish(room())
        pid = packer.pid
        assert pid is not None
        for name in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, name)
        packer.begin(crops(2))
        packer.finish(room())
        assert packer.pid == pid
    assert not is_there(pid)


def test_nothing_of_the_crops_has_a_name(subprocess_packer: SubprocessPacker) -> None:
    subprocess_packer.begin(crops(1))
    subprocess_packer.finish(room())
    held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    memory = [name for name in held if "edge-agent crops" in name]
    assert memory
    assert all("(deleted)" in name and name.startswith("/memfd:") for name in memory)


def frame(seed: int) -> tuple[np.ndarray, Detections]:
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    picture[:, :100] = 90
    corners = random.uniform([110, 0], [500, 200], (7, 2))
    corners[0] = 20, 50  # on the uniform part: blurred
    sides = random.uniform([50, 110], [80, 180], (7, 2))
    sides[0] = 60, 120
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return picture, Detections(boxes, np.full(7, 0.9, np.float32))


def test_an_embedder_gives_the_same_by_either() -> None:
    """Several frames at once, more than a batch, with refused crops, and the next ones begun meanwhile."""
    gate, given = QualityGate(QualitySettings()), {}
    for name in ("here", "subprocess_packer"):
        engine = open_simulated("simulated:a30-mixed", max_batch=4)
        made = {
            "here": InlinePacker(PROFILE, gate.settings.min_sharpness),
            "subprocess_packer": SubprocessPacker(PROFILE, gate.settings.min_sharpness, engine.input_size, 4),
        }[name]
        with Embedder(engine, profile=PROFILE, gate=gate, packer=made) as embedder:
            found = []
            embedder.submit([frame(0), frame(1)])
            for turn in range(1, 5):
                embedder.submit([frame(2 * turn), frame(2 * turn + 1)])
                found += embedder.collect()
            found += embedder.collect()
        given[name] = found
        assert embedder.counters.refused["blurred"] == 10
    for one, other in zip(given["here"], given["subprocess_packer"], strict=True):
        assert one.reasons == other.reasons
        assert one.reasons[0] == "blurred"
        np.testing.assert_array_equal(one.vectors, other.vectors)
        np.testing.assert_array_equal(one.quality, other.quality)
        np.testing.assert_array_equal(one.present, other.present)


def test_an_embedder_goes_on_after_a_dead_packer() -> None:
    gate = QualityGate(QualitySettings())
    engine = open_simulated("simulated:a30-mixed", max_batch=8)
    packer = SubprocessPacker(PROFILE, gate.settings.min_sharpness, engine.input_size, 8)
    with Embedder(engine, profile=PROFILE, gate=gate, packer=packer) as embedder:
        embedder.submit([frame(0)])
        embedder.collect()
        assert packer.pid is not None
        os.kill(packer.pid, signal.SIGKILL)
        embedder.submit([frame(1)])
        with pytest.raises(EngineError, match="packs crops has ended"):
            embedder.collect()
        embedder.submit([frame(2)])
        assert embedder.collect()[0].present.any()


@pytest.mark.parametrize(("packing", "beside"), [("here", False), ("beside", True)])
def test_the_process_that_packs_is_a_setting(tmp_path: Path, packing: str, beside: bool) -> None:
    settings = EngineSettings(packing=packing, backend="onnxruntime")
    with open_embedder(settings, QualitySettings(), tmp_path, max_batch=2):
        files = [str(one.resolve()) for one in Path("/proc/self/fd").iterdir()]
    assert any("edge-agent crops" in file for file in files) == beside
