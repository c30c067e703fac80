"""Files of any kind and name, opened without waiting; JSON within bounds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.errors import InputError, MissingFile
from edge_agent.core.files import (
    native_path,
    open_regular,
    parse_json,
    read_file,
    read_json,
    read_text,
    sha256_file,
    shown,
)


def make(kind: str, path: Path) -> Path:
    """Create a file of a kind that cannot be read as a regular one, at `path`."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            folder = os.open(path.parent, os.O_PATH)  # a socket's address has at most 107 bytes
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.close(folder)
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "endless":
        path.write_bytes(b"")
        os.truncate(path, 1 << 40)  # sparse
    return path


KINDS = ("pipe", "folder", "socket", "circle", "dangling", "device", "endless", "missing")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [lambda p: read_file(p, 1 << 20), read_text, read_json])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, read, tmp_path: Path) -> None:
    path = make(kind, tmp_path / "x")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"cannot read .*/x: ") as found:
        read(path)
    assert time.monotonic() - began < 1
    assert isinstance(found.value, MissingFile) == (kind in {"dangling", "missing"})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_digest_is_of_a_regular_file_only(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        sha256_file(make(kind, tmp_path / "x"))


def test_a_file_of_the_kernel_that_would_wait_is_an_error() -> None:
    path = Path("/proc/kmsg")  # regular, and read as a pipe is
    try:
        with path.open("rb") as file:
            os.set_blocking(file.fileno(), False)
            while file.raw.read(1 << 16) is not None:  # type: ignore[attr-defined]
                pass
    except OSError:
        pytest.skip("/proc/kmsg cannot be read here")
    for read in (lambda: read_file(path, 1 << 20), lambda: sha256_file(path)):
        with pytest.raises(InputError, match="nothing to read now"):
            read()
    with open_regular(path) as file, pytest.raises(BlockingIOError, match="nothing to read now"):
        file.read()


def test_a_link_is_followed_only_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "link").symlink_to("there")
    assert read_file(tmp_path / "link", 10) == b"x"
    with pytest.raises(InputError, match="symbolic link"):
        open_regular(tmp_path / "link", follow=False)


@given(size=st.integers(0, 70_000), limit=st.integers(1024, 65536))
def test_a_file_is_read_up_to_its_limit(
    size: int, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "sized"
    path.write_bytes(b"x" * size)
    if size <= limit:
        assert read_file(path, limit) == b"x" * size
    else:
        with pytest.raises(InputError, match="larger than"):
            read_file(path, limit)


def test_a_file_without_a_stated_size_is_read_whole() -> None:
    assert read_file("/proc/self/status", 1 << 20).startswith(b"Name:")
    with pytest.raises(InputError, match="larger than"):
        read_file("/proc/self/status", 10)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_text(tmp_path / "x")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_a_name_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_file(f"{tmp_path}/{name}", 10)


@given(st.binary(min_size=1, max_size=200).filter(lambda raw: b"\0" not in raw and b"/" not in raw))
def test_names_of_any_bytes(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = shown(name)
    assert text.isprintable()
    assert json.loads(json.dumps(text).encode()) == text
    try:
        expected = raw.decode()
    except UnicodeDecodeError:
        with pytest.raises(InputError, match="not UTF-8"):
            native_path(name)
    else:
        assert native_path(name) == expected


def test_a_native_path_has_no_nul() -> None:
    with pytest.raises(InputError, match="rename it"):
        native_path("a\0b")


def test_names_in_a_locale_without_utf8(tmp_path: Path) -> None:
    code = (
        "import sys; from edge_agent.core.files import *\n"
        "name = sys.argv[1]; print(ascii(native_path(name)), ascii(shown(name)), read_file(name, 9))\n"
        "try: read_file('\\xe4', 9)\n"
        "except Exception as problem: print(type(problem).__name__, ascii(str(problem)))"
    )
    path = tmp_path / "ä"
    path.write_bytes(b"x")
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=env, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.count("/\\xe4'") == 2
    assert first.endswith("b'x'")
    assert second.startswith("InputError")
    assert "LC_ALL" in second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("1" * 10_000, "usable JSON"),
        ("[NaN]", "NaN"),
        ("-Infinity", "Infinity"),
        ("1e999", "too large"),
        ("1" + "0" * 400, "too large"),
        ('{"a": [-1' + "0" * 308 + "]}", "too large"),
        (r'"\ud800"', "surrogate"),
        (r'{"\uDFFF": 1}', "surrogate"),
        ("", "line 1"),
    ],
)
def test_json_beyond_bounds(text: str, message: str) -> None:
    for data in (text, text.encode()):
        with pytest.raises(InputError, match=f"^here is not .*{message}"):
            parse_json(data, "here")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_within_bounds(value: object) -> None:
    assert parse_json(json.dumps(value), "here") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "here") == value


@given(st.binary(max_size=300))
def test_json_of_any_bytes(data: bytes) -> None:
    with contextlib.suppress(InputError):
        parse_json(data, "here")


def test_a_file_that_changes_its_kind_while_it_is_opened(tmp_path: Path) -> None:
    path, stop = tmp_path / "x", threading.Event()

    def swap() -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "file").write_bytes(b"x")
        while not stop.is_set():
            for kind in ("pipe", "file"):
                os.link(tmp_path / kind, tmp_path / "next")
                (tmp_path / "next").replace(path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(300):
            with contextlib.suppress(InputError):
                assert read_file(path, 10) == b"x"
    finally:
        stop.set()
        swapper.join()
