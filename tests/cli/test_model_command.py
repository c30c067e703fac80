"""`edge-agent model`: networks fetched by name and address, from files, added, and listed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.agent.preflight import check_before_start
from edge_agent.cli import app
from edge_agent.cli.checks.configuration import detectors
from edge_agent.core.errors import ConfigError, DownloadError, InputError, ModelError
from edge_agent.core.installed import chosen_detector, model_folders
from edge_agent.core.loading import load
from edge_agent.core.published import PUBLISHED
from edge_agent.detect.opening import open_detection
from edge_agent.engine.graph.stripes import write_stripe_model
from tests import tiny_detectors
from tests.web_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as reported:
        yield reported


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    write_stripe_model(path)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[[sources]]\nurl = "a.avi"  # the gate\n'
        '[engine] # fast\npreprocess = "swin"\nmax_batch = 8\n[mqtt]\nsite = "lab"\n'
    )
    path.chmod(0o640)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_fetch_then_use(server: Server, network: Path, settings: Path, tmp_path: Path) -> None:
    server.body = network.read_bytes()
    digest = hashlib.sha256(server.body).hexdigest()
    folder = tmp_path / "models"
    with pytest.raises(InputError, match="needs NAME or --sha256"):
        run("model", "fetch", "--url", server.url, "--output", folder)
    assert server.asked == []
    words = ("--url", server.url, "--sha256", digest, "--output", folder, "--preprocess", "imagenet")
    code, output = run("model", "fetch", *words, "--use", settings)
    assert code == 0
    assert digest in output
    manifest = json.loads((folder / "net.json").read_text())
    assert manifest["preprocess"] == "imagenet"
    assert manifest["files"]["net.onnx"]["sha256"] == digest
    assert "secret" not in json.dumps(manifest)
    after = load(settings)
    assert after.engine.model == folder / "net.onnx"
    assert (after.engine.preprocess, after.engine.max_batch, after.mqtt.site) == (None, 8, "lab")
    assert "# the gate" in settings.read_text()
    assert settings.stat().st_mode & 0o777 == 0o640


def test_add_reads_the_profile_from_the_manifest_next_to_the_file(network: Path, tmp_path: Path) -> None:
    network.with_suffix(".json").write_text('{"preprocess": "imagenet"}')
    for _ in range(2):
        code, output = run("model", "add", network, "--output", tmp_path / "models")
        assert code == 0
    assert f'model = "{tmp_path / "models" / "net.onnx"}"' in output
    assert json.loads((tmp_path / "models" / "net.json").read_text())["preprocess"] == "imagenet"


def test_a_file_that_is_no_network_is_refused_and_nothing_changes(tmp_path: Path, settings: Path) -> None:
    (tmp_path / "page.onnx").write_text("<html>")
    before = settings.read_text()
    with pytest.raises(ModelError):
        run("model", "add", tmp_path / "page.onnx", "--output", tmp_path / "models", "--use", settings)
    assert not (tmp_path / "models").exists()
    assert settings.read_text() == before


def test_settings_without_the_section_get_one(network: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("log_level = 'warning'\n")
    run("model", "add", network, "--output", tmp_path / "models", "--use", path)
    assert load(path).engine.model == tmp_path / "models" / "net.onnx"
    assert load(path).log_level == "warning"


def test_the_documented_address_and_digest() -> None:
    """As on the page of the model in NVIDIA's catalogue; the same digest is in docs/training.md."""
    network = PUBLISHED["reidentificationnet"]
    assert "nvidia/team/tao/reidentificationnet/deployable_v1.2" in network.url
    assert re.fullmatch(r"[0-9a-f]{64}", network.sha256 or "")


# --- detectors ----------------------------------------------------------------------------------


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    """A small YOLOX that is published as yolox-nano, at `server`, and not installed."""
    path = tiny_detectors.write(tmp_path / "published.onnx", tiny_detectors.yolox())
    server.body = path.read_bytes()
    digest = hashlib.sha256(server.body).hexdigest()
    known = PUBLISHED["yolox-nano"]
    monkeypatch.setitem(
        PUBLISHED, known.name, replace(known, url=server.url, sha256=digest, bytes=len(server.body))
    )
    monkeypatch.setenv("EDGE_AGENT__STATE_DIR", str(tmp_path / "state"))
    return path


def test_a_fetched_detector_is_the_default_from_then_on(
    detector: Path, server: Server, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    assert chosen_detector("auto", state) == "hog"
    code, output = run("model", "fetch", "yolox-nano")
    assert code == 0
    assert "licence Apache-2.0" in output
    assert "detector.kind is auto, the default, use it" in output
    file = state / "models" / "yolox_nano.onnx"
    assert file.read_bytes() == detector.read_bytes()
    assert chosen_detector("auto", state) == f"yolox:{file}"
    assert chosen_detector("hog", state) == "hog"
    asked = len(server.asked)
    code, output = run("model", "fetch", "yolox-nano")
    assert "is there already, with the right digest" in output
    assert len(server.asked) == asked


def test_the_agent_runs_the_fetched_detector(detector: Path, tmp_path: Path) -> None:
    run("model", "fetch", "yolox-nano")
    settings = load(Path(os.devnull))
    with contextlib.ExitStack() as stack:
        cameras = {"a": None, "b": "auto", "c": "hog"}
        assert open_detection(settings, stack, cameras=cameras).name == "hog+yolox:yolox_nano"
    (finding,) = detectors(settings)
    assert (finding.state, finding.found) == ("ok", "yolox:yolox_nano")
    check_before_start(settings, [])


def test_a_detector_from_a_file(detector: Path, server: Server, tmp_path: Path) -> None:
    code, _ = run("model", "fetch", "yolox-nano", "--from", detector)
    assert code == 0
    assert server.asked == []
    assert chosen_detector("auto", tmp_path / "state").startswith("yolox:")
    manifest = json.loads((tmp_path / "state" / "models" / "detector.json").read_text())
    assert manifest["data"] == {"name": "yolox-nano", "kind": "yolox", "source": str(detector)}


def test_another_file_needs_its_digest(detector: Path, tmp_path: Path) -> None:
    other = tiny_detectors.write(tmp_path / "other.onnx", tiny_detectors.yolox(classes=7))
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"has sha256 {digest} instead of [0-9a-f]{{64}}.*--sha256 {digest}"):
        run("model", "fetch", "yolox-nano", "--from", other)
    assert names(tmp_path / "state" / "models") == []
    code, _ = run("model", "fetch", "yolox-nano", "--from", other, "--sha256", digest)
    assert code == 0
    assert chosen_detector("auto", tmp_path / "state") != "hog"
    code, output = run("model", "list")
    assert re.search(r"yolox-nano .* \(default\)", output)


def test_a_network_of_another_kind_is_not_made_the_default(detector: Path, tmp_path: Path) -> None:
    other = tiny_detectors.write(tmp_path / "other.onnx", tiny_detectors.yolov8())
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match="is not of kind yolox"):
        run("model", "fetch", "yolox-nano", "--from", other, "--sha256", digest)
    assert chosen_detector("auto", tmp_path / "state") == "hog"


def test_a_relative_state_folder(detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_AGENT__STATE_DIR", "state")
    _, output = run("model", "fetch", "yolox-nano")
    assert "agents of this user whose detector.kind is auto" in output
    assert chosen_detector("auto", Path("state")) == "yolox:state/models/yolox_nano.onnx"


def test_a_mirror_gives_the_published_file(detector: Path, server: Server, tmp_path: Path) -> None:
    mirror = server.url.replace("net.onnx", "mirrored")
    code, _ = run("model", "fetch", "yolox-nano", "--url", mirror)
    assert code == 0
    server.body = b"another"
    with pytest.raises(DownloadError):
        run("model", "fetch", "yolox-nano", "--url", mirror, "--output", tmp_path / "elsewhere")


def test_no_network_shows_the_address_and_the_other_way(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = PUBLISHED["yolox-nano"]
    monkeypatch.setitem(PUBLISHED, known.name, replace(known, url="http://models.invalid/yolox_nano.onnx"))
    words = ["model", "fetch", "yolox-nano"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, DownloadError)
    assert "published at http://models.invalid/yolox_nano.onnx" in result.output
    assert "edge-agent model fetch yolox-nano --from FILE" in result.output


def test_peoplenet_is_not_fetched_unverified(server: Server, tmp_path: Path) -> None:
    """Its publisher states no digest; what arrives first must not become the right one."""
    result = CliRunner().invoke(app, ["model", "fetch", "peoplenet", "--output", str(tmp_path / "models")])
    assert isinstance(result.exception, InputError)
    assert "--from FILE --sha256 DIGEST" in str(result.exception)
    assert f"published at {PUBLISHED['peoplenet'].url}" in result.output
    assert not (tmp_path / "models").exists()
    file = tiny_detectors.write(tmp_path / "people.onnx", tiny_detectors.peoplenet())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    words = ("--from", file, "--sha256", digest.upper(), "--output", tmp_path / "models")
    code, output = run("model", "fetch", "peoplenet", *words)
    assert code == 0
    assert f"--detector peoplenet:{tmp_path / 'models' / 'resnet34_peoplenet.onnx'}" in output


def test_a_detector_is_named_in_the_settings(detector: Path, settings: Path, tmp_path: Path) -> None:
    run("model", "fetch", "yolox-nano", "--use", settings, "--output", tmp_path / "models")
    after = load(settings)
    assert after.detector.kind == f"yolox:{tmp_path / 'models' / 'yolox_nano.onnx'}"
    assert (after.engine.preprocess, after.engine.max_batch, after.mqtt.site) == ("swin", 8, "lab")


def test_damage_is_an_error_and_never_hog_in_silence(detector: Path, tmp_path: Path) -> None:
    run("model", "fetch", "yolox-nano")
    state = tmp_path / "state"
    file, manifest = state / "models" / "yolox_nano.onnx", state / "models" / "detector.json"
    good, stated = file.read_bytes(), manifest.read_text()
    file.write_bytes(good[:-1])
    with pytest.raises(ConfigError, match=r"is not the file that its manifest describes.*fetch it again"):
        chosen_detector("auto", state)
    (finding,) = detectors(load(Path(os.devnull)))
    assert finding.state == "missing"
    with pytest.raises(ConfigError, match="fetch it again"):
        check_before_start(load(Path(os.devnull)), [])
    code, output = run("model", "list")
    assert code == 0
    assert "fetch it again" in output
    with contextlib.ExitStack() as stack:  # a detector that nobody uses may be damaged
        assert open_detection(load(Path(os.devnull)), stack, cameras={"a": "none"}).name == "none"
    file.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        chosen_detector("auto", state)
    file.write_bytes(good)
    bad = ["", "{}", "[]", stated.replace("yolox_nano.onnx", "../yolox_nano.onnx"), "null"]
    bad += [stated.replace('"kind": "yolox"', f'"kind": {other}') for other in ('"hog"', "3", '["yolox"]')]
    bad.append(re.sub(r'"files": {[^}]*}\s*}', '"files": {}', stated))
    for text in bad:
        manifest.write_text(text)
        with pytest.raises(ConfigError, match="fetch it again"):
            chosen_detector("auto", state)
    code, _ = run("model", "fetch", "yolox-nano")
    assert chosen_detector("auto", state) == f"yolox:{file}"


def test_the_folder_of_the_service_comes_first(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What root installed cannot be replaced by the service; the other folder is for other states."""
    service, own = tmp_path / "etc", tmp_path / "home"
    monkeypatch.setattr("edge_agent.core.installed.SYSTEM_FOLDER", service)
    monkeypatch.setattr("edge_agent.core.installed.DEFAULT_STATE", own)
    run("model", "fetch", "yolox-nano", "--output", own / "models")
    assert chosen_detector("auto", tmp_path / "any") == f"yolox:{own / 'models' / 'yolox_nano.onnx'}"
    run("model", "fetch", "yolox-nano", "--output", service)
    _, output = run("model", "fetch", "yolox-nano", "--output", tmp_path / "state" / "models")
    assert f"by default yolox:{service / 'yolox_nano.onnx'} is used" in output
    assert chosen_detector("auto", tmp_path / "state") == f"yolox:{service / 'yolox_nano.onnx'}"


def test_folders_that_this_user_may_not_enter_are_left_out(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the service, for another user of the machine."""
    service = tmp_path / "etc"
    monkeypatch.setattr("edge_agent.core.installed.SYSTEM_FOLDER", service)
    run("model", "fetch", "yolox-nano", "--output", service)
    assert model_folders(tmp_path / "any") == (service,)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != service and allowed(path, mode))
    assert chosen_detector("auto", tmp_path / "any") == "hog"


def test_the_list_in_json(detector: Path, network: Path, tmp_path: Path) -> None:
    run("model", "fetch", "yolox-nano")
    run("model", "add", network, "--preprocess", "imagenet")
    _, output = run("model", "list", "--json")
    found = json.loads(output)
    assert found["detector"] == "auto"
    assert found["detector_in_use"] == f"yolox:{tmp_path / 'state' / 'models' / 'yolox_nano.onnx'}"
    rows = {row["name"]: row for row in found["networks"]}
    assert [*PUBLISHED, "net.onnx"] == list(rows)
    assert rows["yolox-nano"]["default"]
    assert not any(row["default"] for name, row in rows.items() if name != "yolox-nano")
    assert rows["peoplenet"]["file"] is None


def test_folders_that_cannot_be_made(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(InputError, match=r"cannot be created: .*--output"):
            run("model", "fetch", "yolox-nano", "--output", folder)


def test_wrong_usage() -> None:
    for words in (
        ("fetch", "--from", "x.onnx"),
        ("fetch", "yolox-nano", "--from", "x.onnx", "--url", "http://h/x.onnx"),
        ("fetch", "yolox-nano", "--preprocess", "imagenet"),
    ):
        assert run("model", *words)[0] == 2
    with pytest.raises(InputError, match="there are yolox-nano, yolox-tiny, peoplenet"):
        run("model", "fetch", "yolo-nano")


def test_published_networks_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for one in PUBLISHED.values():
        assert one.name in text
        assert one.licence in text
        assert one.sha256 is None or one.sha256 in text
        assert one.url.startswith("https://")
