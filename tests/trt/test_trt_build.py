"""What TensorRT is told in a build, over the real bindings, and calibration through their C++ objects."""

from __future__ import annotations

import json
import re
import textwrap

import pytest

PRELUDE = textwrap.dedent("""
    import json, os, sys, warnings
    warnings.filterwarnings("ignore", "Use Deprecated in TensorRT")  # of what TensorRT 11 has no more
    from pathlib import Path
    import numpy as np
    import structlog
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    from builder_stand_in import BuilderStub
    stub = BuilderStub()
    from edge_agent.engine import build as b
    from edge_agent.engine.build import BuildOptions, PlanBuilder, build_plan
    from edge_agent.engine.calibrator import Calibration, Pictures
    from edge_agent.engine.plans import PlanStore
    from edge_agent.engine.prepared import PreparedGraph
    from edge_agent.engine.scales import Scales, read_cache
    from edge_agent.errors import EdgeAgentError
    import hashlib

    def graph(precision="fp32", **more):
        facts = dict(onnx=b"graph", source=Path("reid.onnx"), source_sha256="0" * 64, name="reid",
                     input_size=(16, 8), batch=None, profile=None, dimension=4, space="s", normalised=True,
                     channels_last=False, half=False, precision=precision)
        return PreparedGraph(**facts | more)

    def pictures(count, batch=4, digest="d", **more):
        made = [np.full((16, 8, 3), n % 251, np.uint8) for n in range(more.pop("there", count))]
        return Calibration(Pictures(count, digest, lambda: iter(made)), batch=batch, **more)

    digest = hashlib.sha256(b"graph").hexdigest()
    known = Scales({"crops": 255.0, "x:0": 1.5}, "percentile", digest)
    phases = []
    def progress(*given):
        phases.append(list(given))

    def show(**what):
        print("SHOWN " + json.dumps(what, default=lambda it: it.decode()))

    def attempt(call):
        try:
            return call(), None
        except BaseException as problem:
            return None, f"{type(problem).__name__}: {problem}"
""")

VERSIONS = ["8.6.1", "10.3.0", "10.16.1", "11.4.0"]
WITH_CALIBRATORS = ["8.6.1", "10.3.0", "10.16.1"]

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def shown(run_under_stub):
    """`shown(code, version)`: what the code, run after the prelude, gave to `show`."""

    def run(code: str, version: str, **environment) -> dict:
        done = run_under_stub(PRELUDE + textwrap.dedent(code), version, cuda=True, **environment)
        lines = [
            line.removeprefix("SHOWN ") for line in done.stdout.splitlines() if line.startswith("SHOWN ")
        ]
        assert len(lines) == 1, done.stdout + done.stderr
        told = json.loads(lines[0])
        told["stderr"] = done.stderr
        return told

    return run


def named(told: list, name: str) -> list:
    """What the method was given, call by call."""
    return [given for method, *given in told if method == name]


FLAGS = {"FP16": 0, "INT8": 1, "GPU_FALLBACK": 3}
"""Numbers in NvInfer.h of TensorRT 8 to 10."""


# --- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_from_graph_to_plan(shown, version):
    told = shown(
        """
        typed = stub.places.get("precision") is None and b.bindings.major() >= 11
        built = build_plan(graph("fp16" if typed else "fp32"), BuildOptions("fp16"), timing=b"timings",
                           progress=progress)
        show(told=stub.told, plan=built.data, timing=built.timing, facts=dict(built.facts), phases=phases,
             live=stub.live(), scales=built.scales)
        """,
        version,
    )
    calls = told["told"]
    assert named(calls, "create_network") == [[1 if version.startswith("8") else 0]]
    assert named(calls, "parse") == [["graph"]]
    assert named(calls, "set_flag") == ([] if version.startswith("11") else [[FLAGS["FP16"]]])
    assert named(calls, "clear_flag") == []
    assert named(calls, "set_memory_pool_limit") == [[0, told["facts"]["workspace_bytes"]]]
    assert told["facts"]["workspace_bytes"] > 1 << 24
    shapes = named(calls, "set_shape")
    picture = [16, 8, 3]
    assert {shape[0] for shape in shapes} == {"crops"}
    least, best, most = 0, 1, 2
    assert sorted(shape[1:] for shape in shapes) == sorted(
        [which, batch, *picture]
        for largest in (1, 16, 64)
        for which, batch in ((least, 1), (best, largest), (most, largest))
    )
    assert named(calls, "create_timing_cache") == [["timings"]]
    assert told["plan"] == "plan -1 16 8 4 3 1 16 64"
    assert told["timing"] == "timings"
    assert told["live"] == 0, "no memory, stream or context is left"
    if not version.startswith("8"):
        assert told["phases"] == [["tactics", done, 3] for done in (0, 1, 2, 3, 3)]


@pytest.mark.parametrize("version", VERSIONS)
def test_fp32_is_not_rounded_to_tf32(shown, version):
    told = shown("build_plan(graph(), BuildOptions('fp32')); show(told=stub.told)", version)
    assert named(told["told"], "set_flag") == []
    assert len(named(told["told"], "clear_flag")) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_by_the_graph(shown, version):
    told = shown("build_plan(graph('int8'), BuildOptions('int8')); show(told=stub.told)", version)
    wanted = [] if version.startswith("11") else [[FLAGS["FP16"]], [FLAGS["INT8"]]]
    assert named(told["told"], "set_flag") == wanted
    assert named(told["told"], "algorithm") == []


def test_tensorrt_11_says_what_it_needs_instead(shown):
    told = shown(
        """
        show(half=attempt(lambda: build_plan(graph(), BuildOptions("fp16")))[1],
             told=attempt(lambda: build_plan(graph(), BuildOptions("int8", scales=known)))[1],
             found=attempt(lambda: build_plan(graph(), BuildOptions("int8", scales=pictures(16))))[1],
             builds=[call for call in stub.told if call[0] == "build_serialized_network"], live=stub.live())
        """,
        "11.4.0",
    )
    assert "give it the graph in FP16" in told["half"]
    assert "quantise/dequantise nodes" in told["told"]
    assert "quantise/dequantise nodes" in told["found"]
    assert told["builds"] == []
    assert told["live"] == 0


@pytest.mark.parametrize("version", WITH_CALIBRATORS)
def test_layers_that_are_kept_in_fp16(shown, version):
    told = shown(
        """
        options = BuildOptions("int8", scales=known, keep=("fc", "pool"))
        build_plan(graph(), options)
        before = list(stub.told)
        options = BuildOptions("int8", scales=known, keep=("fc", "nosuch"))
        show(told=before, wrong=attempt(lambda: build_plan(graph(), options))[1])
        """,
        version,
    )
    half = 1
    assert named(told["told"], "precision") == [["pool", half], ["fc", half]]
    assert len(named(told["told"], "set_flag")) == 3
    assert "no layer is called nosuch" in told["wrong"]


# --- calibration ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", WITH_CALIBRATORS)
def test_known_ranges_are_told_under_the_running_version(shown, version):
    told = shown(
        """
        built = build_plan(graph(), BuildOptions("int8", scales=known))
        cache = read_cache(stub.read)
        show(told=stub.told, read=stub.read, amax=cache.amax, batches=len(stub.seen), scales=built.scales)
        """,
        version,
    )
    header = {"8.6.1": "TRT-8601-", "10.3.0": "TRT-100300-", "10.16.1": "TRT-101601-"}[version]
    assert told["read"].startswith(header + "EntropyCalibration2\n")
    assert told["amax"] == pytest.approx({"crops": 255.0, "x:0": 1.5})
    assert told["batches"] == 0, "no picture is asked for"
    assert told["scales"] is None
    assert named(told["told"], "algorithm") == [[2]]
    assert len(named(told["told"], "set_calibration_profile")) == 1
    assert named(told["told"], "set_flag") == [[FLAGS["FP16"]], [FLAGS["INT8"]]]


@pytest.mark.parametrize("version", WITH_CALIBRATORS)
@pytest.mark.parametrize(("algorithm", "number"), [("EntropyCalibration2", 2), ("MinMaxCalibration", 3)])
def test_tensorrt_finds_ranges_with_every_full_batch(shown, version, algorithm, number):
    told = shown(
        f"""
        algorithm = {algorithm!r}
        lines = "TRT-1-" + algorithm, "crops: 40000000", "zero: 00000000", "a: b: 3f800000", ""
        stub.cache = "\\n".join(lines).encode()
        calibration = pictures(np.int64(14), batch=np.int64(4), algorithm=algorithm)
        built = build_plan(graph(), BuildOptions("int8", scales=calibration))
        want = [np.stack([np.full((16, 8, 3), n, np.uint8) for n in range(i, i + 4)]).tobytes()
                for i in (0, 4, 8)]
        show(told=stub.told, same=stub.seen == want, batches=len(stub.seen), amax=built.scales.amax,
             method=built.scales.method, model=built.scales.model_sha256 == digest, live=stub.live())
        """,
        version,
    )
    assert told["batches"] == 3, "the last two pictures fill no batch"
    assert told["same"], "every picture once, in order, in the memory of the GPU"
    assert named(told["told"], "batch") == [[4]]
    assert named(told["told"], "algorithm") == [[number]]
    calibration_profile = [shape for shape in named(told["told"], "set_shape") if shape[2] == 4]
    assert [shape[1:3] for shape in calibration_profile] == [[0, 4], [1, 4], [2, 4]]
    assert told["amax"] == pytest.approx({"a: b": 127.0, "crops": 254.0}), "a range of zero is none"
    assert told["method"] == {2: "entropy", 3: "minmax"}[number]
    assert told["model"]
    assert told["live"] == 0


@pytest.mark.parametrize("version", WITH_CALIBRATORS)
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("calibration = pictures(16, there=9)", "the calibration pictures ended in batch 3 of 4"),
        ("stub.batches = 2", "TensorRT calibrated with 2 of 4 batches"),
        ("stub.cache = b''", "gave no ranges back"),
        ("stub.cache = b'TRT-1-LegacyCalibration\\nx: 3f800000\\n'", "not a calibration cache"),
        ("stub.cache = b'TRT-1-EntropyCalibration2\\nx: 00000000\\n'", "no ranges"),
        ("calibration = broken(ValueError('boom'))", "ValueError: boom"),
        ("calibration = broken(KeyboardInterrupt())", "KeyboardInterrupt"),
        (
            "calibration = wrong(np.zeros((8, 16, 3), np.uint8))",
            r"expected \(16, 8, 3\) uint8, got \(8, 16, 3\)",
        ),
        ("calibration = wrong(np.zeros((16, 8, 3), np.float32))", "got .* float32"),
    ],
)
def test_what_goes_wrong_in_calibration_ends_in_an_error(shown, version, spoil, why):
    """TensorRT passes over an exception in an answer and builds all the same."""
    told = shown(
        """
        def broken(problem):
            def some():
                yield np.zeros((16, 8, 3), np.uint8)
                raise problem
            return Calibration(Pictures(16, "d", some), batch=4)

        def wrong(picture):
            return Calibration(Pictures(16, "d", lambda: iter([picture] * 16)), batch=4)

        stub.cache = b"TRT-1-EntropyCalibration2\\ncrops: 40000000\\n"
        calibration = pictures(16)
        SPOIL
        built, problem = attempt(lambda: build_plan(graph(), BuildOptions("int8", scales=calibration)))
        show(built=built is not None, problem=problem, live=stub.live())
        """.replace("SPOIL", spoil),
        version,
    )
    assert not told["built"]
    assert re.search(why, told["problem"]), told["problem"]
    assert told["live"] == 0
    assert "Exception caught in" not in told["stderr"], "nothing was thrown into TensorRT"


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_failures_say_why(shown, version):
    told = shown(
        """
        fp32 = BuildOptions("fp32")
        stub.parses = False
        unread = attempt(lambda: build_plan(graph(), fp32))[1]
        stub.parses, stub.plan = True, None
        unbuilt = attempt(lambda: build_plan(graph(), fp32))[1]
        show(unread=unread, unbuilt=unbuilt, live=stub.live())
        """,
        version,
    )
    assert "does not take reid" in told["unread"]
    assert told["unread"].count("no importer for operator Foo") == 2
    assert "EngineError: TensorRT could not build reid in FP32: stub: no tactic was found" in told["unbuilt"]
    assert told["live"] == 0


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_an_exception_in_progress_ends_the_build(shown, version):
    told = shown(
        """
        def stop(phase, done, total):
            phases.append(done)
            if done == 2:
                raise KeyboardInterrupt("enough")
        stub.steps = 100
        problem = attempt(lambda: build_plan(graph(), BuildOptions("fp32"), progress=stop))[1]
        show(problem=problem, phases=phases, live=stub.live())
        """,
        version,
    )
    assert told["problem"] == "KeyboardInterrupt: enough"
    assert told["phases"] == [0, 1, 2]
    assert told["live"] == 0


def test_progress_by_seconds_where_tensorrt_counts_no_steps(shown):
    told = shown(
        """
        b._TICK_S, stub.seconds = 0.05, 0.4
        build_plan(graph(), BuildOptions("fp32"), progress=progress)
        show(phases=phases)
        """,
        "8.6.1",
    )
    assert told["phases"]
    assert {(phase, total) for phase, _, total in told["phases"]} == {("building", 0)}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_timing_cache_that_does_not_fit_is_begun_anew(shown, version):
    told = shown(
        """
        built = build_plan(graph(), BuildOptions("fp32"), timing=b"of another GPU")
        show(told=stub.told, timing=built.timing)
        """,
        version,
    )
    assert named(told["told"], "create_timing_cache") == [["of another GPU"], [""]]
    assert told["timing"] == "timings"


def test_nothing_is_begun_without_memory(shown, tmp_path):
    told = shown(
        """
        root = Path(os.environ["ROOT"])
        (root / "proc").mkdir()
        (root / "proc/meminfo").write_text("MemAvailable: 500000 kB\\n")
        show(problem=attempt(lambda: build_plan(graph(), BuildOptions("fp32"), root=root))[1], told=stub.told)
        """,
        "10.3.0",
        ROOT=str(tmp_path),
    )
    assert "MiB of free memory, 488 MiB are free" in told["problem"]
    assert told["told"] == []


# --- accelerator ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_for_the_accelerator(shown, version):
    told = shown(
        """
        built = build_plan(graph(), BuildOptions("fp16", dla_core=1))
        many = attempt(lambda: build_plan(graph(), BuildOptions("fp16", dla_core=2)))[1]
        show(told=stub.told, facts=dict(built.facts), many=many)
        """,
        version,
    )
    dla = 1
    assert named(told["told"], "default_device_type")[0] == [dla]
    assert named(told["told"], "config_DLA_core")[0] == [1]
    assert named(told["told"], "set_flag") == [[FLAGS["GPU_FALLBACK"]], [FLAGS["FP16"]]]
    shapes = {tuple(shape[1:3]) for shape in named(told["told"], "set_shape")}
    assert shapes == {(which, batch) for which in (0, 1, 2) for batch in (1, 16, 64)}, "sizes are fixed"
    assert told["facts"]["dla"] == {"core": 1, "layers": 3, "on_gpu": ["pool"]}
    assert "there is no DLA core 2: this device has 2" in told["many"]


def test_where_tensorrt_knows_no_accelerator_the_gpu_is_taken_and_said(shown):
    told = shown("build_plan(graph(), BuildOptions('fp16', dla_core=0)); show(told=stub.told)", "10.16.1")
    assert named(told["told"], "default_device_type") == []
    assert named(told["told"], "set_flag") == [[FLAGS["FP16"]]]
    assert "dla_unavailable" in told["stderr"]


# --- supply -----------------------------------------------------------------------------------


SUPPLY = """
    from edge_agent.engine.tensorrt import TensorRTEngine
    folder = Path(os.environ["STATE"]) / "engines"
    store = PlanStore(folder, host="h")
    typed = b.bindings.major() >= 11
    prepared = graph("fp16" if typed else "fp32")
    def builder(**more):
        return PlanBuilder(store, prepared, BuildOptions("fp16"), progress=progress, **more)
    def builds():
        return sum(call[0] == "build_serialized_network" for call in stub.told)
    def reasons():
        return [json.loads(p.read_text())["why"] for p in sorted(folder.glob("quarantine/*-reason.json"))]
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_runs_what_was_built_once(shown, version, tmp_path):
    told = shown(
        SUPPLY
        + """
    def run():
        supply = builder(conditions=lambda: {"power_mode": "MAXN"})
        with TensorRTEngine(prepared, supply, max_batch=64) as engine:
            engine.buffer()[:17] = 1
            engine.submit(17)
            return engine.collect().tolist()
    first, again = run(), run()
    entry = store.entries(b.this_machine(), digests=True)[0]
    plan = builder().plan()
    show(rows=first == again == [[96.0] * 4] * 17, builds=builds(), verdict=entry.verdict, model=entry.model,
         machine=dict(entry.machine), timing=store.read_timing(b.this_machine()), facts=dict(plan.facts),
         batches=plan.batches, live=stub.live())
        """,
        version,
        STATE=str(tmp_path),
    )
    assert told["rows"]
    assert told["builds"] == 1
    assert (told["verdict"], told["model"]) == ("ok", "reid")
    assert told["machine"] == {
        "tensorrt": told["machine"]["tensorrt"], "driver": "12.6", "gpu": "Fake Orin",
        "compute_capability": "8.7", "multiprocessors": told["machine"]["multiprocessors"], "memory_gib": 32,
    }  # fmt: skip
    assert told["machine"]["tensorrt"].startswith(version)
    assert told["timing"] == "timings"
    assert told["facts"]["power_mode"] == "MAXN"
    assert told["batches"] == [1, 16, 64]
    assert told["live"] == 0


def test_a_plan_that_tensorrt_refuses_is_put_aside_and_built_again_once(shown, tmp_path):
    told = shown(
        SUPPLY
        + """
    store.put(builder().order(), b"a plan of yesterday", {"model": "reid"})
    with TensorRTEngine(prepared, builder(), max_batch=64):
        pass
    mended = builds(), reasons()
    store.put(builder().order(), b"a plan of yesterday", {"model": "reid"})
    stub.plan = b"no plan either"
    problem = attempt(lambda: TensorRTEngine(prepared, builder(), max_batch=64).__enter__())[1]
    supply = builder()
    plan = supply.plan()
    supply.rejected(plan, "first")
    twice = attempt(lambda: supply.rejected(plan, "second"))[1]
    show(mended=mended, problem=problem, twice=twice, reasons=reasons()[-2:], live=stub.live())
        """,
        "10.3.0",
        STATE=str(tmp_path),
    )
    builds, reasons = told["mended"]
    assert builds == 1
    assert len(reasons) == 1
    assert "not compatible with this version of TensorRT" in reasons[0]
    assert "cannot be used, though it was just made" in told["problem"]
    assert "was built again and cannot be used either: second" in told["twice"]
    assert told["reasons"] == ["first", "second"]
    assert told["live"] == 0


def test_no_build_without_disk(shown, tmp_path):
    told = shown(
        SUPPLY
        + """
    b._DISK_FLOOR = 1 << 60
    show(problem=attempt(lambda: builder().plan())[1], builds=builds(), there=folder.exists())
        """,
        "10.3.0",
        STATE=str(tmp_path),
    )
    assert "make room (edge-agent engines prune" in told["problem"]
    assert (told["builds"], told["there"]) == (0, False)
