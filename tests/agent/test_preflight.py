"""Files, folders and names of the settings are checked before a network is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.agent.preflight import all_problems, check_before_start
from edge_agent.core.config import Settings
from edge_agent.core.errors import ConfigError, InputError, SourceError
from edge_agent.source.opening import open_sources
from tests.agent.test_agent_faults import write_video


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi", 5)


def problems(**sections) -> list[str]:
    return [str(one) for one in all_problems(Settings.model_validate(sections))]


def test_everything_that_cannot_be_reached_is_listed(tmp_path: Path):
    found = problems(
        state_dir=tmp_path / "state",
        sources=[
            {"url": str(tmp_path / "none.mp4")},
            {"url": f"crops:{tmp_path / 'none'}"},
        ],
        detector={"kind": f"yolox:{tmp_path / 'd.onnx'}"},
        engine={"model": tmp_path / "m.onnx"},
        mqtt={"broker": "mqtts://no-such-host.invalid", "ca_file": tmp_path / "ca.pem"},
    )
    wanted = ("none.mp4", "none", "d.onnx", "m.onnx", "ca.pem", "no-such-host.invalid")
    assert len(found) == len(wanted)
    assert all(word in text for word, text in zip(wanted, found, strict=True)), found
    assert not (tmp_path / "state").exists()


def test_settings_without_problems(clip: Path, tmp_path: Path):
    (tmp_path / "crops").mkdir()
    sources = [{"url": str(clip)}, {"url": f"crops:{tmp_path / 'crops'}"}, {"url": "rtsp://192.0.2.1/x"}]
    assert problems(sources=sources, mqtt={"broker": "mqtt://127.0.0.1"}, state_dir=tmp_path / "s") == []
    assert problems() == []


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "empty"])
def test_a_source_that_is_no_video_file(tmp_path: Path, kind: str):
    path = tmp_path / "x.mp4"
    {"a folder": path.mkdir, "a named pipe": lambda: os.mkfifo(path), "empty": path.touch}[kind]()
    (text,) = problems(sources=[{"url": str(path)}], state_dir=tmp_path / "s")
    assert kind in text


def test_one_missing_recording_does_not_prevent_the_others(clip: Path, tmp_path: Path):
    def check(*urls: str, **sections) -> None:
        settings = Settings.model_validate(
            {"sources": [{"url": url} for url in urls], "state_dir": tmp_path / "s", **sections}
        )
        check_before_start(settings, open_sources(settings.sources, tmp_path))

    check(str(clip), str(tmp_path / "none.mp4"))
    check("rtsp://192.0.2.1/x", str(tmp_path / "none.mp4"))
    with pytest.raises(SourceError, match=r"none\.mp4"):
        check(str(tmp_path / "none.mp4"), f"crops:{tmp_path / 'none'}")
    with pytest.raises(InputError, match="detector"):
        check(str(clip), detector={"kind": f"yolox:{tmp_path / 'd.onnx'}"})
    with pytest.raises(ConfigError, match="broker"):
        check(str(clip), mqtt={"broker": "http://x"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "none.mp4"], "none.mp4"),
        (["--source", "clip.avi", "--detector", "yolox:none.onnx"], "none.onnx"),
        (["--source", "clip.avi", "--model", "none.onnx"], "none.onnx"),
        (["--source", "clip.avi", "--events", "none/e.jsonl"], "make it first"),
        (["--source", "clip.avi", "--report", "none/r.html"], "make it first"),
    ],
)
def test_the_run_reports_it_before_a_network_is_loaded(
    clip: Path, tmp_path: Path, arguments: list[str], message: str
):
    command = [sys.executable, "-X", "importtime", "-m", "edge_agent", "run", "--state", "s", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert " onnxruntime" not in done.stderr


def test_none_is_no_broker_in_a_file_too(tmp_path: Path):
    assert Settings.model_validate({"mqtt": {"broker": "none"}}).mqtt.broker is None


def test_kafka_and_copies_are_checked(clip: Path, tmp_path: Path):
    sources = [{"url": str(clip)}]
    external = {"kind": "external", "external_transport": "kafka", "external_topics": ["boxes"]}
    copies = {"format": "json", "topic": "copies"}
    common = {"sources": sources, "state_dir": tmp_path / "s"}
    assert "kafka.brokers names no broker" in problems(**common, detector=external)[0]
    assert "metropolis.transport is mqtt, but no broker" in problems(**common, metropolis=copies)[0]
    kafka = {"brokers": ["127.0.0.1:9092"], "tls": True, "ca_file": tmp_path / "ca.pem"}
    (text,) = problems(**common, detector=external, kafka=kafka)
    assert "ca.pem" in text
    kafka = {"brokers": ["127.0.0.1:9092"]}
    assert (
        problems(**common, detector=external, metropolis=copies | {"transport": "kafka"}, kafka=kafka) == []
    )
    (text,) = problems(**common, detector=external, kafka={"brokers": ["no-such-host.invalid:9092"]})
    assert "no-such-host.invalid" in text
