"""Ranges of tensors: their file, their digest, and TensorRT's calibration cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.core.errors import InputError, ModelError
from edge_agent.engine.precision.scales import Scales, read_cache

MODEL = "ab" * 32


def scales(**amax: float) -> Scales:
    return Scales(amax or {"layer:0": 2.54, "input_1:0": 1.0002441219985485}, "entropy", MODEL)


def test_file_gives_back_the_same(tmp_path: Path) -> None:
    scales().write(tmp_path / "scales.json")
    found = Scales.read(tmp_path / "scales.json")
    assert found == scales()
    assert found.digest == scales().digest
    assert list(found.amax) == ["input_1:0", "layer:0"]


def test_digest_depends_on_every_part_and_not_on_the_order() -> None:
    one = Scales({"a": 1.0, "b": 2.0}, "minmax", MODEL)
    assert one.digest == Scales({"b": 2.0, "a": 1}, "minmax", MODEL).digest
    others = [
        Scales({"a": 1.0, "b": 2.5}, "minmax", MODEL),
        Scales({"a": 1.0, "b": 2.0}, "entropy", MODEL),
        Scales({"a": 1.0, "b": 2.0}, "minmax", "cd" * 32),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-44, 1e300])
def test_refuses_useless_ranges(value: float) -> None:
    with pytest.raises(ModelError, match="'conv'"):
        scales(conv=value)


def test_refuses_none() -> None:
    with pytest.raises(ModelError, match="no ranges"):
        Scales({}, "entropy", MODEL)


def test_changed_file_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    scales().write(path)
    document = json.loads(path.read_text())
    document["data"]["amax"]["layer:0"] = 3.0
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="changed"):
        Scales.read(path)
    del document["data"]["method"]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="method"):
        Scales.read(path)


def test_cache_is_what_deepstream_ships() -> None:
    """DeepStream's cal_trt.bin: `TRT-100300-EntropyCalibration2`, `input_1:0: 3c010a14`."""
    text = scales().cache(100300, "EntropyCalibration2")
    assert text.splitlines()[:2] == [b"TRT-100300-EntropyCalibration2", b"input_1:0: 3c010a14"]
    assert text.endswith(b"\n")


def test_cache_is_read_back() -> None:
    found = read_cache(scales(**{"a: b": 3.0, "c": 1e-3}).cache(8602, "MinMaxCalibration"))
    assert (found.trt_version, found.algorithm) == (8602, "MinMaxCalibration")
    assert found.amax == pytest.approx({"a: b": 3.0, "c": 1e-3})


def test_cache_cannot_hold_a_line_break() -> None:
    with pytest.raises(ModelError, match="line break"):
        scales(**{"a\nb": 1.0}).cache(8602, "EntropyCalibration2")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"TRT-100300-LegacyCalibration\n",
        b"TRT-100300-EntropyCalibration2\nconv 3c010a14\n",
        b"TRT-100300-EntropyCalibration2\nconv: 3c010a\n",
    ],
)
def test_damaged_caches_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="calibration cache"):
        read_cache(data)
