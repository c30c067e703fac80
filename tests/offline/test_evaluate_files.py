"""Embedding files: round trips, files of other programs, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.errors import DatasetError, InputError, SpaceMismatch
from edge_agent.offline.dataset import Crop, Split
from edge_agent.offline.evaluate.files import (
    labelled_by_dataset,
    labelled_by_name,
    read_embeddings,
    require_one_space,
    write_embeddings,
)

NAMES = (
    "query/0001_c1s1_000001_00.jpg",
    "query/0002_c1s1_000001_00.jpg",
    "bounding_box_test/0001_c2s1_000001_00.jpg",
)
VECTORS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json"])
def test_round_trip_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"all{suffix}"
    made = write_embeddings(path, NAMES, VECTORS, {"space": "abc", "name": "net"})
    assert all(file.is_file() for file in made)
    back = read_embeddings(path)
    assert back.names == NAMES
    np.testing.assert_array_equal(back.vectors, VECTORS)
    assert back.about == {"space": "abc", "name": "net", "rows": 3, "dimension": 5}


def test_tao_json_has_tao_s_form(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    write_embeddings(path, NAMES, VECTORS, {})
    expected = [{"img_path": n, "embedding": v.tolist()} for n, v in zip(NAMES, VECTORS, strict=True)]
    assert json.loads(path.read_text()) == expected
    assert path.read_text() == json.dumps(expected, indent=4) + "\n"


def test_files_of_other_programs_need_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "tao.json").write_text(
        json.dumps([{"img_path": "/data/q/0001_c1s1_1_0.jpg", "embedding": [[1, 2]]}])
    )
    assert read_embeddings(tmp_path / "tao.json").vectors.tolist() == [[1.0, 2.0]]
    np.save(tmp_path / "plain.npy", VECTORS.astype(np.float64))
    with pytest.raises(InputError, match=r"plain\.npy\.names\.txt must list the crops"):
        read_embeddings(tmp_path / "plain.npy")
    (tmp_path / "plain.npy.names.txt").write_text("\n".join(NAMES))
    assert read_embeddings(tmp_path / "plain.npy").vectors.dtype == np.float32


def test_a_changed_file_does_not_pass_its_manifest(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.npy", NAMES, VECTORS, {})
    np.save(tmp_path / "a.npy", VECTORS + 1)
    with pytest.raises(InputError, match="not the file that its manifest describes"):
        read_embeddings(tmp_path / "a.npy")


def _objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "suffix determines"),
        ("a.npy", b"garbage", "not a usable NumPy array"),
        ("a.npz", b"garbage", "not a NumPy archive"),
        ("a.json", b"{}", "expected TAO's list"),
        ("a.json", b"[]", "expected TAO's list"),
        ("a.json", b'[{"img_path": "x"}]', "an entry differs"),
        ("a.json", b'[{"img_path": "x", "embedding": [1' + b"0" * 400 + b"]}]", "is too large"),
        ("a.json", b'[{"img_path": "x", "embedding": ["y"]}]', "an entry differs"),
        (
            "a.json",
            b'[{"img_path":"x","embedding":[1]},{"img_path":"y","embedding":[1,2]}]',
            "differ in size",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (tmp_path / "a.npy.names.txt").write_text("x\n")
    with pytest.raises(InputError, match=message):
        read_embeddings(path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    _objects(tmp_path / "a.npy")
    (tmp_path / "a.npy.names.txt").write_text("x\n")
    with pytest.raises(InputError, match="contains Python objects"):
        read_embeddings(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "array", [VECTORS[:2], VECTORS[0], VECTORS.astype(int), np.zeros((3, 0), np.float32)]
)
def test_arrays_of_another_shape_or_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", embeddings=array, names=np.array(NAMES))
    with pytest.raises(InputError, match="expected"):
        read_embeddings(tmp_path / "a.npz")


def test_an_archive_without_names_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=VECTORS)
    with pytest.raises(InputError, match="no array embeddings, names; it contains features"):
        read_embeddings(tmp_path / "a.npz")


def test_a_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line break"):
        write_embeddings(tmp_path / "a.npy", ("a\nb",), VECTORS[:1], {})


def test_spaces_must_agree(tmp_path: Path) -> None:
    for name, space in (("a", "one"), ("b", "one"), ("c", "two")):
        write_embeddings(tmp_path / f"{name}.npz", NAMES, VECTORS, {"space": space})
    a, b, c = (read_embeddings(tmp_path / f"{name}.npz") for name in "abc")
    require_one_space([a, b])
    with pytest.raises(SpaceMismatch, match="two"):
        require_one_space([a, c])


def test_labels_from_names_take_the_wanted_split(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.npz", NAMES, VECTORS, {})
    file = read_embeddings(tmp_path / "a.npz")
    query, gallery = labelled_by_name(file, Split.QUERY), labelled_by_name(file, Split.GALLERY)
    assert (query.pids.tolist(), gallery.pids.tolist()) == ([1, 2], [1])
    assert gallery.camids.tolist() == [2]
    np.testing.assert_allclose(np.linalg.norm(query.vectors, axis=1), 1, atol=1e-6)


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.npz", ("holiday.jpg",), VECTORS[:1], {})
    with pytest.raises(DatasetError, match=r"holiday\.jpg"):
        labelled_by_name(read_embeddings(tmp_path / "a.npz"), Split.QUERY)


def test_labels_from_the_data_set_pick_rows_by_folder_and_name(tmp_path: Path) -> None:
    twins = ("query/0001_c1s1_000001_00.jpg", "bounding_box_test/0001_c1s1_000001_00.jpg")
    write_embeddings(tmp_path / "a.npz", twins, VECTORS[:2], {})
    file = read_embeddings(tmp_path / "a.npz")
    crop = Crop(tmp_path / "bounding_box_test" / "0001_c1s1_000001_00.jpg", 1, 1, 1, 1, Split.GALLERY)
    found = labelled_by_dataset(file, [crop])
    np.testing.assert_allclose(found.vectors[0], VECTORS[1] / np.linalg.norm(VECTORS[1]), atol=1e-6)


def test_a_crop_without_embedding_is_named(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.npz", NAMES, VECTORS, {})
    crop = Crop(tmp_path / "query" / "0009_c1s1_000001_00.jpg", 9, 1, 1, 1, Split.QUERY)
    with pytest.raises(DatasetError, match=r"lacks 1 of the 1 crops in query.*0009_c1s1"):
        labelled_by_dataset(read_embeddings(tmp_path / "a.npz"), [crop])
