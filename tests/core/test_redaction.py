"""What is shown of addresses: no password, wherever it stands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.config import Settings, SourceSettings
from edge_agent.core.delivery_settings import MqttSettings
from edge_agent.core.errors import ConfigError, SourceError
from edge_agent.core.loading import load
from edge_agent.core.logs import configure
from edge_agent.core.mqtt import BrokerSettings
from edge_agent.core.redaction import parse_address, public_address, redact
from edge_agent.core.setting_secrets import SECRET_KEYS, secrets_of, shown
from edge_agent.source.address import source_id
from edge_agent.source.cameras import StreamOptions, StreamSource


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("rtsp://me:pw@host:554/1", "rtsp://***@host:554/1"),
        ("rtsp://me@host/1", "rtsp://***@host/1"),
        ("rtsp://host/1", "rtsp://host/1"),
        ("rtsp://me:p@ss@host/1", "rtsp://***@host/1"),
        ("rtsp://me:p/ss@host/1", "rtsp://***@host/1"),
        ("rtsp://admin:1234/5@127.0.0.1:9/s", "rtsp://***@127.0.0.1:9/s"),
        ("rtsp://user@mail.example:pa/ss@127.0.0.1:9/s", "rtsp://***@127.0.0.1:9/s"),
        ("rtsp://h/user=admin_password=foo@bar", "rtsp://h/***"),
        ("rtsp://h/0/admin:secretpw/main", "rtsp://h/0/***"),
        ("rtsp://h/admin/secretpw/ch1", "rtsp://h/***"),
        ("rtsp://h/live;password=foo", "rtsp://h/***"),
        ("http://cam/x?user=admin&password=pw&channel=1", "http://cam/x?***"),
        ("http://cam:80/x?user=me&password=foo@bar", "http://cam/***?***"),
        ("http://cam/x?TOKEN=abc#y", "http://cam/x?***"),
        ("http://cam/x#secret", "http://cam/x?***"),
        ("rtmp://host/live/streamkey", "rtmp://host/live/***"),
        ("rtsp://cam:8o8o/s?password=foo@bar", "rtsp://***"),
        ("rtsp://host:554/a@b", "rtsp://***"),
        ("https://to/k?en@host/x", "https://***"),
        ("rtsp://ho st/x", "rtsp://***"),
        ("mqtt://u:p@[::1]:1883", "mqtt://***@[::1]:1883"),
        ("rtsp://me:pw@kämera.local/s", "rtsp://***@kämera.local/s"),
        ("secret://host/x", "***://host/x"),
        ("me:secret@host/x", "***"),
    ],
)
def test_what_is_shown_of_an_address(address: str, public: str) -> None:
    assert public_address(address) == public
    assert public_address(public) == public


@pytest.mark.parametrize(
    ("text", "shown_text"),
    [
        ("a 'rtsp://u:p@h/x' and http://u:p@i", "a 'rtsp://***@h/x' and http://***@i"),
        ("open rtsp://me:my pass@host:554/x: timeout", "open rtsp://***@host:554/x: timeout"),
        ("rtsp://***@h/s fails; write @ as %40", "rtsp://***@h/s fails; write @ as %40"),
        ("nothing to hide: a@b", "nothing to hide: a@b"),
        ("write mqtt://HOST:PORT, rtsp:// or http://", "write mqtt://HOST:PORT, rtsp:// or http://"),
        ("Connection to tcp://127.0.0.1:9?timeout=0 failed", "Connection to tcp://127.0.0.1:9?*** failed"),
    ],
)
def test_addresses_in_a_text(text: str, shown_text: str) -> None:
    assert redact(text) == shown_text
    assert redact(shown_text) == shown_text


# A password is recognised by its capital and digits; what surrounds them is what people and generators use.
PASSWORD = st.text("abcXYZ0189!$%&()*+,;=:@/?#\\ \"'<>[]{}|^~_.-äß€", min_size=2, max_size=20).map(
    lambda text: f"Qz{text}7W"
)
FORMS = [
    "rtsp://admin:{}@192.0.2.1:554/s",
    "rtsp://admin:{}@cam.example/live/ch1",
    "rtsp://us@er.example:{}@192.0.2.1:554/s",
    "rtsp://{}:x@192.0.2.1/s",
    "rtsp://{}@192.0.2.1/s",
    "rtsp://:{}@[2001:db8::1]:554/s",
    "rtsp://192.0.2.1/user=admin_password={}_channel=1_stream=0.sdp?real_stream",
    "rtsp://192.0.2.1/user=admin&password={}&channel=1",
    "rtsp://192.0.2.1/0/admin:{}/main",
    "rtsp://192.0.2.1/admin/{}/ch1",
    "rtsp://192.0.2.1/s?loginuse=admin&loginpas={}",
    "rtsp://192.0.2.1/s?{}",
    "rtsp://192.0.2.1/s#{}",
    "rtsp://192.0.2.1/s;jsessionid={}?x=1",
    "http://192.0.2.1/cgi?u=admin&p={}&x=1",
    "https://192.0.2.1/hls/{}/index.m3u8",
    "rtmp://192.0.2.1/live/{}",
    "srt://192.0.2.1:9000?streamid=x&passphrase={}",
    "udp://{}@192.0.2.1:1234",
    "mqtt://agent:{}@192.0.2.1:1883",
    "http://proxy:{}@192.0.2.1:3128",
]


@settings(max_examples=300, deadline=None)
@given(form=st.sampled_from(FORMS), password=PASSWORD, escaped=st.booleans())
def test_a_password_is_never_shown_wherever_it_stands(form: str, password: str, escaped: bool) -> None:
    written = quote(password, safe="") if escaped else password
    url = form.format(written)
    fragments = {part for part in (written, password) for part in (part, part[:6], part[-6:])}
    outputs = [public_address(url), redact(f"cannot open {url!s}: timeout", _secrets(url))]
    outputs += [str(one) for one in [_refusal(url)] if one]
    outputs += [json.dumps(shown(_settings(url))), redact(public_address(url))]
    try:
        shown_id = source_id(url)
    except SourceError as refused:
        shown_id = str(refused)
    outputs.append(shown_id)
    try:
        outputs.append(BrokerSettings.of(MqttSettings(broker=url)).url)
    except ConfigError as refused:
        outputs.append(str(refused))
    for fragment in fragments:
        assert fragment not in " ".join(outputs).replace("192.0.2.1", "")
    assert "qz" not in shown_id
    assert "7w" not in shown_id


def _secrets(url: str) -> frozenset[str]:
    found = parse_address(url)
    assert found is not None
    return found.secrets


def _settings(url: str) -> Settings:
    return Settings(sources=(SourceSettings(url=url),), mqtt=MqttSettings(broker=url))


def _refusal(url: str) -> str | None:
    """The message of an address that is not opened, since its login is not escaped."""
    if not getattr(parse_address(url), "misread", False):
        return None
    with pytest.raises(SourceError) as caught:
        next(StreamSource("x", url, StreamOptions()).frames())
    return str(caught.value)


@settings(max_examples=100, deadline=None)
@given(text=st.text("aQ09 _-./:@~[]%?#&;=ü日\n'\"<>", max_size=60))
def test_any_text_can_be_masked(text: str) -> None:
    for address in (text, f"rtsp://{text}", f"http://a:{text}@host/x"):
        public = public_address(address)
        assert public_address(public) == public
        assert redact(address) == redact(redact(address))


SIMPLE = st.text("abcXYZ0189!$*() \"'<>|^~.-äß€", min_size=2, max_size=20).map(lambda text: f"Qz{text}7W")
"""Without characters that may end it in a query: of such a password, the whole address is masked only."""


@settings(max_examples=50, deadline=None)
@given(
    form=st.sampled_from([form for form in FORMS if "{}:" not in form]),
    password=SIMPLE,
    terminal=st.booleans(),
)
def test_no_log_line_shows_a_password(form: str, password: str, terminal: bool) -> None:
    """Also where a library repeats the address, or a part of it, in its own way."""
    chosen = _settings(form.format(password))
    out = io.StringIO()
    configure(stream=out, form="text" if terminal else "json", secrets=secrets_of(chosen))
    try:
        _log_everything(chosen.sources[0].url, password)
    finally:
        structlog.reset_defaults()
    assert password not in out.getvalue()
    assert json.dumps(password)[1:-1] not in out.getvalue()
    if not terminal:
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert password not in repr([[*line.values()] for line in lines])


def _log_everything(url: str, password: str) -> None:
    log = structlog.get_logger()
    log.info("x", reason=f"{url} fails", parts=[f"password {password}!"], deep={"a": (url,)})
    try:
        Path(f"/nowhere/{url}").read_bytes()
    except OSError:
        log.exception("y")


def test_every_secret_setting_is_listed() -> None:
    sections = Settings.model_json_schema()["$defs"]
    found = {
        (section, key)
        for section, field in Settings.model_fields.items()
        if (schema := sections.get(getattr(field.annotation, "__name__", ""))) is not None
        for key, described in schema["properties"].items()
        if '"format": "password"' in json.dumps(described)
    }
    assert found == set(SECRET_KEYS)


def test_secrets_of_the_settings(tmp_path: Path) -> None:
    text = """
    [[sources]]
    url = "rtsp://me:hunter2@192.0.2.1/s"
    [mqtt]
    broker = "agent:hunter3@192.0.2.2"
    username = "agent"
    password = "hunter4"
    """
    path = tmp_path / "config.toml"
    path.write_text(text)
    chosen = load(path, {"storage": {"key": "ab" * 32}})
    assert {"hunter2", "hunter3", "hunter4", "ab" * 32} <= secrets_of(chosen)
    assert not {"agent", "me"} & secrets_of(chosen)
    assert "hunter" not in json.dumps(shown(chosen))
    assert shown(chosen)["mqtt"]["broker"] == "mqtt://***@192.0.2.2"


@pytest.mark.parametrize("url", ["rtsp://admin:12#34@127.0.0.1:9/s", "rtsp://a:p/w@127.0.0.1:9/s"])
def test_an_address_that_is_read_wrongly_is_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@127.0.0.1:9/s .*# as %23.*space as %20"):
        next(StreamSource("x", url, StreamOptions()).frames())


@pytest.mark.parametrize("broker", ["mqtt://a:p/w@h", "mqtt://a:12#34@h", "mqtt://a:1?2@h", "a@b:p/w@h"])
def test_a_broker_that_is_read_wrongly_is_refused_with_the_remedy(broker: str) -> None:
    with pytest.raises(ConfigError, match=r"mqtt://HOST:PORT; .*/ as %2F"):
        BrokerSettings.of(MqttSettings(broker=broker))


def test_the_module_is_light() -> None:
    heavy = "{'cv2', 'numpy', 'paho', 'pydantic', 'structlog'} & set(sys.modules)"
    code = f"import sys, edge_agent.core.redaction; sys.exit(str({heavy}) if {heavy} else 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
