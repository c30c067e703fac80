"""The simulated engine: its contract, the times of its table, and its label in every output."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.status import configure_logs
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError, EngineError, InputError
from edge_agent.embed.opening import open_embedder
from edge_agent.engine import open_simulated
from edge_agent.engine.simulated import PUBLISHED, TABLES, LatencyTable, SimulatedEngine, latency_table

SLOW = LatencyTable("slow", "a snail", "fp16", "this test", (1, 4), (0.02, 0.05))


def crops(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 128, 3), dtype=np.uint8)


def embed(engine: SimulatedEngine, batch: np.ndarray) -> np.ndarray:
    engine.buffer()[: len(batch)] = batch
    engine.submit(len(batch))
    return engine.collect()


def people(count: int, seed: int = 1) -> np.ndarray:
    """Crops of a few large patches of colour, as clothes are."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 4, 2, 3), dtype=np.uint8)
    return np.repeat(np.repeat(colours, 64, axis=1), 64, axis=2)


def test_published_tables_have_the_published_rates() -> None:
    for row in PUBLISHED:
        table = next(t for t in TABLES.values() if t.device == row.device)
        assert table.rate(row.batch) == pytest.approx(row.images_per_second)
        # The card's latencies and rates do not agree in full: A30, 16 crops: 2.25 ms and 7445.72 a second.
        assert table.of(row.batch) * 1e3 == pytest.approx(row.latency_ms, rel=0.05)


def test_times_between_and_beyond_the_known_batches() -> None:
    orin = TABLES["orin-fp16"]
    assert orin.of(1) < orin.of(2) < orin.of(16) < orin.of(40) < orin.of(64) < orin.of(65)
    assert orin.of(40) == pytest.approx((orin.of(16) + orin.of(64)) / 2)
    assert orin.rate(128) == pytest.approx(orin.rate(64))
    only = LatencyTable("t", "d", "int8", "s", (8,), (0.01,))
    assert only.of(1) == only.of(8) == 0.01


def test_what_if_file(tmp_path: Path) -> None:
    file = tmp_path / "orin-int8.json"
    reported = {
        "device": "Orin",
        "precision": "int8",
        "source": "a guess",
        "latency_ms": {"64": 14.4, "1": 0.7},
    }
    file.write_text(json.dumps(reported))
    table = latency_table(str(file))
    assert (table.name, table.precision, table.batches) == ("orin-int8", "int8", (1, 64))
    assert table.of(64) == pytest.approx(0.0144)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": None}, "no device"),
        ({"precision": "mixed"}, "fp32, fp16, int8"),
        ({"latency_ms": {}}, "latency_ms must map"),
        ({"latency_ms": {"0": 1.0}}, "latency_ms must map"),
        ({"latency_ms": {"1": -1.0}}, "latency_ms must map"),
        ({"latency_ms": {"one": 1.0}}, "latency_ms must map"),
        ({"latency_ms": [1.0]}, "latency_ms must map"),
    ],
)
def test_a_file_that_is_no_table(change: dict[str, object], words: str, tmp_path: Path) -> None:
    reported = {
        "device": "Orin",
        "precision": "int8",
        "source": "a guess",
        "latency_ms": {"1": 0.7},
        **change,
    }
    file = tmp_path / "table.json"
    file.write_text(json.dumps({key: value for key, value in reported.items() if value is not None}))
    with pytest.raises(InputError, match=words):
        latency_table(str(file))


def test_unknown_table() -> None:
    with pytest.raises(ConfigError, match="orin-fp16, a10-mixed, a30-mixed"):
        open_simulated("simulated:orin", max_batch=8)


def test_contract_of_engines() -> None:
    with open_simulated("simulated:orin-fp16", max_batch=4) as engine:
        first, second = crops(3, 1), crops(4, 2)
        alone = embed(engine, first), embed(engine, second)
        buffers = {id(engine.buffer())}
        engine.buffer()[:3] = first
        engine.submit(3)
        buffers.add(id(engine.buffer()))
        engine.buffer()[:4] = second
        engine.submit(4)
        assert (engine.in_flight, len(buffers)) == (2, 2)
        with pytest.raises(EngineError, match="2 batches are in flight"):
            engine.buffer()
        np.testing.assert_array_equal(engine.collect(), alone[0])
        kept = engine.collect()
        np.testing.assert_array_equal(kept, alone[1])
        embed(engine, first)
        np.testing.assert_array_equal(kept, alone[1])
        with pytest.raises(EngineError, match="nothing was submitted"):
            engine.collect()
        for count in (0, -1, 5):
            with pytest.raises(EngineError, match="1 to 4 pictures"):
                engine.submit(count)
        assert (engine.runs, engine.failures) == (5, 0)
    with pytest.raises(EngineError, match="not running"):
        engine.buffer()
    with engine:
        np.testing.assert_array_equal(embed(engine, first), alone[0])


def test_batches_run_one_after_another_and_take_their_time() -> None:
    with SimulatedEngine(SLOW, max_batch=4) as engine:
        began = time.monotonic()
        engine.submit(4)
        engine.submit(4)
        assert time.monotonic() - began < 0.05  # both submissions returned at once
        engine.collect()
        assert time.monotonic() - began >= 0.05
        engine.collect()
        assert time.monotonic() - began >= 0.1
        assert engine.run_seconds == pytest.approx(0.1)


def test_rows_are_of_length_1_and_keep_people_apart() -> None:
    with open_simulated("simulated:a30-mixed", max_batch=64) as engine:
        shown = people(30)
        rows = embed(engine, shown)
        again = embed(engine, np.roll(shown, 6, axis=2) // 2 + 40)  # moved a little, and in other light
        flat = embed(
            engine, np.stack([np.full((256, 128, 3), grey, np.uint8) for grey in (0, 127, 128, 255)])
        )
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([rows, again, flat]), axis=1), 1.0, atol=1e-5)
    cosine = rows @ again.T
    assert (cosine.argmax(axis=1) == np.arange(30)).all()


def test_its_space_is_its_own_and_the_same_for_every_table() -> None:
    spaces = {open_simulated(f"simulated:{name}", max_batch=1).info.space for name in TABLES}
    assert len(spaces) == 1
    info = open_simulated("simulated:orin-fp16", max_batch=8).info
    assert (info.backend, info.precision, info.max_batch) == ("simulated:orin-fp16", "fp16", 8)
    assert "simulated" in info.model
    assert "simulated" in info.device


@pytest.mark.parametrize("named", [{"model": "reid.onnx"}, {"preprocess": "tao"}, {"precision": "int8"}])
def test_a_second_network_in_the_folder_is_refused(named: dict[str, str], tmp_path: Path) -> None:
    settings = Settings.model_validate({"engine": {"backend": "simulated:orin-fp16", **named}})
    with pytest.raises(ConfigError, match="runs no network"):
        open_embedder(settings.engine, settings.quality, tmp_path)


def test_every_event_and_log_line_names_it(tmp_path: Path, vtest_video: Path) -> None:
    settings = Settings.model_validate(
        {
            "engine": {"backend": "simulated:orin-fp16"},
            "sources": [{"url": str(vtest_video), "id": "a"}],
            "identify": {"decide_crops": 1, "enrol_crops": 1},
            "state_dir": tmp_path / "state",
        }
    )
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        configure_logs(settings)
    stop = threading.Event()
    agent = Agent(
        settings, Outputs(events=tmp_path / "events"), observe=lambda seen: seen.decisions and stop.set()
    )
    agent.run(stop)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    reported = [event["data"] for event in events if "identity" in event["type"]]
    assert reported
    assert all(data["simulated"] and data["model"]["backend"] == "simulated:orin-fp16" for data in reported)
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert lines
    assert all(line["engine"] == "simulated:orin-fp16" for line in lines)
    assert "no_network_runs" in {line["event"] for line in lines}
