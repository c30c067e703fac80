"""The command line: help of every command, exit codes, and one clear message for a user's error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from edge_agent.cli import COMMANDS, GROUPS, app
from edge_agent.core.config import Settings

run_here = CliRunner().invoke


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *map(str, arguments)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPS])
def test_every_command_has_help(name: str) -> None:
    result = run_here(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all commands, those of groups as well."""
    if not hasattr(command, "commands"):
        return [path]
    return [found for name, sub in command.commands.items() for found in commands(sub, (*path, name))]


@pytest.mark.parametrize("path", commands(get_command(app)), ids=" ".join)
def test_every_command_explains_its_options_and_refuses_others(path: tuple[str, ...]) -> None:
    helped = run_here(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert helped.exit_code == 0
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    assert command.help, f"{' '.join(path)} has no description"
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{' '.join(path)} {parameter.opts} has no help"
            assert parameter.opts[0] in helped.output
    assert run_here(app, [*path, "--no-such-option"]).exit_code == 2


def test_the_list_of_commands_has_the_first_sentence_of_each() -> None:
    command: Any = get_command(app)
    assert list(command.commands) == [*COMMANDS, *GROUPS]
    for name, said in COMMANDS.items():
        first = command.commands[name].help.partition("\n\n")[0]
        assert " ".join(first.split()) == said
    for name, said in GROUPS.items():
        assert command.commands[name].help.startswith(said)


GALLERY_MODULES = [
    *("arguments", "gallery", "gallery_access", "gallery_corrections", "gallery_reembed", "logins", "output")
]


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--help"], ["logins"]),
        (["--version"], ["logins"]),
        (["engines", "--help"], ["arguments", "engines", "logins", "output"]),
        (["gallery", "--help"], GALLERY_MODULES),
        (["gallery", "forget", "--help"], GALLERY_MODULES),
    ],
    ids=" ".join,
)
def test_help_imports_no_other_command_and_nothing_heavy(arguments: list[str], modules: list[str]) -> None:
    code = (
        "import sys\n"
        "from edge_agent.__main__ import main\n"
        f"sys.argv = ['edge-agent', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'cv2', 'onnxruntime', 'paho', 'scipy', 'structlog', 'rich', "
        "'edge_agent.core.config'}\n"
        "ours = [name.split('.')[2] for name in sys.modules if name.startswith('edge_agent.cli.')]\n"
        "print('loaded', sorted(heavy & set(sys.modules)), sorted(ours))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"loaded [] {sorted(modules)}"


def test_an_unknown_command_suggests_the_nearest_one() -> None:
    assert "run" in run_here(app, ["rnu"]).output


def test_version() -> None:
    from edge_agent import __version__

    assert run_here(app, ["--version"]).output.strip() == f"edge-agent {__version__}"


@pytest.mark.parametrize("arguments", [["nosuch"], ["run", "--nosuch"], ["evaluate"], ["gallery", "name"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert run_here(app, arguments).exit_code == 2


def test_an_error_is_one_message_and_exit_1(tmp_path: Path) -> None:
    done = run(
        "run", "--source", tmp_path / "none.avi", "--model", "colour-stripes", "--state", tmp_path / "s"
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert str(tmp_path / "none.avi") in done.stderr
    assert "Traceback" not in done.stderr


def test_run_without_a_source_prints_an_error(tmp_path: Path) -> None:
    done = run("run", "--state", tmp_path / "s")
    assert done.returncode == 1
    assert "--source" in done.stderr


def test_config_schema() -> None:
    schema = json.loads(run_here(app, ["config", "schema"]).output)
    assert schema["properties"].keys() == Settings.model_fields.keys()


def test_config_check_and_show(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[mqtt]\nsite = 'lab'\n")
    assert "c.toml: valid" in run_here(app, ["config", "check", "--config", str(path)]).output
    assert 'mqtt.site = "lab"' in run_here(app, ["config", "show", "--config", str(path)]).output
    path.write_text("[mqtt]\nsites = 'lab'\n")
    done = run("config", "check", "--config", path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "did you mean 'site'" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config check --config {tmp}/none.toml", "{tmp}/none.toml: no such configuration file"),
        ("dataset {tmp}/none", "{tmp}/none is not a folder"),
        ("dataset {tmp}", "bounding_box_train"),
        ("evaluate {tmp}/none", "{tmp}/none is not a folder"),
        ("embed {tmp}/none -o {tmp}/out.npy", "{tmp}/none"),
        ("train {tmp}/none.yaml", "{tmp}/none.yaml"),
        ("gallery list --state {tmp}/none", "there is no gallery at {tmp}/none"),
        ("engines rollback --yes --state {tmp}/none", "has no engine from before the active one"),
        ("watch --broker mqtt://127.0.0.1:1", "mqtt://127.0.0.1:1: Connection refused"),
        ("watch --broker http://127.0.0.1", "write mqtt://HOST:PORT"),
        ("run --source {tmp}/text.mp4 --model colour-stripes --state {tmp}/s", "{tmp}/text.mp4"),
        ("run --source {tmp}/text.mp4 --model {tmp}/text.mp4 --state {tmp}/s", "{tmp}/text.mp4"),
        ("run --source {tmp}/none.mp4 --model {tmp}/none.onnx --state {tmp}/s", "{tmp}/none.mp4: No such"),
        ("run --source {tmp}/text.mp4 --preprocess caffe --state {tmp}/s", "engine.preprocess"),
        ("run --source {tmp}/text.mp4 --detector ssd --state {tmp}/s", "ssd"),
        ("run --source {tmp}/text.mp4 --broker ftp://x --state {tmp}/s --model colour-stripes", "ftp://x"),
    ],
)
def test_bad_input_is_one_message_and_exit_1(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edge_agent.__main__ import main

    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    monkeypatch.setattr(sys, "argv", ["edge-agent", *line.format(tmp=tmp_path).split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    reported = capsys.readouterr().err
    assert stopped.value.code == 1, reported
    assert reported.count("error: ") == 1
    assert message.format(tmp=tmp_path) in reported.partition("error: ")[2]
    assert "Traceback" not in reported


_TOO_LONG = "x" * 300
_LONG = "y" * 250


@pytest.mark.parametrize(
    "line",
    [
        f"dataset {{tmp}}/{_TOO_LONG}",
        f"evaluate {{tmp}}/{_TOO_LONG}",
        f"embed {{tmp}}/{_TOO_LONG} -o {{tmp}}/out.npy",
        f"calibrate --dataset {{tmp}}/{_TOO_LONG} --state {{tmp}}/s",
        f"run --source {{tmp}}/{_TOO_LONG} --state {{tmp}}/s --model colour-stripes",
        f"run --source crops:{{tmp}}/{_TOO_LONG} --state {{tmp}}/s --model colour-stripes",
        f"gallery import {{tmp}}/{_TOO_LONG} --state {{tmp}}/s",
        f"gallery list --state {{tmp}}/{_TOO_LONG}",
        f"model add {{tmp}}/{_LONG} --output {{tmp}}/s",
        "model add  --output {tmp}/s",
        "model add {tmp}/endless --output {tmp}/s",
        "bench --model {tmp}/endless --state {tmp}/s",
        "embed {tmp} -o {tmp}/out.npy --model {tmp}/endless",
    ],
)
def test_names_and_sizes_that_no_file_can_have_are_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_agent.__main__ import main

    (tmp_path / _LONG).write_bytes(b"no network")  # the name of its card would be too long
    (tmp_path / "endless").touch()
    os.truncate(tmp_path / "endless", 1 << 40)
    monkeypatch.setattr(sys, "argv", ["edge-agent", *line.format(tmp=tmp_path).split(" ")])
    with pytest.raises(SystemExit) as stopped:
        main()
    reported = capsys.readouterr().err
    assert stopped.value.code == 1, reported
    assert reported.startswith("error: ")
    assert reported.count("\n") == 1


@pytest.mark.parametrize("line", ["config show", "config schema", "--version", "doctor --json"])
def test_an_output_that_takes_nothing_is_one_line(line: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", *line.split()],
            stdout=full,
            check=False,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_a_file_without_permission_is_no_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_agent.__main__ import main

    (tmp_path / "c.toml").touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(sys, "argv", ["edge-agent", "config", "check", "--config", str(tmp_path / "c.toml")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "c.toml' is not readable; check the owner" in capsys.readouterr().err


def test_logins_do_not_stay_in_the_process_list(tmp_path: Path, free_port: int) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc here")
    source, broker = (f"{kind}://viewer:hun-ter2@127.0.0.1:{free_port}" for kind in ("rtsp", "mqtt"))
    words = [sys.executable, "-m", "edge_agent", "run", f"--source={source}/s", "--broker", broker]
    process = subprocess.Popen([*words, "--state", str(tmp_path)], stderr=subprocess.PIPE)
    shown = Path(f"/proc/{process.pid}/cmdline")
    try:
        deadline = time.monotonic() + 60
        while b"hun-ter2" in (now := shown.read_bytes()) or b"rtsp" not in now:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert b"rtsp://***@127.0.0.1" in now
        assert b"mqtt://***@127.0.0.1" in now
    finally:
        process.kill()
        _, said = process.communicate(timeout=10)
    assert b"hun-ter2" not in said


@pytest.mark.parametrize(
    "words",
    [
        "run rtsp://me:secretpw@h/x",
        "rtsp://me:secretpw@h/x",
        "run me:secretpw@h",
        "gallery me:secretpw@h",
        "gallery import rtsp://me:secretpw@h/x",
        "config check --config rtsp://me:secretpw@h/x",
        "run --source x --model http://h/x?token=secretpw",
        "run --source rtsp:me:secretpw@h",
        "run --source x --broker http://me:secretpw@h",
        "watch --broker mqtt://me:sec#retpw@h",
        "model fetch --url http://me:secretpw@h/x.onnx --sha256 0",
        "model fetch --url http://h/secretpw?x --sha256 0",
    ],
)
def test_messages_about_wrong_arguments_repeat_no_login(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_agent.__main__ import main

    monkeypatch.setattr(sys, "argv", ["edge-agent", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    reported = capsys.readouterr().err
    assert stopped.value.code in (1, 2)
    assert "rror: " in reported
    assert "secretpw" not in reported
    assert "retpw" not in reported


def test_logins_in_every_form_leave_the_process_list(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc here")
    words = [
        "--source=rtsp://admin:12#secretpw@h/s", "rtsp://h/user=a_password=secretpw",
        "rtsp://a:my secretpw@h/s", "me:secretpw@h", "--broker", "a@b:secretpw@h", "--url=http://h/x?y=secretpw",
        "rtspsrc location=rtsp://h/s user-pw=secretpw ! x", "--state", "/x",
    ]  # fmt: skip
    program = (
        "from edge_agent.cli.logins import hide_logins; hide_logins();"
        "import sys; sys.stdout.buffer.write(open('/proc/self/cmdline', 'rb').read())"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True)
    shown = done.stdout.split(b"\0")
    assert b"secretpw" not in done.stdout
    assert [len(one) for one in shown[3:-1]] == [len(one) for one in words]
    assert shown[3].startswith(b"--source=rtsp://***")
    assert shown[-3:-1] == [b"--state", b"/x"]


def test_the_shell_completes_commands_and_options():
    def completed(words: str) -> list[str]:
        environment = {
            **os.environ, "_EDGE_AGENT_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }  # fmt: skip
        program = "from edge_agent.cli import app; app(prog_name='edge-agent')"
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout.split()

    assert completed("edge-agent gal") == ["gallery"]
    assert {"list", "forget", "enrol"} <= set(completed("edge-agent gallery "))
    assert completed("edge-agent run --log") == ["--log-format"]


@pytest.mark.parametrize(
    "line",
    [
        "gallery list --state a --state b",
        "run --source a --source b --model c --model d",
        "bench --seconds 1 --seconds=2",
    ],
)
def test_an_option_with_one_value_is_refused_when_it_is_given_twice(line: str):
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", *line.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is given twice" in done.stderr
    assert "--source" not in done.stderr.partition("Error")[2]
