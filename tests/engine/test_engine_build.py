"""Decisions of a build before TensorRT starts: precision, memory, disk, ranges. No TensorRT is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.core.errors import ConfigError, EngineError, ModelError
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PreparedGraph, profile_named
from edge_agent.engine.graph.stripes import write_stripe_model
from edge_agent.engine.plans.records import Machine
from edge_agent.engine.precision.scales import Scales
from edge_agent.engine.tensorrt.builder import available_memory, check_disk, workspace_for
from edge_agent.engine.tensorrt.calibrator import Calibration, Pictures, RangeSource, header_number
from edge_agent.engine.tensorrt.recipe import BuildOptions, batches_for, choose_flags, order_for

MIB = 1 << 20
ORIN = Machine("10.3.0", "12.6", "Orin", "8.7", 16, 64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    path = tmp_path_factory.mktemp("model") / "stripes.onnx"
    write_stripe_model(path)
    return prepare_reid(path, profile_named("tao"))


def ranges(prepared: PreparedGraph) -> Scales:
    return Scales({"crops": 255.0}, "entropy", hashlib.sha256(prepared.onnx).hexdigest())


def no_pictures() -> Iterator[NDArray[np.uint8]]:
    return iter(())


SOME = Scales({"x": 1.0}, "entropy", "a" * 64)
ENTROPY = Calibration(Pictures(512, "d", no_pictures))
MINMAX = replace(ENTROPY, algorithm="MinMaxCalibration")


# --- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("major", "options", "graph", "network", "flags", "calibrator"),
    [
        (8, BuildOptions("fp32"), "fp32", ("EXPLICIT_BATCH",), (), False),
        (8, BuildOptions("fp16"), "fp32", ("EXPLICIT_BATCH",), ("FP16",), False),
        (8, BuildOptions("fp16"), "fp16", ("EXPLICIT_BATCH",), ("FP16",), False),
        (8, BuildOptions("int8"), "int8", ("EXPLICIT_BATCH",), ("FP16", "INT8"), False),
        (8, BuildOptions("int8", scales=SOME), "fp32", ("EXPLICIT_BATCH",), ("FP16", "INT8"), True),
        (9, BuildOptions("fp16"), "fp32", ("EXPLICIT_BATCH",), ("FP16",), False),
        (10, BuildOptions("fp32"), "fp32", (), (), False),
        (10, BuildOptions("fp16"), "fp32", (), ("FP16",), False),
        (10, BuildOptions("fp16"), "fp16", ("STRONGLY_TYPED",), (), False),
        (10, BuildOptions("int8"), "int8", (), ("FP16", "INT8"), False),
        (10, BuildOptions("int8", scales=MINMAX), "fp32", (), ("FP16", "INT8"), True),
        (11, BuildOptions("fp32"), "fp32", (), (), False),
        (11, BuildOptions("fp16"), "fp16", (), (), False),
        (11, BuildOptions("int8"), "int8", (), (), False),
        (12, BuildOptions("fp16"), "fp16", (), (), False),
    ],
)
def test_each_version_gets_flags_that_it_supports(
    major: int,
    options: BuildOptions,
    graph: str,
    network: tuple[str, ...],
    flags: tuple[str, ...],
    calibrator: bool,
) -> None:
    found = choose_flags(major, options, graph)
    assert found.network == network
    assert found.builder == flags
    assert found.calibrator == calibrator
    assert found.cleared == (("TF32",) if options.precision == "fp32" else ())


@pytest.mark.parametrize("major", [8, 10, 11])
@pytest.mark.parametrize(
    ("options", "graph", "why"),
    [
        (BuildOptions("int8"), "fp32", "needs INT8 ranges, or a graph with quantise"),
        (BuildOptions("int8"), "fp16", "needs INT8 ranges"),
        (BuildOptions("fp16"), "int8", "gives INT8, not FP16"),
        (BuildOptions("fp32"), "int8", "gives INT8, not FP32"),
        (BuildOptions("fp32"), "fp16", "take the one as exported"),
        (BuildOptions("fp16", scales=SOME), "fp32", "ask for int8"),
        (BuildOptions("int8", scales=SOME), "int8", "this one computes in INT8"),
    ],
)
def test_combinations_that_no_version_can_build(
    major: int, options: BuildOptions, graph: str, why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        choose_flags(major, options, graph)


@pytest.mark.parametrize(
    ("major", "options", "graph", "why"),
    [
        (7, BuildOptions("fp32"), "fp32", "too old"),
        (11, BuildOptions("fp16"), "fp32", "TensorRT 11 computes in the precision of the graph"),
        (11, BuildOptions("int8", scales=SOME), "fp32", "takes no separate INT8 ranges"),
        (11, BuildOptions("int8", scales=ENTROPY), "fp32", "takes no separate INT8 ranges"),
    ],
)
def test_combinations_that_a_version_cannot_build(
    major: int, options: BuildOptions, graph: str, why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        choose_flags(major, options, graph)


def test_the_accelerator_takes_less() -> None:
    fallback = "GPU_FALLBACK"
    assert choose_flags(10, BuildOptions("fp16"), "fp32", dla=True).builder == (fallback, "FP16")
    assert choose_flags(11, BuildOptions("int8"), "int8", dla=True).builder == (fallback,)
    assert choose_flags(10, BuildOptions("fp16"), "fp16", dla=True).network == ()
    for options, graph, why in (
        (BuildOptions("fp32"), "fp32", "FP16 and INT8 only"),
        (BuildOptions("int8"), "int8", "takes separate INT8 ranges only"),
        (BuildOptions("int8", scales=MINMAX), "fp32", "EntropyCalibration2 only"),
    ):
        with pytest.raises(EngineError, match=why):
            choose_flags(10, options, graph, dla=True)


def test_batches() -> None:
    assert [batches_for(most) for most in (1, 8, 16, 64, 100)] == [
        (1,), (1, 8), (1, 16), (1, 16, 64), (1, 16, 64, 100),
    ]  # fmt: skip
    for wrong in ((), (16, 1), (1, 1), (0, 1)):
        with pytest.raises(ConfigError, match="ascending"):
            BuildOptions(batches=wrong)


# --- what names a plan ------------------------------------------------------------------------


def test_an_order_names_all_that_changes_the_plan(prepared: PreparedGraph) -> None:
    scales = ranges(prepared)
    wishes = [
        BuildOptions("fp32"),
        BuildOptions("fp16"),
        BuildOptions("fp16", batches=(1, 16)),
        BuildOptions("fp16", workspace_mb=512),
        BuildOptions("fp16", dla_core=0),
        BuildOptions("fp16", dla_core=1),
        BuildOptions("int8", scales=scales),
        BuildOptions("int8", scales=replace(scales, amax={"crops": 254.0})),
        BuildOptions("int8", scales=ENTROPY),
        BuildOptions("int8", scales=MINMAX),
        BuildOptions("int8", scales=replace(ENTROPY, pictures=replace(ENTROPY.pictures, digest="e"))),
    ]
    keys = {order_for(prepared, wish, ORIN).key for wish in wishes}
    assert len(keys) == len(wishes)
    recipe = order_for(prepared, BuildOptions("int8", scales=scales), ORIN).recipe
    assert recipe.scales == scales.digest
    assert recipe.graph_sha256 == hashlib.sha256(prepared.onnx).hexdigest()


def test_without_a_known_accelerator_the_plan_is_for_the_gpu(prepared: PreparedGraph) -> None:
    wish = BuildOptions("fp16", dla_core=0)
    recipes = {
        release: order_for(prepared, wish, replace(ORIN, tensorrt=release)).recipe
        for release in ("8.5.2.2", "10.3.0", "10.16.2.10")
    }
    assert [recipe.dla_core for recipe in recipes.values()] == [0, 0, None]
    assert [recipe.gpu_fallback for recipe in recipes.values()] == [True, True, False]


def test_a_network_with_a_fixed_batch_has_one_profile(prepared: PreparedGraph) -> None:
    fixed = replace(prepared, batch=1)
    assert order_for(fixed, BuildOptions("fp16"), ORIN).recipe.profiles == (1,)


# --- memory and disk --------------------------------------------------------------------------


def test_workspace_is_bounded_by_what_is_free() -> None:
    graph = 100 * MIB
    half = workspace_for(graph, 32_768 * MIB, None)
    assert half == 16_384 * MIB
    assert workspace_for(graph, 32_768 * MIB, 1024) == 1024 * MIB
    spare = workspace_for(graph, 2048 * MIB, 4096)
    assert spare == (2048 - 768 - 400) * MIB
    with pytest.raises(EngineError, match=r"needs about 1184 MiB of free memory, 1100 MiB are free"):
        workspace_for(graph, 1100 * MIB, None)


def test_free_memory_is_the_value_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot tell how much memory is free"):
        available_memory(tmp_path)
    (tmp_path / "proc").mkdir()
    meminfo = tmp_path / "proc/meminfo"
    meminfo.write_text("MemTotal:  62800000 kB\nMemFree: 100 kB\nMemAvailable:   40000000 kB\n")
    assert available_memory(tmp_path) == 40_000_000 * 1024
    meminfo.write_text("MemTotal:  62800000 kB\n")
    with pytest.raises(EngineError, match="no MemAvailable"):
        available_memory(tmp_path)
    assert available_memory() > 0, "this machine"


def test_a_full_disk_is_seen_before_minutes_are_spent(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "there" / "yet", MIB)
    with pytest.raises(EngineError, match=r"are free; make room \(edge-agent engines prune"):
        check_disk(tmp_path / "engines", 1 << 60)


# --- ranges -----------------------------------------------------------------------------------


def test_versions_in_the_header_of_a_cache() -> None:
    found = [
        header_number(version) for version in ((8, 5, 2, 2), (8, 6, 1), (10, 3, 0), (10, 16, 2, 10), (10,))
    ]
    assert found == [8502, 8601, 100300, 101602, 100000]


def test_known_ranges_are_rendered_for_the_version_that_runs(prepared: PreparedGraph) -> None:
    for release, header in (((8, 6, 1), b"TRT-8601-"), ((10, 3, 0), b"TRT-100300-")):
        source = RangeSource(prepared, ranges(prepared), release=release)
        cache = source.read()
        assert cache is not None
        assert cache.startswith(header + b"EntropyCalibration2\ncrops: ")
        assert source.check() is None


def test_ranges_of_another_graph_are_refused(prepared: PreparedGraph) -> None:
    with pytest.raises(ModelError, match="belong to another graph"):
        RangeSource(prepared, SOME, release=(10, 3, 0))


def test_too_few_pictures_are_seen_at_once(prepared: PreparedGraph) -> None:
    few = Calibration(Pictures(15, "d", no_pictures), batch=16)
    with pytest.raises(EngineError, match="15 pictures do not fill a calibration batch of 16"):
        RangeSource(prepared, few, release=(10, 3, 0))
