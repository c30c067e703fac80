"""Market-1501 layout: names, problems, statistics, pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.pictures import CropName, list_pictures, parse_crop_name, read_picture
from edge_agent.offline import contact_sheet
from edge_agent.offline.dataset import Crop, MarketDataset, Split, SyntheticList
from tests.core.test_files import make


def _picture(path: Path, colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((128, 64, 3), colour, np.uint8))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two people, two cameras, a distractor, junk, and files that do not belong."""
    root = tmp_path / "set"
    _picture(root / "bounding_box_train" / "0007_c1s1_000001_00.jpg")
    _picture(root / "bounding_box_train" / "0007_c2s3_000009_00.png")
    _picture(root / "bounding_box_test" / "0001_c2s1_000010_01.jpg")
    _picture(root / "bounding_box_test" / "0000_c2s1_000011_01.jpg")
    _picture(root / "bounding_box_test" / "-1_c1s1_000012_01.jpg")
    _picture(root / "query" / "0001_c1s1_000001_00.jpeg")
    _picture(root / "query" / "holiday.jpg")
    (root / "query" / "0002_c1s1_000001_00.jpg").write_bytes(b"")
    (root / "query" / "notes.txt").write_text("x")
    (root / "query" / "Thumbs.db").write_bytes(b"x")
    (root / "query" / ".hidden.jpg").write_bytes(b"x")
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0002_c1s1_000451_03.jpg", CropName(2, 1, 1, 451)),
        ("0002_c1s1_000451_03.jpg.jpg", CropName(2, 1, 1, 451)),
        ("0002_c1s1_000451_anything_at_all.PNG", CropName(2, 1, 1, 451)),
        ("0002_c1s1_000451.jpeg", CropName(2, 1, 1, 451)),
        ("-1_c6s4_002202_00.jpg", CropName(-1, 6, 4, 2202)),
        ("0000_c3s1_000001_00.jpg", CropName(0, 3, 1, 1)),
        ("102345_c135s12_00012345_01.jpg", CropName(102345, 135, 12, 12345)),
        ("0001_c2_f0046182.jpg", CropName(1, 2, None, 46182)),
        ("0001_c2_0046182_00.jpg", CropName(1, 2, None, 46182)),
        ("-2_c1s1_000001_00.jpg", None),
        ("x0002_c1s1_000451_03.jpg", None),
        ("0002_c1s1_000451_03.bmp", None),
        ("0002_c1s1.jpg", None),
        ("0002_s1_000451_03.jpg", None),
        ("", None),
    ],
)
def test_names(name: str, expected: CropName | None) -> None:
    assert parse_crop_name(name) == expected


def test_open_lists_what_cannot_be_used_and_reads_the_rest(small: Path) -> None:
    dataset = MarketDataset.open(small)
    assert [crop.path.name for crop in dataset.split(Split.TRAIN)] == [
        "0007_c1s1_000001_00.jpg",
        "0007_c2s3_000009_00.png",
    ]
    assert [crop.pid for crop in dataset.split(Split.GALLERY)] == [-1, 0, 1]
    (query,) = dataset.split(Split.QUERY)
    assert query == Crop(small / "query" / "0001_c1s1_000001_00.jpeg", 1, 1, 1, 1, Split.QUERY)
    assert {problem.path.name: problem.reason.split(":")[0] for problem in dataset.problems} == {
        "0002_c1s1_000001_00.jpg": "is empty (0 bytes)",
        "holiday.jpg": "is misnamed",
        "notes.txt": "is not a picture (.jpg, .jpeg or .png)",
    }


def test_statistics_count_junk_and_distractors_apart(small: Path) -> None:
    counts = MarketDataset.open(small).statistics()
    gallery = counts[Split.GALLERY]
    assert (gallery.identities, gallery.images, gallery.cameras) == (1, 3, 2)
    assert (gallery.distractor_images, gallery.junk_images, gallery.sequences) == (1, 1, 2)
    assert counts[Split.TRAIN].identities == 1
    assert counts[Split.TRAIN].sequences == 2


def test_statistics_by_origin(small: Path, tmp_path: Path) -> None:
    listed = tmp_path / "synthetic.txt"
    listed.write_text("# rendered\n0007  # one person\nc3-c5\n\n900-902\n")
    synthetic = SyntheticList.read(listed)
    assert synthetic == SyntheticList(frozenset({7, 900, 901, 902}), frozenset({3, 4, 5}))
    by_origin = MarketDataset.open(small).statistics_by_origin(synthetic)
    assert [part.images for part in by_origin[Split.TRAIN]] == [0, 2]
    assert [part.images for part in by_origin[Split.GALLERY]] == [3, 0]


@pytest.mark.parametrize("line", ["c3-5", "seven", "3-c5", "-4"])
def test_a_wrong_line_of_the_synthetic_list_is_named(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "synthetic.txt"
    listed.write_text(f"7\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        SyntheticList.read(listed)


def _remove(folder: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for path in (root / folder).iterdir():
            path.unlink()
        (root / folder).rmdir()

    return change


def _empty(root: Path) -> None:
    for path in (root / "query").iterdir():
        path.unlink()


def _misnamed_only(root: Path) -> None:
    (root / "query" / "0001_c1s1_000001_00.jpeg").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove("query"), "has no query folder"),
        (_remove("bounding_box_test"), "has no bounding_box_test folder"),
        (_empty, "is empty"),
        (_misnamed_only, "3 files were refused, the first of them"),
    ],
)
def test_an_empty_split_is_fatal_only_when_it_is_needed(
    small: Path, change: Callable[[Path], None], message: str
) -> None:
    change(small)
    with pytest.raises(DatasetError, match=message):
        MarketDataset.open(small)
    only_train = MarketDataset.open(small, [Split.TRAIN])
    assert len(only_train.split(Split.TRAIN)) == 2
    with pytest.raises(DatasetError, match="opened without"):
        only_train.split(Split.QUERY)


def test_a_wrong_folder_is_explained(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"but .*set is; name that folder"):
        MarketDataset.open(tmp_path)
    with pytest.raises(DatasetError, match="one split of a data set; name its parent"):
        MarketDataset.open(small / "query")
    with pytest.raises(DatasetError, match="is not a folder"):
        MarketDataset.open(tmp_path / "nowhere")
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(DatasetError, match="none of the folders"):
        MarketDataset.open(bare)


def test_broken_pictures_are_distinguished_from_good_ones(small: Path) -> None:
    good = small / "bounding_box_test" / "0001_c2s1_000010_01.jpg"
    whole = good.read_bytes()
    (small / "bounding_box_test" / "0003_c1s1_000001_00.jpg").write_bytes(whole[: len(whole) // 2])
    (small / "bounding_box_test" / "0004_c1s1_000001_00.jpg").write_text("no picture")
    (small / "bounding_box_test" / "0005_c1s1_000001_00.jpg").write_bytes(whole + b"\0" * 5000)
    png = (small / "bounding_box_train" / "0007_c2s3_000009_00.png").read_bytes()
    (small / "bounding_box_test" / "0006_c1s1_000001_00.png").write_bytes(png[:-20])
    found = {
        problem.path.name: problem.reason
        for problem in MarketDataset.open(small).check_pictures()
        if problem is not None
    }
    assert found == {
        "0003_c1s1_000001_00.jpg": "is cut off",
        "0004_c1s1_000001_00.jpg": "is not a JPEG or PNG picture",
        "0006_c1s1_000001_00.png": "is cut off",
    }


def test_read_picture(small: Path) -> None:
    picture = read_picture(small / "query" / "0001_c1s1_000001_00.jpeg")
    assert picture.shape == (128, 64, 3)
    assert picture.dtype == np.uint8
    with pytest.raises(InputError, match="No such file"):
        read_picture(small / "none.jpg")
    with pytest.raises(InputError, match="is empty"):
        read_picture(small / "query" / "0002_c1s1_000001_00.jpg")


def test_list_pictures(small: Path) -> None:
    names = [path.name for path in list_pictures(small / "query")]
    assert names == ["0001_c1s1_000001_00.jpeg", "0002_c1s1_000001_00.jpg", "holiday.jpg"]
    with pytest.raises(InputError, match="not a folder"):
        list_pictures(small / "none")
    with pytest.raises(InputError, match="holds no picture"):
        list_pictures(small)


def test_contact_sheet_is_deterministic_and_survives_broken_pictures(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "PEOPLE", 4)
    monkeypatch.setattr(contact_sheet, "PICTURES", 3)
    (small / "bounding_box_test" / "0003_c1s1_000001_00.jpg").write_text("no picture")
    dataset = MarketDataset.open(small)
    sheet = contact_sheet.contact_sheet(dataset)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    np.testing.assert_array_equal(sheet, contact_sheet.contact_sheet(dataset))
    assert (sheet == (0, 0, 255)).all(axis=2).any()  # the cross over the broken one


def test_importing_the_reader_is_cheap() -> None:
    import subprocess
    import sys

    program = "import sys, edge_agent.offline.dataset; print(sorted({'numpy', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_real_set(pets_market: Path) -> None:
    dataset = MarketDataset.open(pets_market)
    counts = {split.value: (c.identities, c.images, c.cameras) for split, c in dataset.statistics().items()}
    assert counts == {"train": (4, 132, 2), "gallery": (6, 660, 4), "query": (6, 82, 4)}
    assert dataset.problems == ()


@pytest.mark.parametrize("kind", ["pipe", "device", "circle", "dangling", "socket"])
def test_what_is_no_regular_file_is_listed(small: Path, kind: str) -> None:
    odd = make(kind, small / "query" / "0009_c1s1_000009_00.jpg")
    reasons = {problem.path: problem.reason for problem in MarketDataset.open(small).problems}
    assert reasons[odd].startswith(("is not a regular file", "cannot be read"))


def test_a_name_that_is_not_utf8_is_listed(small: Path) -> None:
    odd = small / "query" / os.fsdecode(b"0009_c1s1_000009_\xe9.jpg")
    odd.write_bytes(b"x")
    reasons = {problem.path: problem.reason for problem in MarketDataset.open(small).problems}
    assert reasons[odd] == "has a name that is not UTF-8 text; rename it"
