"""The benchmarks: documents show the committed results, ratios are ratios, one failure stops nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from benchmarks import report, results
from benchmarks.__main__ import run
from benchmarks.catalogue import REPO, Benchmark, Step, catalogue
from benchmarks.plots import breaks_at, curve, slope
from benchmarks.slices import Taken, in_turn
from edge_agent.cli import app
from edge_agent.engine.simulated import latency_table
from edge_agent.offline.charts import Series

MISSING = Path("nowhere")


# --- documents ----------------------------------------------------------------------------------


def test_the_document_shows_the_committed_results() -> None:
    text, found = report.DOCUMENT.read_text(), results.read()
    assert text == report.spliced(text, found), "run `python -m benchmarks report`"
    for name, drawn in report.pictures(found).items():
        assert (report.PICTURES / name).read_text() == drawn, f"{name}: run `python -m benchmarks report`"
    assert not any(result["quick"] for result in found.values()), "results of --quick are none to keep"


def test_every_benchmark_has_a_place_in_the_document() -> None:
    places = re.findall(r"<!-- results: ([a-z0-9-]+) -->", report.DOCUMENT.read_text())
    assert sorted(places) == sorted(benchmark.name for benchmark in catalogue(MISSING, quick=False))


def test_a_result_without_a_table_of_its_own_shows_every_figure() -> None:
    reported = {
        "machine": {"cores": 2},
        "runs": [{"name": "a", "ms": {"p50": 1.23456}}, {"name": "b", "ms": {"p50": 2.0}}],
        "sizes": {"10": {"ms": 1}, "20": {"us": 5}},
        "list": [1, 2],
    }
    result = {
        "taken": "2026-01-09T07:30:00+00:00", "commit": None, "changed_since": False, "load_average": [0.5],
        "machine": {"cores": 2, "cpu": None, "platform": "Linux"},
        "steps": [{"point": {}, "result": reported}, {"point": {}, "failed": "it broke"}],
    }  # fmt: skip
    text = report.spliced("<!-- results: other -->\nold\n<!-- end -->\n", {"other": result})
    assert "runs:\n\n| | name | ms p50 |\n|---|---|---|\n| 1 | a | 1.235 |\n| 2 | b | 2 |" in text
    assert "sizes, 20:\n\n| figure | value |\n|---|---|\n| us | 5 |" in text
    assert "| list | 1 2 |" in text
    assert "cores |" not in text
    assert "2026-01-09, no commit; 2 cores of Linux" in text
    assert "Failed: it broke." in text
    assert "old" not in text


# --- what is run --------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, False])
def test_the_commands_exist(quick: bool) -> None:
    known = catalogue(MISSING, quick=quick)
    assert len({benchmark.name for benchmark in known}) == len(known)
    options = {option for parameter in get_command(app).commands["bench"].params for option in parameter.opts}
    for step in (step for benchmark in known for step in benchmark.steps):
        if step.words[:2] == ("edge_agent", "bench"):
            assert {word for word in step.words if word.startswith("--")} <= options | {"--pipeline"}
            engine = step.words[step.words.index("--engine") + 1]
            if engine.endswith(".json"):
                assert latency_table(str(REPO / engine.partition(":")[2])).rate(64) > 0


def test_a_failure_is_reported_and_the_rest_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.json").write_text('{"figure": 1}')
    good = Step({"n": 1}, ("json.tool", str(tmp_path / "good.json")), 60.0, prints=True)
    (tmp_path / "nan.json").write_text('{"figure": NaN}')
    endless = Step({}, ("timeit", "-n1", "-r1", "import time; time.sleep(60)"), 1.0, prints=True)
    wanted = [
        Benchmark("skips", "", (good,), needs=(MISSING,)),
        Benchmark("fails", "", (Step({}, ("json.tool", str(MISSING)), 60.0, prints=True),)),
        Benchmark("writes-nothing", "", (Step({}, ("platform",), 60.0),)),
        Benchmark("nan", "", (Step({}, ("json.tool", str(tmp_path / "nan.json")), 60.0, prints=True),)),
        Benchmark("slow", "", (endless, good)),
    ]
    folder = tmp_path / "results"
    folder.mkdir()
    assert run(wanted, folder, quick=True) == 1
    said = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.partition("\n\n")[2].splitlines() if line
    )
    assert said["skips"] == "skipped: nowhere is missing"
    assert "json.tool ended with " in said["fails"]
    assert "produced no result" in said["writes-nothing"]
    assert "NaN is not a result" in said["nan"]
    assert "timeit took more than 1 s" in said["slow"]
    assert [path.name for path in folder.iterdir()] == ["slow.json"]  # it has the good step's result
    reported = json.loads((folder / "slow.json").read_bytes())
    assert [step.get("result") for step in reported["steps"]] == [None, {"figure": 1}]
    assert reported["machine"]["cores"] >= 1
    assert reported["libraries"]["numpy"]


# --- ratios and curves --------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round() -> None:
    one = Taken((1.0, 4.0, 10.0), (1.0, 1.0, 1.0))
    other = Taken((2.0, 8.0, 30.0), (3.0, 2.0, 1.0))
    assert (other.wall_over(one), other.cpu_over(one)) == (2.0, 2.0)
    assert (one.wall, other.cpu) == (4.0, 2.0)


def test_all_take_turns() -> None:
    order: list[str] = []
    taken = in_turn({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert sorted(order) == sorted("abc" * 3)
    assert [sorted(order[at : at + 3]) for at in (0, 3, 6)] == [["a", "b", "c"]] * 3
    assert order[3] != order[6]  # another one begins
    assert all(len(one.wall_s) == len(one.cpu_s) == 2 for one in taken.values())


def test_a_slope_is_the_exponent() -> None:
    assert slope([(x, 3.0 * x**0.5) for x in (1, 2, 4, 8)]) == pytest.approx(0.5)
    assert slope([(1, 5.0)]) is None


@pytest.mark.parametrize(
    ("points", "where"),
    [
        ([(1, 0.8, 0.0), (2, 0.8, 0.0), (4, 0.75, 0.0)], None),  # 0.8 is the best: some are always refused
        ([(1, 0.8, 0.0), (2, 0.7, 0.0), (4, 0.8, 0.0)], 2),
        ([(4, 1.0, 0.5), (2, 1.0, 0.02), (1, 1.0, 0.005)], 2),
        ([], None),
    ],
)
def test_a_curve_breaks_where_less_is_embedded_or_frames_are_lost(
    points: list[tuple[float, float, float]], where: float | None
) -> None:
    assert breaks_at(points) == where


def test_a_picture_is_a_file_of_its_own() -> None:
    drawn = curve("cameras", "crops/s", [Series("embedded", "#26a", [(1, 100.0), (8, 700.0)])], 8)
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    assert "breaks at 8" in drawn


# --- comparison ------------------------------------------------------------------------------


def test_their_steps_give_our_embeddings(tmp_path: Path) -> None:
    from contextlib import ExitStack

    from benchmarks.peers import Network, open_peers
    from edge_agent.engine.models import prepare_model
    from tests import tiny_networks

    prepared, golden = prepare_model(tiny_networks.convolutional(tmp_path / "tiny.onnx"), "imagenet", None)
    random = np.random.default_rng(0)
    crops = [random.integers(0, 256, (height, 40, 3), np.uint8) for height in range(80, 87)]
    with ExitStack() as stack:
        peers, _ = open_peers(Network(prepared, golden, 1), 4, stack)
        ours, *theirs = [peer for peer in peers if peer.name == "edge-agent" or "steps" in peer.name]
        wanted = ours.embed(crops)
        assert len(theirs) == 2
        for peer in theirs:
            rows = peer.embed(crops)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            np.testing.assert_allclose(rows, wanted, atol=2e-3)
            assert peer.pack(crops).shape == (7, 3, *prepared.input_size)
        assert ours.pack(crops).shape == wanted.shape


def test_all_searches_find_the_same_people() -> None:
    from benchmarks.matching import decisions, open_people, searches

    with open_people(60, 3) as people:
        assert people.rows.shape == (180, 256)
        found, _ = searches(people, (1, 16), 1)
        reported = decisions(people, 1)
    assert {row["same_answers"] for row in found} == {1.0}
    assert {row["name"] for row in found} >= {"edge-agent", "scipy cdist"}
    assert reported["matched"] >= 1
    assert reported["plain_over_ours"] > 0
