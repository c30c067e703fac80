"""NumPy files from elsewhere: hostile headers cost neither time nor memory."""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.core.arrays import (
    LARGEST_ARRAY,
    load_array,
    map_array,
    open_archive,
    read_array,
    write_arrays,
)
from edge_agent.core.errors import InputError
from edge_agent.offline.evaluate.files import read_embeddings
from tests.conftest import REPO

TEN = np.arange(10, dtype=np.float32).reshape(2, 5)


def npy(header: str | bytes, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + content


def header_text(descr: str = "'<f4'", order: str = "False", shape: str = "(2, 5)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def read(data: bytes, **wanted: object) -> np.ndarray:
    wanted = {"kinds": "f", "shape": (None, None)} | wanted
    return read_array(io.BytesIO(data), len(data), "a.npy", **wanted)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"hello, world, this is text",
    "16 TiB": npy(header_text(shape="(4398046511104, 1)"), b"\0" * 40),
    "2^62 values": npy(header_text(shape=f"({2**62}, 1)"), b"\0" * 40),
    "overflow of 64 bits": npy(header_text(shape=f"({2**63}, {2**63})")),
    "overflow to the real size": npy(header_text(shape=f"({2**32 + 2}, {2**32})"), b"\0" * 40),
    "negative": npy(header_text(shape="(-2, -5)"), b"\0" * 40),
    "one negative": npy(header_text(shape="(-1, 5)"), b"\0" * 40),
    "objects": npy(header_text(descr="'|O'"), b"\x80\x04."),
    "a real pickle": saved(np.array([[{"a": 1}]], dtype=object)),
    "record": npy(header_text(descr="[('a', '<f4')]"), b"\0" * 40),
    "subarray": npy(header_text(descr="('<f4', (2, 5))"), b"\0" * 40),
    "code": npy(header_text(shape="__import__('os').getpid()"), b"\0" * 40),
    "nested": npy("(" * 1000),
    "digits": npy(header_text(shape="(" + "9" * 900 + ", 1)")),
    "text of 4 GB": npy(header_text(descr="'<U1000000000'"), b"\0" * 40),
    "text without size": npy(header_text(descr="'<U0'")),
    "unknown type": npy(header_text(descr="'<f3'"), b"\0" * 40),
    "time": npy(header_text(descr="'<M8[ns]'"), b"\0" * 80),
    "twice": npy("{'descr': '<f4', 'descr': '<f4', 'shape': (2, 5), }", b"\0" * 40),
    "half": npy("{'descr': '<f4', 'shape': (2, 5), }", b"\0" * 40),
    "longer header than file": b"\x93NUMPY\x01\x00\x76\x00{'descr'",
    "header of 1 GB": b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 100,
    "long header": npy(header_text() + " " * 2000, b"\0" * 40),
    "version 9": npy(header_text(), b"\0" * 40, (9, 0)),
    "cut off": saved(TEN)[:-1],
    "cut in the length": saved(TEN)[:9],
    "too long": saved(TEN) + b"\0",
    "other rank": saved(TEN.ravel()),
    "no axis": saved(np.float32(3.0)),
    "33 axes": npy(header_text(shape="(" + "1, " * 33 + ")"), b"\0" * 4),
    "integers": saved(TEN.astype(int)),
    "complex": saved(TEN.astype(complex)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays_are_refused_in_one_line(case: str) -> None:
    with pytest.raises(InputError) as refused:
        read(HOSTILE[case])
    assert str(refused.value).startswith("a.npy is not a usable NumPy array: ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("array", [TEN, np.asfortranarray(TEN), TEN.astype(">f8"), TEN[:0], TEN[:, :0]])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_numpy_are_read_as_numpy_reads_them(array: np.ndarray, version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    found = read(buffer.getvalue())
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(
    arrays.arrays(
        st.one_of(arrays.floating_dtypes(), arrays.integer_dtypes(), arrays.unicode_string_dtypes(min_len=1)),
        arrays.array_shapes(min_dims=0, min_side=0),
    )
)
def test_what_numpy_writes_is_read(array: np.ndarray) -> None:
    found = read(saved(array), kinds="fiuU", shape=(None,) * array.ndim)
    np.testing.assert_array_equal(found, array)


@given(
    st.lists(st.one_of(st.integers(-3, 9), st.integers(-(2**66), 2**66)), max_size=5),
    st.sampled_from(["'<f4'", "'|O'", "'<U9'", "'>f8'", "'|b1'", "'<c8'", "'f'", "['<f4']", "None", "4"]),
    st.sampled_from(["True", "False", "1", "None"]),
    st.binary(max_size=200),
)
def test_any_header_is_read_or_refused(shape: list[int], descr: str, order: str, content: bytes) -> None:
    text = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
    data = npy(header_text(descr, order, text), content)
    try:
        found = read(data, kinds="fU", shape=(None,) * len(shape))
    except InputError:
        return
    np.testing.assert_array_equal(found, np.load(io.BytesIO(data)))


@given(st.binary(max_size=80), st.integers(0, 150))
def test_a_damaged_file_is_read_or_refused(noise: bytes, place: int) -> None:
    whole = bytearray(saved(TEN))
    whole[place : place + len(noise)] = noise
    with contextlib.suppress(InputError):
        assert read(bytes(whole)).ndim == 2


def test_a_sparse_file_of_the_claimed_size_is_refused(tmp_path: Path) -> None:
    rows = LARGEST_ARRAY // 4
    (tmp_path / "a.npy").write_bytes(npy(header_text(shape=f"({rows + 1}, 1)")))
    with (tmp_path / "a.npy").open("r+b") as handle:
        handle.truncate((tmp_path / "a.npy").stat().st_size + 4 * (rows + 1))
    with pytest.raises(InputError, match=r"at most 4,294,967,296 are read"):
        load_array(tmp_path / "a.npy", kinds="f", shape=(None, None))
    with pytest.raises(InputError, match=r"expected the shape \(2, any\)"):
        load_array(tmp_path / "a.npy", kinds="f", shape=(2, None))


def test_a_mapped_array_is_that_of_the_file(tmp_path: Path) -> None:
    pictures = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.save(tmp_path / "a.npy", pictures)
    np.testing.assert_array_equal(map_array(tmp_path / "a.npy", kinds="u", shape=(2, 2, 2, 3)), pictures)
    with (tmp_path / "a.npy").open("r+b") as handle:
        handle.truncate(140)
    with pytest.raises(InputError, match="claims 24 bytes of numbers, 12 follow"):
        map_array(tmp_path / "a.npy", kinds="u", shape=(2, 2, 2, 3))


@pytest.mark.parametrize("shown", [0.0, 2e8, 1.7e9, 5e9, 9e9])
def test_arrays_are_written_whatever_the_clock_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: float
) -> None:
    """ZIP has no dates before 1980 and after 2107."""
    monkeypatch.setattr(time, "time", lambda: shown)
    with (tmp_path / "a.npz").open("wb") as handle:
        write_arrays(handle, {"numbers": TEN, "names": np.array(["a", "bc"])})
    with open_archive(tmp_path / "a.npz") as found:
        np.testing.assert_array_equal(found.read("numbers", kinds="f", shape=(2, 5)), TEN)
        assert found.read("names", kinds="U", shape=(2,)).tolist() == ["a", "bc"]
    with np.load(tmp_path / "a.npz") as read:
        assert set(read.files) == {"numbers", "names"}


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", embeddings=np.zeros((4, 1000), np.float32))
    with (
        open_archive(tmp_path / "a.npz") as archive,
        pytest.raises(InputError, match=r"is compressed.*; write it with numpy\.savez$"),
    ):
        archive.read("embeddings", kinds="f", shape=(None, None))


def many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        for number in range(20_000):
            bundle.writestr(f"{number}.npy", b"")


def lying_member(path: Path) -> None:
    np.savez(path, embeddings=TEN, names=np.array(["a", "b"]))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    for field in (20, 24):  # both sizes, in the directory
        data[entry + field : entry + field + 4] = (0xFFFF_FFF0).to_bytes(4, "little")
    path.write_bytes(data)


def damaged_member(path: Path) -> None:
    np.savez(path, embeddings=TEN, names=np.array(["a", "b"]))
    data = bytearray(path.read_bytes())
    data[data.index(TEN.tobytes())] ^= 1
    path.write_bytes(data)


def encrypted_member(path: Path) -> None:
    np.savez(path, embeddings=TEN, names=np.array(["a", "b"]))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def objects(path: Path) -> None:
    np.savez(path, embeddings=TEN, names=np.array(["a", "b"], dtype=object))


def huge_claim(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("names.npy", saved(np.array(["a", "b"])))
        bundle.writestr("embeddings.npy", npy(header_text(shape=f"(2, {2**42})"), b"\0" * 40))


@pytest.mark.parametrize(
    "make", [many_members, lying_member, damaged_member, encrypted_member, objects, huge_claim]
)
def test_hostile_archives_are_refused(tmp_path: Path, make) -> None:
    make(tmp_path / "a.npz")
    with pytest.raises(InputError) as refused:
        read_embeddings(tmp_path / "a.npz")
    assert str(refused.value).startswith(str(tmp_path / "a.npz"))
    assert "\n" not in str(refused.value)


@given(st.binary(min_size=1, max_size=30), st.integers(0, 900))
def test_a_damaged_archive_is_read_or_refused(tmp_path_factory, noise: bytes, place: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    np.savez(path, embeddings=TEN, names=np.array(["a", "b"]))
    data = bytearray(path.read_bytes())
    data[place : place + len(noise)] = noise
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        read_embeddings(path)


MANY = """
import resource, sys
from pathlib import Path
from edge_agent.core.errors import InputError
from edge_agent.offline.evaluate.files import read_embeddings
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, refused = peak(), 0
for path in sorted(Path(sys.argv[1]).glob("*.npy")) * 10:
    try:
        read_embeddings(path)
    except InputError:
        refused += 1
print(refused, peak() - before)
"""


def test_memory_is_bounded_over_many_hostile_files(tmp_path: Path) -> None:
    for number, data in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.npy").write_bytes(data)
        (tmp_path / f"{number}.npy.names.txt").write_text("a\nb\n")
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path)], cwd=REPO, capture_output=True, text=True,
        check=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )  # fmt: skip
    assert not done.stderr
    refused, growth_kb = map(int, done.stdout.split())
    assert refused == 10 * len(HOSTILE)
    assert growth_kb < 20_000
