"""Answers that a server should not give, logins, and starts without a server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pydantic import ValidationError

from edge_agent.cli.checks import configuration
from edge_agent.core.config import EngineSettings, QualitySettings, Settings
from edge_agent.core.errors import ConfigError, EngineError, EngineUnavailable, ModelError
from edge_agent.core.loading import load, secret_files
from edge_agent.core.served import parse_served
from edge_agent.core.setting_secrets import secrets_of
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.opening import open_embedder
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph
from edge_agent.engine.triton import contract, engine
from tests import tiny_networks
from tests.conftest import find_free_port
from tests.faults import certificates
from tests.kserve.fake import Fake, serving

Open = Callable[..., Embedder]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    file = tiny_networks.reid(tmp_path_factory.mktemp("network") / "net.onnx")
    return prepare_reid(file, PROFILES["tao"])


@pytest.fixture
def fake(prepared: PreparedGraph) -> Fake:
    return Fake(prepared)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RETRY_S", (0.05, 0.1))


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Return an embedder on the fake; it is not entered."""

    def make(port: int, *, scheme: str = "triton", patient: bool = False, **settings: Any) -> Embedder:
        backend = f"{scheme}:localhost:{port}/reid"
        chosen = EngineSettings.model_validate({"backend": backend, "triton_timeout_ms": 1000, **settings})
        return open_embedder(chosen, QualitySettings(), tmp_path / "state", patient=patient)

    return make


def people(count: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (200, 90, 3), dtype=np.uint8) for _ in range(count)]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_back(embedder: Embedder) -> np.ndarray:
    def works() -> bool:
        try:
            embedder.embed_images(people())
        except EngineUnavailable:
            return False
        return True

    wait_for(works)
    return embedder.embed_images(people())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"the server gave float32 \[2, 8\], expected float32 \[3, 8\]"),
        (lambda rows: np.concatenate([rows, rows]), r"float32 \[6, 8\]"),
        (lambda rows: rows[:, :4], r"float32 \[3, 4\]"),
        (lambda rows: rows.astype(np.float64), "gave float64"),
        (lambda rows: rows.reshape(-1), r"float32 \[24\]"),
    ],
)
def test_other_rows_than_expected_are_dropped(
    fake: Fake, opened: Open, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    with serving(fake) as port, opened(port) as there:
        before = there.embed_images(people())
        fake.change = change
        with pytest.raises(EngineUnavailable, match=message):
            there.embed_images(people())
        with pytest.raises(EngineUnavailable):
            there.embed_images(people())
        fake.change = lambda rows: rows
        np.testing.assert_allclose(until_back(there), before, atol=1e-6)
        assert there.engine.failures >= 2


def test_a_row_that_is_not_finite_is_no_embedding(fake: Fake, opened: Open) -> None:
    with serving(fake) as port, opened(port) as there:
        fake.change = lambda rows: np.where(np.arange(len(rows))[:, None] == 1, np.nan, rows).astype("f4")
        with pytest.raises(EngineError, match="non-finite embedding for picture 1"):
            there.embed_images(people())
        assert there.engine.failures == 0


def test_another_version_of_the_same_network_is_tested_and_then_used(fake: Fake, opened: Open) -> None:
    with serving(fake) as port, opened(port) as there:
        before = there.embed_images(people())
        fake.version = "2"
        with pytest.raises(EngineUnavailable, match="from version 1 of the model to 2"):
            there.embed_images(people())
        np.testing.assert_array_equal(until_back(there), before)


def test_another_network_is_not_used_until_it_is_gone(fake: Fake, opened: Open) -> None:
    """The self-test notices other rows, even where the server states the same network."""
    heard: list[str] = []
    with serving(fake) as port, opened(port) as there:
        before = there.embed_images(people())
        there.engine.on_problem = heard.append
        fake.version, fake.change = "2", lambda rows: np.ascontiguousarray(rows[:, ::-1])
        with pytest.raises(EngineUnavailable):
            there.embed_images(people())
        wait_for(lambda: there.engine.problem)
        assert "differs from its reference" in there.engine.problem
        with pytest.raises(EngineUnavailable, match="differs from its reference"):
            there.embed_images(people())
        fake.change = lambda rows: rows
        fake.shape = (-1, 128, 64, 3)
        wait_for(lambda: "takes pictures of 64 x 128" in there.engine.problem)
        fake.shape, fake.parameters = (-1, 256, 128, 3), {contract.SPACE: "0123456789abcdef"}
        wait_for(lambda: "cannot be compared" in there.engine.problem)
        fake.parameters = {}
        np.testing.assert_array_equal(until_back(there), before)
        assert heard[-1] == ""
        assert all(heard[:-1])


def test_a_late_answer_is_never_that_of_another_batch(fake: Fake, opened: Open) -> None:
    with serving(fake) as port, opened(port, triton_timeout_ms=300) as there:
        fake.gate.clear()
        with pytest.raises(EngineUnavailable, match=r"no answer within 0\.3 s \(engine\.triton_timeout_ms\)"):
            there.embed_images(people())
        wait_for(lambda: there.engine.problem)  # the self-test gets no answer either
        fake.gate.set()
        rows = until_back(there)
        np.testing.assert_array_equal(there.embed_images(people()[::-1]), rows[::-1])


def test_servers_without_a_configuration_need_the_model_of_the_settings(fake: Fake, opened: Open) -> None:
    fake.has_config = False
    with serving(fake) as port:
        with pytest.raises(ConfigError, match="name the ONNX file of this network"):
            opened(port)
        with opened(port, model=fake.prepared.source, preprocess="tao") as there:
            assert there.info.space == fake.prepared.space
            assert there.embed_images(people(20)).shape == (20, 8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({contract.SPACE: "0123456789abcdef", contract.PROFILE: "tao"}, "does not follow from"),
        ({contract.SPACE: "0123456789abcdef", contract.PROFILE: "own"}, "not a known profile"),
        ({contract.SPACE: "x", contract.PROFILE: "tao", contract.CARD: "[" * 9999}, "does not follow"),
    ],
)
def test_a_statement_must_be_consistent(
    fake: Fake, opened: Open, parameters: dict[str, str], message: str
) -> None:
    fake.parameters = parameters
    with serving(fake) as port, pytest.raises(ModelError, match=message):
        opened(port)


@pytest.mark.parametrize(
    "shape", [(), (-1,), (-1, 3, 256, 128), (16, 256, 128, 3), (-1, 10**6, 10**6, 3), (-1, 0, 5, 3)]
)
def test_inputs_that_cannot_be_filled_are_refused(fake: Fake, opened: Open, shape: tuple[int, ...]) -> None:
    fake.shape = shape
    with serving(fake) as port, pytest.raises(ModelError, match="reid on localhost"):
        opened(port)


def test_tls_and_token(fake: Fake, opened: Open, tmp_path: Path) -> None:
    found = certificates.make(tmp_path / "certificates").folder
    credentials = grpc.ssl_server_credentials(
        [((found / "server.key").read_bytes(), (found / "server.pem").read_bytes())],
        root_certificates=(found / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    own = {"triton_ca_file": found / "ca.pem", "triton_token": "a-token-of-the-gate"}
    pair = {"triton_cert_file": found / "jx01.pem", "triton_key_file": found / "jx01.key"}
    with serving(fake, credentials) as port:
        with opened(port, scheme="tritons", **own, **pair) as there:
            assert there.embed_images(people()).shape == (3, 8)
        assert set(fake.tokens) == {"Bearer a-token-of-the-gate"}
        fake.refuses = True
        with pytest.raises(ConfigError, match=r"refuses the login: UNAUTHENTICATED: no valid token\\x1b"):
            opened(port, scheme="tritons", **own, **pair)
        with pytest.raises(EngineUnavailable):  # no client certificate
            opened(port, scheme="tritons", **own)
        with pytest.raises(EngineUnavailable):  # not encrypted
            opened(port)
        missing = {**pair, "triton_key_file": tmp_path / "nowhere.pem"}
        with pytest.raises(ConfigError, match=r"nowhere\.pem"):
            opened(port, scheme="tritons", **own, **missing)
        (garbage := tmp_path / "garbage.pem").write_text("garbage")
        for name in ("triton_ca_file", "triton_cert_file", "triton_key_file"):
            with pytest.raises(ConfigError, match=rf"{name} \S*garbage\.pem.*PEM"):
                opened(port, scheme="tritons", **{**own, **pair, name: garbage})


def test_a_token_that_a_proxy_repeats_is_not_shown(fake: Fake, opened: Open) -> None:
    fake.refusal = "no such user: " + 470 * "." + "{}" + 5000 * "."  # also where it is cut
    with serving(fake) as port, pytest.raises(EngineUnavailable, match="no such user") as refused:
        opened(port, triton_token="sixteen-or-more-letters")
    assert fake.tokens == ["Bearer sixteen-or-more-letters"]
    assert "sixteen" not in str(refused.value)


def test_settings_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("triton:a.b:1/m", "tritons:[::1]:8001/re_id-2.0/3"):
        assert EngineSettings(backend=address).backend == address
    for host, here in (("[::1]", True), ("127.0.0.2", True), ("127.example.org", False), ("[::2]", False)):
        assert parse_served(f"triton:{host}:1/m").is_loopback is here
    for text in (
        "triton:",
        "triton:h/m",
        "triton:h:0/m",
        "triton:h:70000/m",
        "triton:u:p@h:1/m",
        "triton://h:1/m",
    ):
        with pytest.raises(ValidationError, match="write triton:HOST:PORT/MODEL") as refused:
            EngineSettings(backend=text)
        assert "u:p" not in str(refused.value)
    token = "sixteen-or-more-letters"
    for wrong, message in (
        ({"triton_token": token}, "in clear"),
        ({"triton_token": token, "backend": "triton:127.example.org:1/m"}, "in clear"),
        ({"triton_ca_file": "ca.pem"}, "need TLS"),
        ({"triton_cert_file": "a.pem", "backend": "tritons:h:1/m"}, "go together"),
    ):
        with pytest.raises(ValidationError, match=message):
            EngineSettings.model_validate({"backend": "triton:h:1/m", **wrong})
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "engine__triton_token").write_text(f"{token}\n")
    key = tmp_path / "key.pem"
    settings = load(None, {"engine": {"triton_key_file": key}})
    assert token in secrets_of(settings)
    assert token not in repr(settings)
    assert {tmp_path / "engine__triton_token", key} <= set(secret_files(settings, None))


def test_without_tritonclient_the_message_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tritonclient'] = None\n"
        "sys.argv = ['edge-agent', 'embed', sys.argv[1], '-o', sys.argv[1] + '/x.npz',"
        " '--backend', 'triton:127.0.0.1:1/m']\n"
        "from edge_agent.__main__ import main; main()"
    )
    (tmp_path / "a.png").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs the extra triton" in done.stderr
    assert "tritonclient" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("most", [-5, 0])
def test_a_largest_batch_that_is_none_is_no_limit(fake: Fake, opened: Open, most: int) -> None:
    fake.most = most
    with serving(fake) as port, opened(port) as there:
        assert there.embed_images(people(20)).shape == (20, 8)


def test_doctor_does_not_pass_a_server_that_is_away(fake: Fake, tmp_path: Path) -> None:
    """The agent starts without it, degraded; the check says so, also where the network is known."""
    address = {"backend": f"triton:localhost:{find_free_port()}/reid", "triton_timeout_ms": 1000}
    engine_settings = {**address, "model": fake.prepared.source, "preprocess": "tao"}
    settings = Settings.model_validate({"state_dir": tmp_path / "state", "engine": engine_settings})
    info, (found,) = configuration.model(settings)
    assert info is None
    assert (found.state, "passed" in found.found) == ("missing", False)
    assert "UNAVAILABLE" in found.found
    assert "start the server" in found.advice


def test_a_start_without_the_server(fake: Fake, opened: Open, tmp_path: Path) -> None:
    """Commands end, the agent connects later; what the server stated is kept for that."""
    port = find_free_port()
    with pytest.raises(EngineUnavailable, match=r"must answer at the first start.*engine\.model"):
        opened(port, patient=True)
    named = {"model": fake.prepared.source, "preprocess": "tao"}
    with pytest.raises(EngineUnavailable, match="UNAVAILABLE"):
        opened(port, **named).__enter__()
    with opened(port, patient=True, **named) as there:
        assert there.engine.problem
        with pytest.raises(EngineUnavailable):
            there.embed_images(people())
        with serving(fake, port=port):
            first = until_back(there)
    with serving(fake, port=port), opened(port, patient=True):
        pass
    kept = tmp_path / "state" / "engines" / "served.json"
    assert json.loads(kept.read_text())["model_sha256"] == fake.prepared.source_sha256
    with opened(port, patient=True) as there:
        assert there.info.space == fake.prepared.space
        with serving(fake, port=port):
            np.testing.assert_array_equal(until_back(there), first)
    with pytest.raises(EngineUnavailable):
        opened(port)  # a command
    kept.write_text('{"backend": "triton:localhost:1/reid", "profile": ["tao"]}')
    with pytest.raises(EngineUnavailable):
        opened(port, patient=True)
