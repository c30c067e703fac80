"""Outside text in every output: shown as one line, never as markup, and read back as the text that it was."""

from __future__ import annotations

import ast
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

import edge_agent
from edge_agent.cli.console import PlainConsole
from edge_agent.cli.output import print_message, say, table
from edge_agent.core import logs
from edge_agent.core.codec import encode
from edge_agent.core.errors import InputError
from edge_agent.core.events import AlertData, new_event
from edge_agent.core.names import LONGEST_NAME, checked_name
from edge_agent.core.text import html_text, is_visible, jinja_literal, json_line, visible
from edge_agent.health.systemd import Notifier
from edge_agent.offline import page

HOSTILE = (
    "[/red]",
    "[bold",
    "{{ states }}",
    "{% raw %}",
    "<script>alert(1)</script>",
    "\x1b]0;x\x07",
    "\x9b31m",
    "a\nERROR b",
    "a\r\x1b[2K",
    "\u202e\u2066gpj.exe",
    "\u200b\u200d\ufeff",
    "\u2028\u2029\x85",
    "\udcff\ud800",
    "\U000e0041\U000f0000",
    "\u3164\u115f",
    "\\x1b",
    '"}\\',
    ":smile: {x}",
    "\U00020bb7 ü 李",
    "",
)
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=[]), max_size=40),
    st.lists(st.sampled_from(HOSTILE), max_size=4).map("".join),
)
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def is_clean(line: str) -> bool:
    return line.isprintable() and is_visible(line)


@given(texts)
@example("\\")
def test_a_text_becomes_one_line_that_shows_it(text: str) -> None:
    shown = visible(text)
    assert is_clean(shown)
    assert visible(shown) == shown
    if is_clean(text):
        assert shown == text
    if "\\" not in text:  # a backslash of the text itself stays as it is
        escaped = shown.encode("ascii", "backslashreplace").decode("ascii")
        assert escaped.encode().decode("unicode_escape") == text


@given(st.text(st.characters(exclude_categories=[])), st.integers(1, 100))
def test_the_width_is_bounded(text: str, longest: int) -> None:
    assert len(visible(text * 50, longest)) <= longest


def test_a_name_of_a_megabyte_is_cut_in_the_middle() -> None:
    shown = visible("a" * 500_000 + "\x1b" * 500_000 + "z")
    assert len(shown) <= 5_000
    assert shown.startswith("aaa")
    assert shown.endswith("z")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts += [value or "" for _, value in attrs]


@given(texts)
def test_html_has_the_text_as_text(text: str) -> None:
    found = _Page()
    found.feed(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    found.close()
    assert found.tags == ["p"]
    assert found.texts[0] == visible(text)
    assert "".join(found.texts[1:]) == visible(text)
    whole = page.page(text, [page.facts([text]), page.table([text], [[text]]), page.figure(text, "")])
    parsed = _Page()
    parsed.feed(whole.decode())
    assert set(parsed.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "p", "table", "tr", "th", "td", "figure",
        "figcaption", "br", "main",
    }  # fmt: skip
    assert "".join(parsed.texts).count(visible(text)) >= 5


@given(texts)
def test_a_template_of_home_assistant_gives_the_text_back(text: str) -> None:
    literal = jinja_literal(text)
    assert literal.isascii()
    assert literal.isprintable()
    template = jinja2.Environment(autoescape=False).from_string(f"{{{{ value.get({literal}) }}}}")
    assert template.render(value={text: "found"}) == "found"


@given(st.one_of(texts.map(lambda text: text.encode(errors="surrogatepass")), st.binary(max_size=60)))
def test_a_message_is_one_line_of_json(payload: bytes) -> None:
    line = json_line(payload)
    assert is_clean(line)
    json.loads(line)


@given(st.recursive(st.one_of(texts, st.integers(), st.none()), st.lists, max_leaves=5))
def test_a_message_of_json_keeps_its_content(value: object) -> None:
    payload = json.dumps(value, ensure_ascii=False, indent=1).encode(errors="replace")
    line = json_line(payload)
    assert json.loads(line) == json.loads(payload)
    assert is_clean(line)


def test_a_message_too_deep_to_read_is_a_string() -> None:
    assert json.loads(json_line(b"[" * 100_000)) == "[" * 100_000


@given(texts)
def test_rich_shows_every_text_as_it_is(text: str) -> None:
    from rich.table import Table

    out = io.StringIO()
    screen = PlainConsole(file=out, force_terminal=True, width=2_000, color_system=None)
    drawn = Table(text, title=text, caption=text)
    drawn.add_row(text)
    drawn.add_column(text)
    screen.print(drawn)
    screen.print(text, soft_wrap=True)
    lines = out.getvalue().split("\n")
    assert all(is_clean(line) for line in lines)
    assert visible(text).rstrip() in lines[-2]
    assert sum(visible(text).strip() in line for line in lines) >= 4


@given(texts)
def test_tables_and_lines_of_commands_are_clean(text: str) -> None:
    lines = table(("id", "name"), [(text, text)], right=("id",), wrap="name")
    assert all(is_clean(line) for line in lines)
    assert any(visible(text).strip() in line for line in lines)


def test_lines_that_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\x1b[2J", "c")
    print_message(b'{"a":\n1, "b": "\xc2\x9b"}')
    print_message(b"\x1b]0;x\x07")
    assert capsys.readouterr().out.split("\n") == [
        "a\\nb\\x1b[2J",
        "c",
        '{"a": 1, "b": "\\u009b"}',
        '"\\u001b]0;x\\u0007"',
        "",
    ]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(texts)
def test_a_log_line_is_one_line(text: str) -> None:
    for stream in (_Terminal(), io.StringIO()):
        logs.configure("info", stream)
        structlog.get_logger("test").info(text, camera=text, entries=[text], size=1)
        lines = stream.getvalue().removesuffix("\n").split("\n")
        assert len(lines) == 1
        assert is_clean(lines[0].replace("\x1b[", "").replace("\x1b", "")) or stream.isatty()
        if stream.isatty():
            assert is_clean(re.sub(r"\x1b\[[0-9;]*m", "", lines[0]))
        else:
            found = json.loads(lines[0])
            assert found["event"] == found["camera"] == json.loads(json.dumps(text))
    structlog.reset_defaults()


def test_a_log_line_fits_into_a_line_of_the_journal() -> None:
    stream = io.StringIO()
    logs.configure("info", stream, form="journald")
    log = structlog.get_logger("test")
    log.info("event" * 100_000, name="x" * 1_000_000, entries=["y" * 1_000_000])
    try:
        checked_name("a" * 1_000_000)
    except InputError:
        log.exception("failed")
    log.error("failed", exc_info=InputError("\x1b" * 1_000_000))
    structlog.reset_defaults()
    first, *others = stream.getvalue().splitlines()
    assert len(first) < 48 << 10
    assert json.loads(first.removeprefix("<6>"))["name"].startswith("xxx")
    for line in others:
        assert len(line) < 128 << 10
        assert json.loads(line.removeprefix("<3>"))["exception"]


@given(texts)
def test_an_event_with_any_text_can_be_encoded(text: str) -> None:
    event = new_event("alert", AlertData("test", "warning", text or "-"), detail="test", time=1.7e9)
    line = encode(event)
    assert b"\n" not in line
    found = json.loads(line)["data"]["message"]
    assert found.encode()
    if not any("\ud800" <= one <= "\udfff" for one in text):
        assert found == (text or "-")


@given(texts)
def test_the_status_line_of_systemd_is_one_line(text: str) -> None:
    sent: list[tuple[str, ...]] = []

    class Listening(Notifier):
        def _send(self, *lines: str) -> None:
            sent.append(lines)

    Listening().status(text)
    for line in sent[0]:
        assert is_clean(line)
        assert len(line) <= 310


@given(texts)
def test_labels_of_prometheus_are_read_back(text: str) -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily

    from edge_agent.core.telemetry import TelemetryData
    from edge_agent.deliver.metrics import telemetry_families

    class One:
        def collect(self) -> list[GaugeMetricFamily]:
            return list(telemetry_families(TelemetryData(1.0, "online", frames_per_s={text: 1.5, "b": 2.0})))

    registry = CollectorRegistry()
    registry.register(One())
    families = {one.name: one for one in text_string_to_metric_families(generate_latest(registry).decode())}
    samples = families["edge_agent_frames_per_second"].samples
    assert visible(text, 300) in {next(iter(sample.labels.values())) for sample in samples}


@pytest.mark.parametrize(
    "name", ["[/red]", "{{ states }}", "<script>", "李 雷", "O'Brien", "❤\ufe0f", "a" * 128]
)
def test_a_name_that_outputs_show_as_it_is(name: str) -> None:
    assert checked_name(f" {name} ") == name
    assert visible(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "12", "١٢", "p-abcdefghijkl", "a\x1b", "a\nb", "a\u202eb", "a\u200bb", "\u3164", "\udcff",
     "a\0", "a" * (LONGEST_NAME + 1), "a" * 1_000_000],
)  # fmt: skip
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InputError) as refused:
        checked_name(name)
    assert is_clean(str(refused.value))
    assert len(str(refused.value)) < 250


@given(texts)
def test_a_name_is_shown_as_it_is_or_refused(name: str) -> None:
    try:
        taken = checked_name(name)
    except InputError:
        return
    assert is_clean(taken)
    assert taken == name.strip()


def test_commands_print_through_one_module() -> None:
    """`print`, `typer.echo` and rich's console are used in `cli.output` and `cli.console` only."""
    root = Path(edge_agent.__file__).parent
    allowed = {
        "core/text.py",
        "cli/output.py",
        "cli/console.py",
        "cli/__init__.py",
        "__main__.py",
        "deliver/contract.py",
    }
    for path in sorted(root.rglob("*.py")):
        if str(path.relative_to(root)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {
                    "print",
                    "typer.echo",
                    "typer.confirm",
                    "Console",
                    "sys.stdout.write",
                }, f"{path}:{node.lineno} prints past edge_agent.cli.output"
                assert called not in {"html.escape", "rich.markup.escape"}, f"{path}:{node.lineno}: core.text"
