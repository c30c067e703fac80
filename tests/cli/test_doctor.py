"""`edge-agent doctor`: every question on its own, and all of them together."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from edge_agent.cli import doctor
from edge_agent.cli.checks import Finding, configuration, machine
from edge_agent.cli.doctor import examine
from edge_agent.core.config import GallerySettings, Settings
from edge_agent.core.loading import load
from edge_agent.core.structures import EngineInfo
from edge_agent.gallery import Gallery
from edge_agent.health.telemetry.sysfs import SysfsReader
from tests import tiny_detectors
from tests.conftest import Mosquitto
from tests.health.test_telemetry import plant
from tests.kafka_broker import kafka_broker


def configure(folder: Path, **sections: str) -> Path:
    """A configuration whose state and model are in `folder`."""
    file = folder / "config.toml"
    text = f'state_dir = "{folder / "state"}"\n[engine]\nmodel = "colour-stripes"\n'
    for name, content in sections.items():
        text += f"[{name}]\n{content}\n"
    file.write_text(text)
    return file


def run(*words: object) -> tuple[int, str]:
    app = Typer()
    app.command()(doctor.command)
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout


def test_all_of_it_on_this_machine(tmp_path: Path) -> None:
    code, output = run("--config", configure(tmp_path), "--json")
    reported = json.loads(output)
    states = {finding["name"]: finding["state"] for finding in reported["findings"]}
    assert reported["ok"] is True
    assert code == 0
    for name in ("python", "package numpy", "opencv", "onnxruntime", "disk", "model"):
        assert states[name] == "ok", name
    assert states["state folder"] == states["gallery"] == states["broker"] == states["board"] == "note"
    assert not (tmp_path / "state").exists()  # looking changes nothing
    assert all(set(finding) == {"name", "state", "found", "advice"} for finding in reported["findings"])


def test_a_missing_requirement_makes_it_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe", lambda program: "crashes (SIGSEGV)")
    file = tmp_path / "config.toml"
    file.write_text("[gallery]\ncapcity = 3\n")
    code, output = run("--config", file)
    assert code == 1
    assert "capacity" in output  # the nearest valid name
    assert "SIGSEGV" in output
    assert "3 thing(s) missing" in output


def test_a_question_that_fails_does_not_silence_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Finding]:
        raise OSError("no /proc today")

    monkeypatch.setattr(machine, "clock", broken)
    monkeypatch.setattr(machine, "probe", lambda program: "not asked")
    steps: list[str] = []
    findings = examine(configure(tmp_path), root=tmp_path, step=steps.append)
    clock = next(finding for finding in findings if finding.name == "clock")
    assert clock.state == "warning"
    assert "no /proc today" in clock.found
    assert findings[-1].name == "fleet"
    assert steps[0] == "python"


# ---- libraries


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes (SIGSEGV)"),
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise SystemExit(3)", "no reason given"),
        ("print('noise on import', end=''); tell(version='1')", {"version": "1"}),
    ],
)
def test_a_library_may_crash_without_harm(program: str, found: object) -> None:
    assert machine.probe(program) == found


def test_a_library_may_hang_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE_TIMEOUT_S", 0.5)
    assert machine.probe("import time; time.sleep(60)") == "no answer in 0 s"


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.0.0", ">=1.21", True),
        ("1.9", ">=1.21", False),
        ("5.0.0.93", "<5,>=4.5", False),
        ("4.12.0.88", "<5,>=4.5", True),
        ("2.2.0rc1", "<3,>=2.1", True),
        ("3", "<3,>=2.1", False),
        ("1", "", True),
    ],
)
def test_version_bounds(version: str, wanted: str, fits: bool) -> None:
    assert machine.fits(version, wanted) is fits


def test_packages_that_are_absent_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.20.0", "scipy": "1.17.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    required = [
        "numpy>=1.21",
        "scipy>=1.8",
        "opencv-python<5,>=4.5",
        "rich>=13",
        'torch>=2; extra == "train"',
    ]
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    found = {finding.name: (finding.state, finding.advice) for finding in machine.packages()}
    assert found == {
        "package numpy": ("missing", 'pip install "numpy>=1.21"'),
        "package scipy": ("ok", ""),
        "package opencv-python": ("note", ""),  # JetPack's is no pip package
        "package rich": ("missing", 'pip install "rich>=13"'),
    }


def opencv(monkeypatch: pytest.MonkeyPatch, answer: Any, **where: bool) -> dict[str, str]:
    monkeypatch.setattr(machine, "probe", lambda program: answer)
    return {finding.name: finding.state + " " + finding.advice for finding in machine.opencv(**where)}


def test_opencv_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = {"version": "4.12", "file": "f", "gstreamer": False, "ffmpeg": True, "hog": True, "numpy": "2.2"}
    assert opencv(monkeypatch, wheel, on_board=False) == {"opencv": "ok "}
    assert "pip uninstall" in opencv(monkeypatch, wheel, on_board=True)["opencv gstreamer"]
    blind = wheel | {"ffmpeg": False, "hog": False}
    found = opencv(monkeypatch, blind, on_board=False)
    assert found["opencv hog"].startswith("missing")
    assert found["opencv video"].startswith("missing")
    clash = "ImportError: numpy.core.multiarray failed to import"
    assert "numpy<2" in opencv(monkeypatch, clash, on_board=True)["opencv"]


def test_a_failing_cuda_start_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvmap = tmp_path / "dev/nvmap"
    nvmap.parent.mkdir()
    nvmap.touch()
    answer = {"code": 999, "devices": 0, "version": 12060, "name": ""}
    monkeypatch.setattr(machine, "probe", lambda program: answer)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (finding,) = machine.cuda(tmp_path, on_board=True)
    assert finding.state == "missing"
    assert f"no access to {nvmap}" in finding.advice
    monkeypatch.undo()

    monkeypatch.setattr(machine, "probe", lambda program: answer | {"code": 0, "devices": 1, "name": "Orin"})
    assert machine.cuda(tmp_path, on_board=True) == [Finding("cuda", "ok", "Orin, driver for CUDA 12.6")]
    monkeypatch.setattr(machine, "probe", lambda program: answer | {"code": 100})
    (finding,) = machine.cuda(tmp_path, on_board=False)
    assert (finding.state, finding.advice) == ("note", "a GPU is not needed")


# ---- the device


@pytest.mark.parametrize(
    ("tree", "state", "found"),
    [
        ("agx-orin-jetpack5", "warning", "JetPack 5"),
        ("agx-orin-jetpack6", "ok", "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3 (JetPack 6)"),
        ("agx-orin-jetpack7", "ok", "L4T 39.2.0 (JetPack 7)"),
    ],
)
def test_boards(tree: str, state: str, found: str, tmp_path: Path) -> None:
    finding = machine.jetpack(SysfsReader(plant(tree, tmp_path)).read())
    assert finding.state == state
    assert found in finding.found


def test_thermals_and_power_mode(tmp_path: Path) -> None:
    hot = SysfsReader(plant("agx-orin-jetpack6", tmp_path / "hot")).read()
    (finding,) = machine.thermals(hot)
    assert finding.state == "warning"
    assert "gpu-throttle-alert" in finding.found
    assert "nvpmodel" in machine.power_mode(hot).advice

    cool = SysfsReader(plant("agx-orin-jetpack5", tmp_path / "cool")).read()
    assert machine.thermals(cool) == [Finding("thermals", "ok", "cpu 48.6 C")]
    assert machine.power_mode(cool).state == "ok"


def test_a_jetson_lacks_what_a_pc_need_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe", lambda program: "ModuleNotFoundError")
    root = plant("agx-orin-jetpack6", tmp_path / "root")
    states = {finding.name: finding.state for finding in examine(configure(tmp_path), root=root)}
    assert states["cuda"] == "missing"
    assert states["tensorrt"] == states["pycuda"] == "warning"
    assert states["jtop"] == "note"


def test_jtop_by_its_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/jtop.sock").touch()
    assert machine.jtop(tmp_path, on_board=True) == [Finding("jtop", "ok", "its service runs")]


def test_the_clock_can_be_asked() -> None:
    (finding,) = machine.clock()
    assert finding.found in {"synchronised", "not synchronised"}


# ---- what is configured


def settings(tmp_path: Path, **sections: str) -> Settings:
    return load(configure(tmp_path, **sections))


def test_state_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    assert configuration.state_folder(folder)[0] == Finding(
        "state folder", "note", f"{folder} will be created"
    )
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    assert configuration.state_folder(folder)[0].advice == f"chmod 700 {folder}"
    folder.chmod(0o700)
    assert configuration.state_folder(folder)[0] == Finding("state folder", "ok", str(folder))
    monkeypatch.setattr(configuration, "LITTLE_SPACE", 1 << 62)
    assert configuration.state_folder(folder)[1].state == "warning"
    monkeypatch.setattr(configuration, "NO_SPACE", 1 << 62)
    assert configuration.state_folder(folder)[1].state == "missing"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert configuration.state_folder(folder)[0].state == "missing"


def test_detectors_of_all_sources(tmp_path: Path) -> None:
    file = tiny_detectors.write(tmp_path / "net.onnx", tiny_detectors.deepstream())
    source = {"url": "a.avi", "id": "a", "detector": f"yolox:{file}"}
    other = {"url": "b.avi", "id": "b", "detector": f"end2end:{file}"}
    findings = configuration.detectors(Settings(sources=[source, other, {"url": "c.avi", "id": "c"}]))
    states = {finding.found.split(":")[0]: finding.state for finding in findings}
    assert states.pop(str(file) + " is not of kind yolox") == "missing"
    assert states == {"end2end": "ok", "hog": "warning"}


def test_what_hog_costs_is_measured() -> None:
    (finding,) = configuration.detectors(Settings())
    assert finding.state == "warning"
    assert re.match(r"hog: [1-9]\d* ms of CPU for a picture of 1280 x 720, measured now", finding.found)
    assert "nobody below 81 pixels" in finding.found
    assert finding.advice == "edge-agent model fetch yolox-nano"


def test_gallery_of_this_or_another_model(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    path = chosen.state_dir / "gallery.db"
    engine = EngineInfo("onnxruntime", "fp32", "m", "0" * 64, "space-a", 4, 64, "cpu")
    assert configuration.gallery(chosen, engine)[0].state == "note"
    with Gallery(path, GallerySettings(), space="space-a", dimension=4) as gallery:
        gallery.enrol(np.eye(4, dtype=np.float32)[:1], np.ones(1), origin="t", camera="c", time=1.0)
    assert (
        configuration.gallery(chosen, engine)[0].found == "1 of 10000 identities, 0 enrolled, space space-a"
    )
    other = EngineInfo("onnxruntime", "fp32", "m", "0" * 64, "space-b", 4, 64, "cpu")
    assert configuration.gallery(chosen, other)[0].state == "missing"
    assert configuration.gallery(chosen, None)[0].state == "ok"
    path.write_bytes(b"rubbish" * 1000)
    assert configuration.gallery(chosen, engine)[0].state == "missing"


def test_a_broker_is_asked_as_the_agent_would(tmp_path: Path, mosquitto: Mosquitto) -> None:
    chosen = settings(tmp_path, mqtt=f'broker = "{mosquitto.url}"')
    finding, names = configuration.broker(chosen)
    assert (names.name, names.state) == ("names", "ok")
    assert finding == Finding("broker", "ok", f"{mosquitto.url} accepts the connection")
    mosquitto.stop()
    finding, _ = configuration.broker(chosen)
    assert finding.state == "warning"
    assert "refused" in finding.found


def test_brokers_of_kafka(tmp_path: Path) -> None:
    def findings(**sections: str) -> list[Finding]:
        with_kafka = configure(tmp_path, **sections)
        return [one for one in configuration.kafka(load(with_kafka)) if one.name == "kafka"]

    detector = 'kind = "external"\nexternal_transport = "kafka"\nexternal_topics = ["boxes"]'
    copies = 'format = "json"\ntransport = "kafka"\ntopic = "copies"'
    assert findings() == []
    (unused,) = findings(kafka='brokers = ["127.0.0.1:9"]')
    assert unused.state == "note"
    with kafka_broker(1, ("boxes",)) as broker:
        kafka = f'brokers = ["{broker.brokers[0]}"]'
        reached, lacking = findings(kafka=kafka, detector=detector, metropolis=copies)
        assert (reached.state, reached.found) == ("ok", f"kafka://{broker.brokers[0]}: 1 broker(s)")
        assert (lacking.state, lacking.found) == ("warning", "there is no topic copies")
        broker.down()
        (away,) = findings(kafka=kafka, detector=detector)
        assert away.state == "warning"
        assert "Connection refused" in away.found
