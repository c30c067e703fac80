"""What can be chosen or received has a test, a help text, a row in the documents, and its place in errors.

A list of kinds (detectors, backends, alerts, ...) is read from the code, and each kind must meet the needs of
its list. A failure says which kind lacks what, and where that belongs; CONTRIBUTING.md has the steps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from edge_agent import cli
from edge_agent.core import errors
from edge_agent.core.alerts import AlertKind
from edge_agent.core.codec import data_schema
from edge_agent.core.commands import COMMAND_TYPES
from edge_agent.core.config import Settings
from edge_agent.core.detectors import BUILT_IN, NETWORKS, parse_detector
from edge_agent.core.events import DATA_TYPES, CommandResultData, IdentityData
from edge_agent.core.setting_types import Backend, Preprocess
from edge_agent.core.telemetry import TelemetryData
from edge_agent.deliver.contract import schemas
from edge_agent.detect.kinds import KINDS
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.source.address import FORMS as SOURCES
from edge_agent.source.address import SourceKind, source_kind
from tests import tiny_detectors
from tests.conftest import REPO
from tests.engine import test_engine

PACKAGE = REPO / "edge_agent"
PARTS = tuple(
    f"edge_agent/{part.name}" for part in PACKAGE.iterdir() if part.is_dir() and part.name != "core"
)
"""What uses the lists in `core`."""
NO_TESTS = {"test_contributors.py", "test_architecture.py"}
"""What they name is not tested by them."""
CONTRACT = "edge_agent/deliver/contract.py"


@dataclass(frozen=True)
class Need:
    """What a kind must have, where it belongs, and whether a kind has it."""

    what: str
    where: str
    met: Callable[[str], bool]


@dataclass(frozen=True)
class Listing:
    """Kinds of one sort, and what each must have."""

    sort: str
    kinds: tuple[str, ...]
    needs: tuple[Need, ...]

    def lacks(self, kind: str) -> list[str]:
        """One line for each need that a kind does not meet."""
        return [
            f"{self.sort} {kind!r} has no {need.what}: add it in {need.where}"
            for need in self.needs
            if not need.met(kind)
        ]


# --- what is searched ---------------------------------------------------------------------------


@cache
def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+(?:-\w+)*", text))


def names(text: str, kind: str) -> bool:
    """Whether a text has the name of a kind as a word: `yolox` is not in `yolox-end2end` or `yolox2`."""
    return kind in words(text)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are bare texts: no code sees them."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def words_of(tree: ast.AST) -> Iterator[str]:
    """Texts of the code, and names of attributes and keywords."""
    bare = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id


def trees_below(*places: str) -> Iterator[ast.Module]:
    """All Python files at these places of the repository, except those that test no part of it."""
    for place in places:
        path = REPO / place
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            if file.name not in NO_TESTS:
                yield tree_of(file)


@cache
def words_below(*places: str) -> str:
    """The words of all Python files at these places."""
    return "\n".join(sorted({word for tree in trees_below(*places) for word in words_of(tree)}))


@cache
def values_below(*places: str) -> frozenset[str]:
    """Texts in the code at these places, as a whole and before `:`, and the parts of topics."""
    found: set[str] = set()
    for tree in trees_below(*places):
        bare = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
                found.update((node.value, node.value.partition(":")[0], *node.value.split("/")))
    return frozenset(found)


@cache
def section(page: str, title: str) -> str:
    """A section of a document up to the next title of its level or above; all of it without a title."""
    text = (REPO / page).read_text()
    if not title:
        return text
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {title!r}"
    return found[2]


def rows(page: str, title: str) -> list[str]:
    """The first cells of the table rows of a section."""
    lines = section(page, title).splitlines()
    return [line.split("|")[1] for line in lines if line.startswith("|")]


def message_of(call: Callable[[], object]) -> str:
    """The message of the error that a call raises."""
    with pytest.raises((ValueError, errors.EdgeAgentError)) as caught:
        call()
    return str(caught.value)


@cache
def help_of(*path: str) -> str:
    """Help of a command with the texts of all its options; all commands without a path."""
    command: Any = get_command(cli.app)
    for name in path:
        command = command.commands[name]
    texts = [command.help or "", *(str(getattr(one, "help", "") or "") for one in command.params)]
    return "\n".join(texts)


def field_of(key: str) -> Any:
    """The declaration of a dotted key of the settings."""
    *sections, last = key.split(".")
    model: Any = Settings
    for name in sections:
        annotation = model.model_fields[name].annotation
        model = next(one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields"))
    return model.model_fields[last]


@cache
def description(key: str) -> str:
    """Description of a dotted key of the settings, as in the reference."""
    return field_of(key).description or ""


# --- needs --------------------------------------------------------------------------------------


def a_test_in(*folders: str) -> Need:
    places = tuple(f"tests/{folder}" for folder in folders)
    return Need("test that names it", " or ".join(places), lambda kind: kind in values_below(*places))


def a_test_with_the_name() -> Need:
    """For what tests name in many ways: keys, attributes, classes."""
    return Need("test that names it", "tests", lambda kind: names(words_below("tests"), kind))


def described(key: str) -> Need:
    where = f"the description of {key} in edge_agent/core/config.py"
    return Need("help text", where, lambda kind: names(description(key), kind))


def offered(*command: str, where: str) -> Need:
    return Need("help text", where, lambda kind: names(help_of(*command), kind))


def documented(page: str, title: str = "") -> Need:
    where = f"{page}, section {title!r}" if title else page

    def met(kind: str) -> bool:
        return any(re.search(rf"`{re.escape(kind)}(?![\w-])", cell) for cell in rows(page, title))

    return Need("row in the documentation", where, met)


def mentioned(page: str, title: str) -> Need:
    return Need(
        "documentation", f"{page}, section {title!r}", lambda kind: f"`{kind}`" in section(page, title)
    )


def listed_in_error(call: Callable[[], object], where: str) -> Need:
    return Need("place in the error for a wrong name", where, lambda kind: names(message_of(call), kind))


def known(what: str, where: str, kinds: Iterable[str]) -> Need:
    present = frozenset(kinds)
    return Need(what, where, present.__contains__)


def used_by(what: str, *places: str) -> Need:
    return Need(what, " or ".join(places), lambda kind: names(words_below(*places), kind))


def alert_in(*places: str) -> Callable[[str], bool]:
    """Whether code at these places names an alert by its text or as a member of `AlertKind`."""

    def met(kind: str) -> bool:
        member = next((one.name for one in AlertKind if one.value == kind), kind)
        return any(names(words_below(*places), name) for name in (kind, member))

    return met


# --- the lists ----------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """All commands, those of groups as `group command`."""
    yield from cli.COMMANDS
    program: Any = get_command(cli.app)
    for group in cli.GROUPS:
        yield from (f"{group} {name}" for name in program.commands[group].commands)


def command_documented(name: str) -> bool:
    pages = [REPO / "README.md", *(REPO / "docs").glob("*.md")]
    forms = (f"edge-agent {name}", f"`{name}`")
    return any(form in page.read_text() for page in pages for form in forms)


def command_tested(name: str) -> bool:
    """Whether a test gives the words of a command in order; a test of a group may leave out its name."""
    words = tuple(name.split())
    return any(
        words in (one[at : at + len(words)] for at in range(len(one)))
        or (len(words) == 2 and words[0] in file and one[:1] == words[1:])
        for file, one in argument_lists()
    )


@cache
def argument_lists() -> frozenset[tuple[str, tuple[str, ...]]]:
    """Every list of arguments in the tests, with the path of its file: literals, calls, shell lines."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    for file in (REPO / "tests").rglob("*.py"):
        if file.name in NO_TESTS:
            continue
        for node in ast.walk(tree_of(file)):
            values = node.elts if isinstance(node, (ast.List, ast.Tuple)) else getattr(node, "args", ())
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update((str(file), tuple(line.split())) for line in node.value.splitlines())
            elif isinstance(values, list):
                texts = (one.value for one in values if isinstance(one, ast.Constant))
                found.add((str(file), tuple(text for text in texts if isinstance(text, str))))
    return frozenset(found)


def contract_is_run(backend: str) -> bool:
    """Backends that need a device, or run no network, have a file of their own."""
    own = REPO / "tests" / "engine" / f"test_engine_{backend}.py"
    elsewhere = values_below("tests/trt", "tests/kserve")
    return backend in test_engine.HERE or own.exists() or backend in elsewhere


def command_helped(name: str) -> bool:
    try:
        return bool(help_of(*name.split()).strip())
    except KeyError:
        return False


def settings_keys(model: Any = Settings, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [
            one for one in (field.annotation, *get_args(field.annotation)) if hasattr(one, "model_fields")
        ]
        if inner:
            yield from settings_keys(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def choices() -> Iterator[str]:
    """All `key=choice` of settings whose type lists what they take."""

    def below(annotation: Any) -> Iterator[str]:
        if isinstance(annotation, str):
            yield annotation
        for one in get_args(annotation):
            yield from below(one)

    for key in settings_keys():
        yield from (f"{key}={choice}" for choice in below(field_of(key).annotation))


def choice_documented(key: str) -> bool:
    name, _, choice = key.partition("=")
    lines = (REPO / "docs" / "configuration.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith(f"| `{name.replace('sources.', 'sources[].')}` |")]
    return any(re.search(rf"\b{re.escape(choice)}\b", row) for row in rows)


def refusal_codes() -> list[str]:
    """Codes of results of commands, as the code gives them."""
    tree = ast.parse((PACKAGE / "deliver" / "commands.py").read_text())
    found = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "_Refused"
        and isinstance(node.args[0], ast.Constant)
    }
    return sorted(found)


def error_classes() -> list[str]:
    return [name for name, one in vars(errors).items() if isinstance(one, type)]


def last(need: Need) -> Need:
    """The need, for the last part of a dotted name."""
    return Need(need.what, need.where, lambda key: need.met(key.rpartition(".")[2]))


LISTINGS = (
    Listing(
        "detector",
        (*BUILT_IN, *NETWORKS),
        (
            a_test_in("detect", "agent"),
            described("detector.kind"),
            offered("run", where="edge_agent/core/detectors.py"),
            documented("docs/models.md", "Detectors"),
            listed_in_error(lambda: parse_detector("?"), "edge_agent/core/detectors.py"),
        ),
    ),
    Listing(
        "detector without a file",
        tuple(BUILT_IN),
        (used_by("line that opens it", "edge_agent/detect/opening.py"),),
    ),
    Listing(
        "kind of network",
        tuple(NETWORKS),
        (
            known("module with its facts", "edge_agent/detect/kinds/__init__.py", KINDS),
            known(
                "small network for tests",
                "LAYOUTS of tests/tiny_detectors.py",
                [*(kind for _, kind in tiny_detectors.LAYOUTS.values()), *tiny_detectors.SAME_LAYOUTS],
            ),
            documented("docs/models.md", "What each kind expects"),
        ),
    ),
    Listing(
        "backend",
        (*(one for one in get_args(Backend) if one != "auto"), "simulated", "triton"),
        (
            used_by("line that opens it", "edge_agent/engine/__init__.py", "edge_agent/engine/triton"),
            Need(
                "run of the contract",
                "HERE of tests/engine/test_engine.py, or its own in tests/trt, tests/kserve or tests/engine",
                contract_is_run,
            ),
            a_test_in("engine", "kserve"),
            described("engine.backend"),
            offered(
                "bench", where="edge_agent/cli/bench.py and BackendOption of edge_agent/cli/arguments.py"
            ),
            documented("docs/models.md", "Engines"),
            listed_in_error(
                lambda: Settings(engine={"backend": "?"}), "Backend of edge_agent/core/setting_types.py"
            ),
        ),
    ),
    Listing(
        "preprocess profile",
        get_args(Preprocess),
        (
            known("numbers", "PROFILES of edge_agent/engine/graph/prepared.py", PROFILES),
            a_test_in("engine", "embed", "offline"),
            offered("run", where="PreprocessOption of edge_agent/cli/arguments.py"),
            documented("docs/models.md", "Preprocess profiles"),
        ),
    ),
    Listing(
        "kind of source",
        get_args(SourceKind),
        (
            known("form of its address", "FORMS of edge_agent/source/address.py", SOURCES),
            a_test_in("source"),
            Need(
                "help text",
                "the description of sources.url in edge_agent/core/config.py",
                lambda kind: source_form(kind) in description("sources.url"),
            ),
            Need(
                "row in the documentation",
                "docs/sources.md",
                lambda kind: any(f"`{source_form(kind)}" in cell for cell in rows("docs/sources.md", "")),
            ),
            Need(
                "place in the error for a wrong address",
                "edge_agent/source/address.py",
                lambda kind: source_form(kind) in message_of(lambda: source_kind("smb://x")),
            ),
        ),
    ),
    Listing(
        "alert",
        tuple(kind.value for kind in AlertKind),
        (
            Need("test that names it", "tests/agent, tests/deliver or tests/health", alert_in("tests")),
            Need("code that raises it", "edge_agent", alert_in(*PARTS)),
            documented("docs/subscribers.md", "Alerts"),
            known("value in the schema", "docs/schemas", data_schema("alert")["properties"]["kind"]["enum"]),
        ),
    ),
    Listing(
        "command over MQTT",
        tuple(COMMAND_TYPES),
        (
            a_test_in("agent", "deliver"),
            used_by("handler", "edge_agent/agent/command_handlers.py"),
            described("mqtt.commands"),
            documented("docs/subscribers.md", "Commands"),
            Need("schema", "docs/schemas", lambda verb: f"command-{verb}.json" in schemas()),
        ),
    ),
    Listing(
        "refusal of a command",
        (*refusal_codes(), "busy", "failed"),
        (
            a_test_in("agent", "deliver"),
            mentioned("docs/subscribers.md", "Commands"),
            Need(
                "place in the schema",
                "CommandResultData of edge_agent/core/events.py",
                lambda code: names(described_field(CommandResultData, "code"), code),
            ),
        ),
    ),
    Listing(
        "kind of message",
        tuple(DATA_TYPES),
        (
            a_test_in("agent", "deliver"),
            Need("schema", "docs/schemas", lambda kind: f"{kind}.json" in schemas()),
            Need("topic", "edge_agent/deliver/contract.py", lambda kind: names(words_below(CONTRACT), kind)),
        ),
    ),
    Listing(
        "identity event",
        tuple(data_schema("identity")["properties"]["kind"]["enum"]),
        (
            Need(
                "test that names it",
                "tests",
                lambda kind: bool({kind, kind.upper()} & words(words_below("tests/agent", "tests/identify"))),
            ),
            mentioned("docs/subscribers.md", "Topics"),
            Need(
                "meaning in the schema",
                "IdentityData of edge_agent/core/events.py",
                lambda kind: names(described_field(IdentityData, "kind"), kind),
            ),
        ),
    ),
    Listing(
        "telemetry field",
        tuple(field.name for field in fields(TelemetryData)),
        (
            a_test_with_the_name(),
            used_by("code that fills it", "edge_agent/agent", "edge_agent/health"),
        ),
    ),
    Listing(
        "setting",
        tuple(settings_keys()),
        (
            Need("help text", "edge_agent/core/config.py", lambda key: bool(known_description(key))),
            last(a_test_with_the_name()),
            last(used_by("code that uses it", *PARTS, "edge_agent/core/mqtt.py", "edge_agent/core/kafka.py")),
        ),
    ),
    Listing(
        "choice of a setting",
        tuple(choices()),
        (
            Need("test that names it", "tests", lambda key: key.rpartition("=")[2] in values_below("tests")),
            Need("place in the reference", "docs/configuration.md", choice_documented),
        ),
    ),
    Listing(
        "command",
        tuple(commands()),
        (
            Need("test that runs it", "tests/cli", command_tested),
            Need("documentation", "README.md or docs", command_documented),
            Need("help text", "edge_agent/cli", command_helped),
        ),
    ),
    Listing(
        "error",
        tuple(error_classes()),
        (
            a_test_with_the_name(),
            used_by("code that raises or handles it", "edge_agent"),
        ),
    ),
)


def source_form(kind: str) -> str:
    """The beginning of the addresses of a kind, as documents write it."""
    form = {"file": "file", "stream": "rtsp://", "usb": "usb:", "csi": "csi:", "crops": "crops:"}
    return form.get(kind, f"{kind}:")


def described_field(of: type, name: str) -> str:
    (field,) = (field for field in fields(of) if field.name == name)
    return str(field.metadata["description"])


def known_description(key: str) -> str:
    try:
        return description(key)
    except (KeyError, StopIteration):
        return ""


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda listing: listing.sort)
def test_nothing_is_lacking(listing: Listing) -> None:
    assert listing.kinds
    lacking = [line for kind in listing.kinds for line in listing.lacks(kind)]
    assert not lacking, "\n" + "\n".join(lacking)


EVERY_NEED = [
    pytest.param(listing, need, id=f"{listing.sort}, {need.what}")
    for listing in LISTINGS
    for need in listing.needs
]


@pytest.mark.parametrize(("listing", "need"), EVERY_NEED)
def test_a_kind_that_lacks_something_is_named(listing: Listing, need: Need) -> None:
    """A made-up kind meets no need, so each need can fail; the message says what is missing, and where."""
    assert not need.met("madeup")
    assert f"{listing.sort} 'madeup' has no {need.what}: add it in {need.where}" in listing.lacks("madeup")


def test_names_are_whole_words() -> None:
    assert names("one of yolox (YOLOX); yolov8", "yolox")
    assert names("`hog:FACTOR`", "hog")
    for text in ("yolox-end2end", "my-yolox", "yolox2", "the_yolox"):
        assert not names(text, "yolox")


def test_a_docstring_is_no_test() -> None:
    tree = ast.parse('def test_x():\n    """madeup"""\n    check("other", third=1)')
    assert set(words_of(tree)) == {"check", "other", "third"}


def test_every_place_exists() -> None:
    """The paths in the messages are those of the repository."""
    for listing in LISTINGS:
        for need in listing.needs:
            paths = re.findall(r"(?:edge_agent|tests|docs)(?:/[\w.]+)*", need.where)
            assert paths or need.where.startswith("README"), need.where
            assert all((REPO / path).exists() for path in paths), need.where
