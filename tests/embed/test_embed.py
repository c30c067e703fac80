"""The embedding stage on real engines: packing, refusals, and a self-test that catches wrong graphs."""

from __future__ import annotations

import dataclasses
import json
import time

import cv2
import numpy as np
import pytest

from edge_agent.core.config import QualitySettings
from edge_agent.core.errors import EngineError, ModelError, NonFiniteEmbedding
from edge_agent.core.structures import Detections
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.engine import golden, open_simulated
from edge_agent.engine.base import DEPTH
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine
from tests import tiny_networks

TAO = PROFILES["tao"]
RAW = PROFILES["openvino-raw"]
OPEN_GATE = QualityGate(
    QualitySettings(
        min_height=4, min_width=4, min_aspect=0.1, min_sharpness=0, max_overlap=1, max_truncation=1
    )
)


@pytest.fixture
def prepared(tmp_path):
    return prepare_reid(tiny_networks.reid(tmp_path / "net.onnx", dimension=32), TAO)


def embedder(prepared, *, max_batch=64, gate=OPEN_GATE, reference=None):
    engine = OnnxRuntimeEngine(prepared, max_batch=max_batch, threads=1)
    return Embedder(engine, profile=prepared.profile, gate=gate, golden=reference)


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC))


def detections(count: int, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform((0, 0), (250, 120), (count, 2))
    boxes = np.concatenate((corner, corner + np.asarray((40, 100))), axis=1).astype(np.float32)
    return Detections(boxes, np.full(count, 0.9, np.float32))


def expected(stage, image, found):
    cut = [image[y1:y2, x1:x2] for x1, y1, x2, y2 in np.rint(found.boxes).astype(int)]
    return stage.embed_images(cut)


# --- packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 3, 4, 64])
def test_crops_of_several_frames_share_batches(prepared, max_batch):
    pairs = [(picture(seed), detections(count, seed)) for seed, count in enumerate((5, 0, 1, 7))]
    with embedder(prepared, max_batch=max_batch) as stage:
        batches = stage.counters.batches
        stage.submit(pairs)
        results = stage.collect()
        assert stage.counters.batches - batches == -(-13 // max_batch)
        for (image, found), result in zip(pairs, results, strict=True):
            assert result.present.all()
            assert result.reasons == ("",) * len(found)
            assert result.vectors.shape == (len(found), 32)
            np.testing.assert_allclose(result.vectors, expected(stage, image, found), atol=1e-5)


@pytest.mark.parametrize("max_batch", [2, 64])
def test_next_frames_may_be_submitted_before_collecting(prepared, max_batch):
    rounds = [[(picture(seed), detections(4, seed))] for seed in range(4)]
    with embedder(prepared, max_batch=max_batch) as stage:
        alone = []
        for pairs in rounds:
            stage.submit(pairs)
            alone += stage.collect()
        overlapped = []
        stage.submit(rounds[0])
        for pairs in rounds[1:]:
            stage.submit(pairs)
            overlapped += stage.collect()
        overlapped += stage.collect()
    for one, other in zip(alone, overlapped, strict=True):
        np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-6)


def test_pictures_may_be_embedded_between_submit_and_collect(prepared):
    with embedder(prepared, max_batch=2) as stage:
        stage.submit([(picture(1), detections(3, 1))])
        rows = stage.embed_images([picture(2)] * 5)
        (result,) = stage.collect()
        np.testing.assert_allclose(result.vectors, expected(stage, picture(1), detections(3, 1)), atol=1e-5)
        np.testing.assert_allclose(rows, stage.embed_images([picture(2)] * 5), atol=1e-6)


def test_spared_people_are_not_embedded_and_do_not_affect_the_others(prepared):
    found = detections(5, 3)
    pairs = [(picture(1), found), (picture(2), detections(2, 4))]
    left_out = [np.array([True, False, False, True, False]), np.zeros(2, bool)]
    with embedder(prepared) as stage:
        stage.submit(pairs)
        all_of_them = stage.collect()
        before = stage.counters.embedded
        stage.submit(pairs, spared=left_out)
        some = stage.collect()
        assert stage.counters.embedded - before == 5
        assert stage.counters.refused == {}
    for whole, part, mask in zip(all_of_them, some, left_out, strict=True):
        assert part.present.tolist() == (~mask).tolist()
        np.testing.assert_allclose(part.vectors[~mask], whole.vectors[~mask], atol=1e-6)
        np.testing.assert_array_equal(part.quality[~mask], whole.quality[~mask])


def test_frames_without_people(prepared):
    with embedder(prepared) as stage:
        stage.submit([])
        stage.submit([(picture(1), Detections.none())])
        assert stage.collect() == []
        (result,) = stage.collect()
        assert result.vectors.shape == (0, 32)


def test_nothing_to_collect(prepared):
    with embedder(prepared) as stage, pytest.raises(EngineError, match="nothing to collect"):
        stage.collect()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 10), np.uint8),
        np.zeros((20, 10, 4), np.uint8),
        np.zeros((20, 10, 3)),
        np.zeros((0, 10, 3), np.uint8),
    ],
    ids=["grey", "four channels", "float", "empty"],
)
def test_a_broken_picture_never_becomes_the_previous_crop(prepared, image):
    with embedder(prepared) as stage:
        stage.embed_images([picture(1)])
        with pytest.raises(ValueError, match=r"expected \(h, w, 3\) uint8"):
            stage.embed_images([image])
        with pytest.raises(ValueError, match=r"expected \(h, w, 3\) uint8"):
            stage.submit([(image, Detections.none())])


def test_views_of_pictures_are_read_right(prepared):
    image = picture(1)
    with embedder(prepared) as stage:
        for view in (image[10:200, 30:90], image[:, ::-1], image[::2, ::2], image[..., ::-1]):
            np.testing.assert_allclose(
                stage.embed_images([view]), stage.embed_images([view.copy()]), atol=1e-6
            )


def test_no_pictures(prepared):
    with embedder(prepared) as stage:
        assert stage.embed_images([]).shape == (0, 32)


def test_many_pictures_keep_their_order(prepared):
    images = [picture(seed) for seed in range(11)]
    with embedder(prepared, max_batch=3) as stage:
        together = stage.embed_images(images)
        alone = np.concatenate([stage.embed_images([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


# --- refusals -----------------------------------------------------------------------------------


def test_boxes_off_the_picture_are_refused_and_the_rest_is_embedded(prepared):
    boxes = np.asarray(
        [[10, 10, 60, 150], [400, 10, 450, 150], [50, 50, 50, 150], [np.nan, 0, 9, 9], [-20, 20, 40, 180]],
        np.float32,
    )
    found = Detections(boxes, np.full(5, 0.9, np.float32))
    with embedder(prepared) as stage:
        stage.submit([(picture(1), found)])
        (result,) = stage.collect()
        assert result.reasons == ("", "off-image", "invalid", "invalid", "")
        assert result.present.tolist() == [True, False, False, False, True]
        assert not result.vectors[1:4].any()
        assert not result.quality[1:4].any()
        visible = stage.embed_images([picture(1)[20:180, 0:40]])
        np.testing.assert_allclose(result.vectors[4], visible[0], atol=1e-5)
        assert stage.counters.refused == {"off-image": 1, "invalid": 2}


def test_gate_decides_before_the_network_runs(prepared):
    with embedder(prepared, gate=QualityGate(QualitySettings(min_height=200))) as stage:
        runs = stage.engine.runs
        stage.submit([(picture(1), detections(3))])
        (result,) = stage.collect()
        assert result.reasons == ("small",) * 3
        assert stage.engine.runs == runs


def test_an_embedding_that_is_not_finite_is_refused_and_counted(tmp_path):
    prepared = prepare_reid(tiny_networks.undefined_for_dark(tmp_path / "nan.onnx"), RAW)
    image = picture(1)
    image[:, 160:] = 0
    boxes = np.asarray([[10, 20, 60, 160], [200, 20, 250, 160], [80, 20, 130, 160]], np.float32)
    with embedder(prepared) as stage:
        stage.submit([(image, Detections(boxes, np.full(3, 0.9, np.float32)))])
        (result,) = stage.collect()
        assert result.reasons == ("", "non-finite", "")
        assert result.present.tolist() == [True, False, True]
        assert np.isfinite(result.vectors).all()
        assert result.quality[1] == 0
        assert stage.counters.refused == {"non-finite": 1}
        with pytest.raises(NonFiniteEmbedding, match="non-finite embedding for picture 1"):
            stage.embed_images([image[20:160, 10:60], image[20:160, 200:250]])
        assert stage.counters.refused == {"non-finite": 2}


def test_an_embedding_without_length_is_refused(tmp_path):
    prepared = prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), RAW)
    with embedder(prepared) as stage, pytest.raises(NonFiniteEmbedding, match="degenerate"):
        stage.embed_images([np.zeros((20, 10, 3), np.uint8)])


# --- rounds and batches ---------------------------------------------------------------------------


@pytest.mark.parametrize(("max_batch", "count"), [(1, 3), (4, 1)])
def test_whole_pictures_in_batches_of_one(prepared, max_batch, count):
    pictures = [picture(seed) for seed in range(count)]
    with embedder(prepared) as stage:
        wanted = stage.embed_images([*pictures, picture(9)])[:count]
    with embedder(prepared, max_batch=max_batch) as stage:
        batches = stage.counters.batches
        np.testing.assert_allclose(stage.embed_images(pictures), wanted, atol=1e-6)
        assert (stage.counters.batches - batches, stage.engine.in_flight) == (count, 0)


def simulated(tmp_path, *, seconds_a_crop, max_batch=8):
    table = tmp_path / "engine.json"
    times = {str(count): 1e3 * seconds_a_crop * count for count in (1, 64)}
    table.write_text(
        json.dumps({"device": "x", "precision": "fp16", "source": "a what-if", "latency_ms": times})
    )
    engine = open_simulated(f"simulated:{table}", max_batch=max_batch)
    return Embedder(engine, profile=TAO, gate=OPEN_GATE)


def batches_of_three_rounds(stage):
    """Of two crops each, after one that shows how fast the engine is."""
    sizes = []
    stage.submit([(picture(0), detections(2))])
    stage.collect()
    stage.batcher.on_batch = lambda count, *_: sizes.append(count)
    rounds = [(picture(seed), detections(2, seed)) for seed in (1, 2, 3)]
    for pair in rounds:
        stage.submit([pair])
    together = [stage.collect()[0] for _ in rounds]
    for pair, found in zip(rounds, together, strict=True):
        np.testing.assert_allclose(found.vectors, expected(stage, *pair), atol=1e-6)
    return sizes


def test_rounds_that_wait_for_the_engine_share_its_next_batch(tmp_path):
    with simulated(tmp_path, seconds_a_crop=0.0074) as stage:
        assert batches_of_three_rounds(stage) == [2, 4]


@pytest.mark.parametrize(("crops", "in_flight"), [(1, 1), (2, 2)])
def test_an_idle_engine_whose_rows_nobody_collects_gets_a_batch_that_is_half_full(tmp_path, crops, in_flight):
    with simulated(tmp_path, seconds_a_crop=0.0074) as stage:  # so that 4 crops share a batch
        stage.submit([(picture(0), detections(2))])
        stage.collect()
        stage.submit([(picture(1), detections(2))])
        stage.submit([(picture(2), detections(crops))])
        while not stage.engine.ready:  # as while the driving thread decides
            time.sleep(0.001)
        deadline = time.monotonic() + 0.2
        while stage.engine.in_flight < DEPTH and time.monotonic() < deadline:
            stage.keep_fed()
        assert stage.engine.in_flight == in_flight
        assert [len(stage.collect()[0].vectors) for _ in range(2)] == [2, crops]


@pytest.mark.parametrize(("enough", "hungry", "in_flight"), [(8, False, 1), (4, False, 2), (8, True, 2)])
def test_a_batch_is_sent_behind_one_that_runs_where_waiting_gains_nothing(
    tmp_path, monkeypatch, enough, hungry, in_flight
):
    with simulated(tmp_path, seconds_a_crop=0.0037) as stage:  # so that 8 crops share a batch
        stage.submit([(picture(0), detections(2))])
        stage.collect()
        stage.batcher.fastest = 0.0037
        monkeypatch.setattr(type(stage.engine), "enough", enough)
        monkeypatch.setattr(type(stage.engine), "hungry", hungry)
        stage.submit([(picture(1), detections(2))])
        stage.submit([(picture(2), detections(4))])
        assert stage.engine.in_flight == in_flight
        assert [len(stage.collect()[0].vectors) for _ in range(2)] == [2, 4]


def test_rounds_do_not_wait_for_each_other_on_a_slow_engine(tmp_path):
    with simulated(tmp_path, seconds_a_crop=0.02) as stage:
        assert batches_of_three_rounds(stage) == [2, 2, 2]


def test_enough_crops_are_in_flight_with_one_round_in_work_and_one_waiting(tmp_path):
    with simulated(tmp_path, seconds_a_crop=0.1) as stage:
        assert not stage.full
        stage.submit([(picture(1), detections(2))])
        assert not stage.full
        stage.submit([(picture(1), Detections.none())])
        assert not stage.full, "there is nothing to do in it"
        stage.submit([(picture(1), detections(2))])
        assert stage.full
        for _ in range(3):
            stage.collect()
        stage.submit([(picture(1), Detections.none())])
        assert stage.full, "there is nothing to wait for"


def test_it_gives_the_time_during_which_the_engine_cannot_be_done(tmp_path):
    with simulated(tmp_path, seconds_a_crop=0.02) as stage:
        assert stage.due_s == 0
        stage.submit([(picture(1), detections(2))])
        assert stage.due_s == 0, "not known yet"
        stage.collect()
        stage.submit([(picture(1), detections(4))])
        began, due_s = time.monotonic(), stage.due_s
        assert 0.04 < due_s <= 0.08
        stage.collect()
        assert time.monotonic() - began >= due_s
        assert stage.due_s == 0


def test_while_a_part_of_the_engine_is_idle_it_is_not_waited_for(tmp_path, monkeypatch):
    with simulated(tmp_path, seconds_a_crop=0.1) as stage:
        stage.submit([(picture(1), detections(2))])
        assert stage.due_s == 0, "not known yet"
        monkeypatch.setattr(type(stage.engine), "hungry", True)
        assert stage.due_s > 0, "sources can be waited for"
        monkeypatch.setattr(type(stage.engine), "ready", True)
        assert stage.due_s == 0, "there are rows"


def test_rounds_that_shared_a_failed_batch_have_the_same_error(tmp_path, monkeypatch):
    prepared = prepare_reid(tiny_networks.fails_for_three(tmp_path / "net.onnx"), TAO)
    with embedder(prepared, max_batch=4) as stage:
        stage.submit([(picture(0), detections(1))])
        stage.collect()
        stage.batcher.fastest = 0.0099  # whatever this machine is busy with
        monkeypatch.setattr(type(stage.engine), "ready", False)
        for count in (1, 1, 2):
            stage.submit([(picture(count), detections(count))])
        assert stage.collect()[0].present.all()
        problems = []
        for _ in range(2):
            with pytest.raises(EngineError, match="failed on a batch") as caught:
                stage.collect()
            problems.append(caught.value)
        assert problems[0] is problems[1]
        stage.submit([(picture(0), detections(1))])
        assert stage.collect()[0].present.all()


def test_a_failed_batch_is_reported_once_and_the_next_one_works(tmp_path):
    prepared = prepare_reid(tiny_networks.fails_for_three(tmp_path / "net.onnx"), TAO)
    with embedder(prepared, max_batch=4) as stage:
        stage.submit([(picture(1), detections(3))])
        stage.submit([(picture(2), detections(2))])
        with pytest.raises(EngineError, match="failed on a batch"):
            stage.collect()
        assert stage.collect()[0].present.all()
        with pytest.raises(EngineError, match="failed on a batch"):
            stage.embed_images([picture(1)] * 3)
        assert len(stage.embed_images([picture(1)] * 2)) == 2
        assert stage.engine.failures == 2


# --- self-test ----------------------------------------------------------------------------------


def disguised(path, profile, right, **changes):
    """A graph prepared with `profile`, labelled as if it had been prepared with `right`."""
    wrong = prepare_reid(path, profile, **changes)
    return dataclasses.replace(wrong, profile=right, space=prepare_reid(path, right).space, normalised=True)


FAULTS = {
    "BGR instead of RGB": {"order": "bgr"},
    "no division by 255": {"scale": 1.0},
    "no mean": {"mean": (0.0, 0.0, 0.0)},
    "std of ImageNet instead of TAO's": {"std": (0.229, 0.224, 0.225)},
    "no std": {"std": (1.0, 1.0, 1.0), "mean": (0.0, 0.0, 0.0)},
    "Swin's statistics": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


@pytest.fixture(scope="module")
def osnet_reference(osnet_onnx):
    return golden.make(prepare_reid(osnet_onnx, TAO))


@pytest.mark.parametrize("fault", FAULTS)
def test_self_test_catches_a_wrong_graph(osnet_onnx, osnet_reference, fault):
    broken = disguised(osnet_onnx, dataclasses.replace(TAO, **FAULTS[fault]), TAO)
    wrong = pytest.raises(ModelError, match=r"self-test: .* differs from its reference \(cosine")
    with wrong, embedder(broken, max_batch=4, reference=osnet_reference):
        pass


def test_self_test_passes_the_right_graph(osnet_onnx, osnet_reference):
    with embedder(prepare_reid(osnet_onnx, TAO), max_batch=4, reference=osnet_reference) as stage:
        assert stage.info.dimension == 512


def test_self_test_catches_a_missing_normalisation(osnet_onnx):
    broken = disguised(osnet_onnx, TAO, TAO, normalise=False)
    with pytest.raises(NonFiniteEmbedding, match="degenerate embedding for golden crop 0"), embedder(broken):
        pass


def test_self_test_catches_a_batch_that_is_mixed(tmp_path):
    prepared = prepare_reid(tiny_networks.mixes_batch(tmp_path / "net.onnx"), TAO)
    with (
        pytest.raises(ModelError, match="other embeddings in a batch than for single crops"),
        embedder(prepared),
    ):
        pass


def test_self_test_catches_a_reference_of_another_model(prepared, tmp_path):
    other = prepare_reid(tiny_networks.reid(tmp_path / "other.onnx", dimension=32, seed=1), TAO)
    with (
        pytest.raises(ModelError, match="belong to another model"),
        embedder(prepared, reference=golden.make(other)),
    ):
        pass


def test_a_failed_self_test_leaves_no_engine_behind(tmp_path):
    prepared = prepare_reid(tiny_networks.mixes_batch(tmp_path / "net.onnx"), TAO)
    stage = embedder(prepared)
    with pytest.raises(ModelError):
        stage.__enter__()
    with pytest.raises(EngineError, match="not running"):
        stage.engine.buffer()


def test_raw_lengths_pass_the_self_test(tmp_path):
    prepared = prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), TAO, normalise=False)
    with embedder(prepared) as stage:
        rows = stage.embed_images([picture(1), picture(2)])
    assert (np.abs(np.linalg.norm(rows, axis=1) - 1) > 0.1).all()


def test_small_batches_do_not_change_the_self_test(prepared):
    with embedder(prepared, max_batch=1, reference=golden.make(prepared)) as stage:
        assert stage.info.max_batch == 1
