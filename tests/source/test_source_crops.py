from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edge_agent.core.errors import SourceError, SourceLost, StorageError
from edge_agent.core.structures import LONE_TRACKS, CropBatch, Pictures, SourceState
from edge_agent.source import crop_files, crop_metadata, crops
from edge_agent.source.crop_files import CropLedger
from edge_agent.source.crop_metadata import CropDescriber
from edge_agent.source.crops import CropFolderOptions, CropFolderSource
from tests.core.test_files import KINDS, make
from tests.source.test_source_reader import Watch

LONG_AGO = 1_700_000_000.0


def encoded(level: int = 100, suffix: str = ".jpg", size: tuple[int, int] = (16, 32)) -> bytes:
    return cv2.imencode(suffix, np.full((size[1], size[0], 3), level, np.uint8))[1].tobytes()


def put(folder: Path, name: str, data: bytes | None = None, *, at: float = LONG_AGO, sidecar=None) -> Path:
    """A crop as a good writer leaves it: data first, then the picture by renaming."""
    path = folder / name
    if sidecar is not None:
        path.with_suffix(".json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))
    temporary = folder / f".{name}"
    temporary.write_bytes(encoded() if data is None else data)
    os.utime(temporary, (at, at))
    temporary.rename(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "crops").mkdir()
    return tmp_path / "crops"


def source(folder: Path, **options) -> CropFolderSource:
    options = {"once": True, "poll_seconds": 0.02, "settle_seconds": 0.05, **options}
    return CropFolderSource(
        "yard", folder, folder.parent / "state" / "crops.sqlite", CropFolderOptions(**options)
    )


def read(source: CropFolderSource, *, acknowledge: bool = True) -> list[CropBatch]:
    batches = []
    for batch in source.frames():
        if batch is not None:
            batches.append(batch)
            if acknowledge:
                source.done(batch)
    return batches


def test_names_contain_camera_frame_and_track(folder):
    put(folder, "0007_c2s1_000451_01.jpg", encoded(10), at=LONG_AGO + 2)
    put(folder, "0008_c2s1_000451_02.png", encoded(20, ".png"), at=LONG_AGO + 2.01)
    put(folder, "0000_c1s1_000009_01.jpg", encoded(30), at=LONG_AGO + 1)
    put(folder, "0007_c2s2_000451_01.jpg", encoded(40), at=LONG_AGO + 3)
    first, second, third = read(source(folder))
    assert (first.camera, first.number, first.time, first.track_ids) == ("yard-c1", 9, LONG_AGO + 1, (None,))
    assert (second.camera, second.number, second.track_ids) == ("yard-c2", 451, (1_000_007, 1_000_008))
    assert second.time == pytest.approx(LONG_AGO + 2, abs=1e-6)
    assert [round(float(image.mean())) for image in second.images] == [10, 20]
    assert second.boxes.tolist() == [[0, 0, 16, 32]] * 2
    # the same track number in another recording is another track
    assert (third.camera, third.track_ids) == ("yard-c2", (2_000_007,))


def test_a_json_object_has_more_fields(folder):
    stamp = "2023-11-14T22:13:20.250Z"
    put(
        folder,
        "a.jpg",
        sidecar={"camera": "hall", "time": stamp, "frame": 5, "track": 3, "box": [1, 2, 17, 34]},
    )
    put(folder, "b.jpg", sidecar={"camera": "hall", "time": LONG_AGO + 0.25, "frame": 5, "score": 0.5})
    put(folder, "c.jpg", sidecar={})
    plain, hall = sorted(read(source(folder)), key=lambda batch: len(batch.camera))
    assert (hall.camera, hall.number, hall.time, hall.track_ids) == (
        "yard-hall",
        5,
        LONG_AGO + 0.25,
        (3, None),
    )
    assert hall.boxes.tolist() == [[1, 2, 17, 34], [0, 0, 16, 32]]
    assert (plain.camera, plain.time, plain.track_ids) == ("yard", LONG_AGO, (None,))


def test_with_a_rate_the_frame_number_is_the_time(folder):
    for frame in (20, 5, 10):
        put(folder, f"0001_c1s1_{frame:06d}_01.jpg")
    batches = read(source(folder, fps=10, start_time=100.0))
    assert [(batch.number, batch.time) for batch in batches] == [(5, 100.5), (10, 101.0), (20, 102.0)]


@pytest.mark.parametrize(
    ("name", "sidecar"),
    [
        ("a.jpg", {"time": -1e11}),  # events cannot express it
        ("a.jpg", {"time": 1e300}),
        ("a.jpg", {"time": 10**400}),
        ("a.jpg", '{"time": NaN}'),
        ("a.jpg", {"time": "9999-12-31T23:59:59Z"}),
        ("a.jpg", {"time": "0001-01-01T00:00:00Z"}),
        ("a.jpg", {"frame": 1 << 63}),
        ("a.jpg", {"track": 1 << 63}),
        (f"0007_c2s1_{'9' * 40}_01.jpg", None),
        (f"{'9' * 40}_c2s1_000451_01.jpg", None),
        (f"0007_c2s{'9' * 40}_000451_01.jpg", None),
    ],
)
def test_numbers_out_of_range_refuse_one_crop(folder, name, sidecar):
    put(folder, name, sidecar=sidecar)
    put(folder, "0007_c2s1_000451_01.jpg")
    with capture_logs() as logs:
        (batch,) = read(source(folder, fps=10, start_time=100.0))
    assert batch.number == 451
    assert [entry["event"] for entry in logs] == ["crop_refused"]


def test_a_file_time_out_of_range_refuses_one_crop(folder, monkeypatch):
    # Some file systems store any 64-bit number.
    monkeypatch.setattr(crop_metadata, "LATEST_TIME", LONG_AGO)
    put(folder, "0007_c2s1_000451_01.jpg", at=LONG_AGO + 60)
    put(folder, "0008_c2s1_000451_01.jpg", at=LONG_AGO - 60)
    (batch,) = read(source(folder))
    assert batch.track_ids == (1_000_008,)


@pytest.mark.parametrize("at", [-(2.0**31), -1.0, 0.0, 9_223_372_035.0, 9_223_372_038.0, 1e10, 1.5e10])
def test_a_file_time_of_another_century_costs_at_most_its_own_crop(folder, at):
    # SQLite stores nanoseconds up to the year 2262; files can be of later years.
    put(folder, "0007_c2s1_000451_01.jpg", at=at)
    put(folder, "0008_c2s1_000452_01.jpg")
    found = {track for batch in read(source(folder)) for track in batch.track_ids}
    assert 1_000_008 in found
    assert (1_000_007 in found) == (at >= 0)
    assert read(source(folder)) == []


def test_acknowledged_crops_never_come_again_and_others_do(folder):
    for track in range(1, 5):
        put(folder, f"{track:04d}_c1s1_{track:06d}_01.jpg", at=LONG_AGO + track)
    first = source(folder)
    batches = read(first, acknowledge=False)
    assert [batch.number for batch in batches] == [1, 2, 3, 4]
    first.done(batches[1])
    assert [batch.number for batch in read(source(folder))] == [1, 3, 4]
    assert read(source(folder)) == []
    put(folder, "0005_c1s1_000005_01.jpg")
    put(folder, "0002_c1s1_000002_01.jpg", encoded(7), at=LONG_AGO + 9)  # the name is used again
    assert [batch.number for batch in read(source(folder))] == [5, 2]


def test_crops_in_work_are_not_given_twice(folder):
    put(folder, "0001_c1s1_000001_01.jpg")
    watching = source(folder, once=False)
    items = watching.frames()
    batch = next(item for item in items if item is not None)
    put(folder, "0002_c1s1_000002_01.jpg")
    assert next(item for item in items if item is not None).number == 2
    watching.done(batch)
    assert [next(items) for _ in range(5)] == [None] * 5
    items.close()
    with pytest.raises(ValueError, match="acknowledged already"):
        watching.done(batch)


READ_AND_DIE = """
import os, signal, sys
from edge_agent.source.crop_files import CropLedger
from edge_agent.source.crops import CropFolderSource
from edge_agent.source.crops import CropFolderOptions
source = CropFolderSource("yard", sys.argv[1], sys.argv[2], CropFolderOptions(once=True))
for count, batch in enumerate((b for b in source.frames() if b is not None), 1):
    print(batch.number, flush=True)
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)  # used, but not acknowledged
    source.done(batch)
"""


def test_killed_in_the_middle_and_started_again(folder):
    for frame in range(1, 21):
        put(folder, f"0001_c1s1_{frame:06d}_01.jpg", at=LONG_AGO + frame)
    seen: list[int] = []
    for deaths in (4, 10**6):
        arguments = [str(folder), str(folder.parent / "crops.sqlite"), str(deaths)]
        run = subprocess.run(
            [sys.executable, "-c", READ_AND_DIE, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode in {0, -signal.SIGKILL}, run.stderr
        seen += [int(number) for number in run.stdout.split()]
    # 4 was in use when the process died: only it comes again
    assert seen == [1, 2, 3, 4, *range(4, 21)]


def test_a_half_written_crop_waits_until_it_is_whole(folder):
    data = encoded()
    path = folder / "0001_c1s1_000001_01.jpg"
    items = source(folder, once=False, settle_seconds=0.1).frames()
    path.write_bytes(data[:-40])
    assert [next(items) for _ in range(15)] == [None] * 15  # it stands still, but has no end
    with path.open("ab") as handle:
        handle.write(data[-40:])
    batch = next(item for item in items if item is not None)
    assert batch.images[0].shape == (32, 16, 3)
    items.close()


def test_a_crop_still_growing_is_left_alone_even_with_an_end_marker(folder):
    items = source(folder, once=False, settle_seconds=0.3).frames()
    path = folder / "0001_c1s1_000001_01.jpg"
    path.write_bytes(encoded())
    assert next(items) is None
    assert next(item for item in items if item is not None).number == 1
    assert time.time() - path.stat().st_mtime >= 0.3
    items.close()


def test_a_clock_that_runs_ahead_delays_nothing_for_long(folder):
    put(folder, "0001_c1s1_000001_01.jpg", at=time.time() + 3600)
    assert [batch.number for batch in read(source(folder))] == [1]


BROKEN = {
    "0001_c1s1_000001_01.jpg": (b"not a picture", None),
    "0002_c1s1_000002_01.jpg": (encoded()[:200], None),
    "0003_c1s1_000003_01.png": (encoded(1, ".png")[:-30], None),
    "0004_c1s1_000004_01.jpg": (b"", None),
    "-1_c1s1_000005_01.jpg": (None, None),
    "noname.jpg": (None, None),
    "list.jpg": (None, "[]"),
    "half.jpg": (None, '{"camera": "ha'),
    "deep.jpg": (None, "[" * 60000),
    "camera.jpg": (None, {"camera": "../etc"}),
    "number.jpg": (None, {"camera": 5}),
    "time.jpg": (None, {"time": "yesterday"}),
    "zone.jpg": (None, {"time": "2023-11-14T22:13:20"}),
    "nan.jpg": (None, '{"time": NaN}'),
    "boxes.jpg": (None, {"box": [1, 2, 3]}),
    "empty.jpg": (None, {"box": [5, 5, 5, 9]}),
    "inf.jpg": (None, '{"box": [0, 0, Infinity, 9]}'),
    "track.jpg": (None, {"track": -3}),
    "frame.jpg": (None, {"frame": 1.5}),
    "long.jpg": (None, " " * 70000),
}


def test_a_broken_sensor_is_reported_once_and_stops_nothing(folder):
    for name, (data, sidecar) in BROKEN.items():
        put(folder, name, data, sidecar=sidecar)
    put(folder, "0009_c1s1_000009_01.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "notes.txt").write_text("no crop")
    put(folder, ".hidden.jpg")
    reading = source(folder)
    with capture_logs() as logs:
        assert [batch.number for batch in read(reading)] == [9]
    refused = [entry["file"] for entry in logs if entry["event"] == "crop_refused"]
    assert sorted(refused) == sorted(BROKEN)
    with capture_logs() as logs:
        assert read(source(folder)) == []
    assert logs == []


def test_a_late_json_object_is_waited_for(folder):
    items = source(folder, once=False).frames()
    put(folder, "person.jpg", at=time.time() - 1)
    assert [next(items) for _ in range(5)] == [None] * 5
    (folder / "person.json").write_text('{"camera": "hall"}')
    assert next(item for item in items if item is not None).camera == "yard-hall"
    items.close()


def test_deleting_leaves_only_what_was_not_acknowledged(folder):
    put(folder, "a.jpg", sidecar={})
    put(folder, "b.jpg", at=LONG_AGO + 1, sidecar={})
    reading = source(folder, delete=True)
    first, _ = read(reading, acknowledge=False)
    assert len(list(folder.iterdir())) == 4
    reading.done(first)
    assert sorted(path.name for path in folder.iterdir()) == ["b.jpg", "b.json"]


def test_the_state_drops_deleted_files_but_not_an_unmounted_share(folder):
    for frame in (1, 2, 3):
        put(folder, f"0001_c1s1_{frame:06d}_01.jpg")
    read(source(folder))

    def known() -> int:
        with contextlib.closing(sqlite3.connect(folder.parent / "state" / "crops.sqlite")) as database:
            return database.execute("SELECT count(*) FROM crops").fetchone()[0]

    moved = folder.rename(folder.parent / "mounted")
    folder.mkdir()
    assert read(source(folder)) == []
    assert known() == 3
    folder.rmdir()
    moved.rename(folder)
    (folder / "0001_c1s1_000002_01.jpg").unlink()
    assert read(source(folder)) == []
    assert known() == 2
    (folder / "0001_c1s1_000003_01.jpg").unlink()
    ledger = CropLedger(folder.parent / "state" / "crops.sqlite")
    with ledger.opened():  # a run of several days
        ledger.prune(folder)
        ledger.prune(folder)
    assert known() == 1


def test_a_consumer_that_acknowledges_nothing_is_not_flooded(folder, monkeypatch):
    monkeypatch.setattr(crops, "MAX_IN_FLIGHT", 2)
    for frame in range(1, 6):
        put(folder, f"0001_c1s1_{frame:06d}_01.jpg", at=LONG_AGO + frame)
    reading = source(folder)
    items = reading.frames()
    first, second = next(items), next(items)
    assert [next(items), next(items)] == [None, None]
    reading.done(first)
    assert next(item for item in items if item is not None).number == 3
    reading.done(second)
    items.close()


def test_large_frames_take_several_batches_and_large_folders_several_scans(folder, monkeypatch):
    monkeypatch.setattr(crops, "MAX_CROPS", 4)
    monkeypatch.setattr(crop_files, "MAX_LISTED", 6)
    for count in range(20):
        put(folder, f"{count + 1:04d}_c1s1_{count // 10:06d}_01.jpg", at=LONG_AGO + count)
    batches = read(source(folder))
    assert sum(len(batch.images) for batch in batches) == 20
    assert max(len(batch.images) for batch in batches) == 4
    assert [batch.number for batch in batches] == sorted(batch.number for batch in batches)


def test_a_folder_that_is_missing_and_one_that_vanishes(folder, tmp_path):
    with pytest.raises(SourceError, match="nowhere") as caught:
        next(source(tmp_path / "nowhere").frames())
    assert not isinstance(caught.value, SourceLost)
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="not a folder"):
        next(source(tmp_path / "file").frames())
    watching = source(folder, once=False)
    items = watching.frames()
    assert next(items) is None
    shutil.rmtree(folder)
    with pytest.raises(SourceLost, match="crops"):
        list(items)
    with pytest.raises(SourceLost):
        next(watching.frames())
    os.mkfifo(folder)  # it comes back as something else, for example while a share is mounted
    with pytest.raises(SourceLost, match="not a folder"):
        next(watching.frames())
    folder.unlink()
    folder.mkdir()
    put(folder, "0001_c1s1_000001_01.jpg")
    assert next(watching.frames()) is not None


def test_a_state_that_is_no_database_is_named(folder):
    state = folder.parent / "state" / "crops.sqlite"
    state.parent.mkdir()
    state.write_text("this is not a database, and long enough to be read as one" * 50)
    with pytest.raises(StorageError, match=r"crops\.sqlite"):
        next(source(folder).frames())


def test_through_a_reader(folder):
    for frame in (1, 2):
        put(folder, f"0001_c1s1_{frame:06d}_01.jpg", at=LONG_AGO + frame)
    reading = source(folder, once=False)
    watch = Watch(reading)
    got = []
    with watch.reader as reader:

        def both() -> bool:
            batch = reader.poll()
            if batch is not None:
                reader.done(batch)
                got.append(batch.number)
            return len(got) == 2

        watch.until(both)
    assert got == [1, 2]
    assert (reader.dropped, watch.states) == (0, [SourceState.ONLINE])
    assert read(source(folder)) == []  # both are acknowledged


def test_the_real_set_is_read_whole(pets_market, folder):
    query = pets_market / "query"
    names = sorted(path.name for path in query.glob("*.jpg"))
    batches = read(CropFolderSource("pets", query, folder.parent / "s.sqlite", CropFolderOptions(once=True)))
    assert sum(len(batch.images) for batch in batches) == len(names)


# --- erasure ----------------------------------------------------------------------------------------------


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_of_a_track_are_erased_read_or_not(folder):
    seen = put(folder, "a.jpg", sidecar={"camera": "hall", "track": 7, "time": 100.0})
    put(folder, "b.jpg", sidecar={"camera": "hall", "track": 8, "time": 100.0})
    reader = source(folder)
    read(reader)
    put(folder, "c.jpg", sidecar={"camera": "hall", "track": 7, "time": 101.0})
    put(folder, "d.jpg", sidecar={"camera": "door", "track": 7, "time": 101.0})
    put(folder, "later.jpg", sidecar={"camera": "hall", "track": 7, "time": 300.0})
    put(folder, "broken.jpg", b"", sidecar="{")
    assert reader.owns("yard-hall")
    assert not reader.owns("yards")
    assert reader.erase([Pictures("yard-hall", 7, 100.0, 300.0)]) == 2
    assert not seen.exists()
    kept = ("b", "broken", "d", "later")
    assert left(folder) == sorted(f"{name}{suffix}" for name in kept for suffix in (".jpg", ".json"))
    assert reader.erase([Pictures("yard-hall", 7, 100.0, 300.0)]) == 0
    put(folder, "a.jpg", sidecar={"camera": "hall", "track": 9, "time": 500.0})
    assert [batch.track_ids for batch in read(reader)][-1] == (9,)  # the name is free again


def test_whole_seconds_do_not_make_a_frame_of_crops_without_tracks(folder):
    for name, sidecar in (
        ("a.jpg", {"time": 100.0}), ("b.jpg", {"time": 100.0}),
        ("c.jpg", {"time": 101.25}), ("d.jpg", {"time": 101.25}),
        ("e.jpg", {"time": 102.0, "frame": 7}), ("f.jpg", {"time": 102.0, "frame": 7}),
        ("g.jpg", {"time": 103.0, "track": 1}), ("h.jpg", {"time": 103.0, "track": 2}),
    ):  # fmt: skip
        put(folder, name, sidecar=sidecar)
    assert [len(batch.track_ids) for batch in read(source(folder))] == [1, 1, 2, 2, 2]


def test_a_picture_without_a_track_is_erased_by_its_moment(folder):
    for name, moment in (("a.jpg", 100.0), ("b.jpg", 100.2)):
        put(folder, name, sidecar={"camera": "hall", "time": moment})
    assert source(folder).erase([Pictures("yard-hall", LONE_TRACKS + 3, 100.0, math.inf)]) == 1
    assert left(folder) == ["b.jpg", "b.json"]


def test_times_that_count_from_the_opening_are_no_condition(folder):
    put(folder, "0007_c2s1_000451_01.jpg")
    put(folder, "0008_c2s1_000451_02.jpg")
    assert source(folder, fps=10.0).erase([Pictures("yard-c2", 1_000_007, 5e9, math.inf)]) == 1
    assert left(folder) == ["0008_c2s1_000451_02.jpg"]


def test_a_missing_folder_is_reported(folder):
    reader = source(folder)
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match="cannot be deleted"):
        reader.erase([Pictures("yard-hall", 7, 0.0, math.inf)])


def test_acknowledged_pictures_left_by_a_kill_are_removed(folder):
    put(folder, "0007_c2s1_000451_01.jpg")
    read(source(folder))  # as if the process ended between the acknowledgement and the deletion
    assert left(folder)
    assert read(source(folder, delete=True)) == []
    assert left(folder) == []


NAMES = st.binary(min_size=1, max_size=200).filter(lambda raw: b"/" not in raw and b"\0" not in raw)


@given(st.lists(NAMES, max_size=6, unique=True))
@settings(max_examples=30)
def test_names_of_any_bytes_cost_at_most_their_own_crop(names):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "crops"
        folder.mkdir()
        put(folder, "0007_c2s1_000451_01.jpg")
        for raw in names:
            put(folder, os.fsdecode(b"0008_c2s1_000451_" + raw + b".jpg"))
        first, *others = read(source(folder))
        assert first.track_ids[0] == 1_000_007
        assert sum(len(batch.images) for batch in (first, *others)) >= 1
        assert read(source(folder)) == [], "every crop was read or refused for good"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sidecar_of_any_kind_costs_at_most_its_own_crop(kind, folder):
    make(kind, put(folder, "0008_c2s1_000451_01.jpg").with_suffix(".json"))
    put(folder, "0007_c2s1_000452_01.jpg")
    began = time.monotonic()
    batches = read(source(folder))
    assert time.monotonic() - began < 2
    without_sidecar = kind == "missing"  # links are not followed
    assert len(batches) == (2 if without_sidecar else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_costs_at_most_itself(kind, folder):
    make(kind, folder / "0008_c2s1_000451_01.jpg")
    put(folder, "0007_c2s1_000452_01.jpg")
    [batch] = read(source(folder))
    assert batch.number == 452


def test_a_name_as_long_as_names_may_be(folder):
    put(folder, "0008_c2s1_000451_".ljust(251 - 14, "x") + ".jpg")
    (folder / ("0009_c2s1_000451_".ljust(251, "x") + ".jpg")).write_bytes(encoded())
    assert sum(len(batch.images) for batch in read(source(folder, settle_seconds=0.0))) == 2


def test_a_name_as_long_as_names_may_be_is_deleted(folder):
    name = "0009_c2s1_000451_".ljust(251, "x") + ".jpg"
    for delete in (True, False):
        (folder / name).write_bytes(encoded())
        reading = source(folder, settle_seconds=0.0, delete=delete)
        assert len(read(reading)) == 1
        assert left(folder) == ([] if delete else [name])
    assert reading.erase([Pictures("yard-c2", 1_000_009, 0.0, 1e10)]) == 1
    assert left(folder) == []


def test_a_crop_that_vanishes_between_listing_and_opening(folder, monkeypatch):
    gone = put(folder, "0008_c2s1_000451_01.jpg")
    put(folder, "0007_c2s1_000452_01.jpg")
    describe = CropDescriber.describe

    def vanish(describer, file):
        gone.unlink(missing_ok=True)
        return describe(describer, file)

    monkeypatch.setattr(CropDescriber, "describe", vanish)
    [batch] = read(source(folder))
    assert batch.number == 452


def test_an_unexpected_error_refuses_one_crop(folder, monkeypatch):
    put(folder, "0008_c2s1_000451_01.jpg")
    put(folder, "0007_c2s1_000452_01.jpg")
    decode = crops.read_picture

    def fail(path, **limits):
        if path.name.startswith("0008"):
            raise ZeroDivisionError("bug")
        return decode(path, **limits)

    monkeypatch.setattr(crops, "read_picture", fail)
    with capture_logs() as logs:
        [batch] = read(source(folder))
    assert batch.number == 452
    assert [line["file"] for line in logs if line["event"] == "crop_failed"] == ["0008_c2s1_000451_01.jpg"]
    assert read(source(folder)) == []


def test_the_pictures_in_flight_are_bounded_in_bytes(folder, monkeypatch):
    monkeypatch.setattr(crops, "MAX_BATCH_BYTES", 4000)
    monkeypatch.setattr(crops, "MAX_BYTES_IN_FLIGHT", 9000)
    for track in range(1, 10):
        put(folder, f"{track:04d}_c2s1_000451_01.jpg", encoded(size=(32, 32)))
    reading = source(folder)
    held, given = reading.frames(), []
    for batch in held:
        if batch is None:
            reading.done(given[-1])  # makes room
            continue
        assert sum(image.nbytes for image in batch.images) < 4000 + 32 * 32 * 3
        given.append(batch)
        if len(given) == 5:
            break
    assert [len(batch.images) for batch in given] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("relative", [False, True])
def test_links_are_neither_read_nor_deleted_through(folder, relative):
    """Not to pictures outside, not to other files, not to folders, and not as JSON next to a picture."""
    outside = folder.parent / "outside"
    outside.mkdir()
    target = put(outside, "0001_c1s1_000001_00.jpg")
    secret = outside / "secret.json"
    secret.write_text(json.dumps({"camera": "hall", "frame": 1, "track": 1}))
    base = Path("../outside") if relative else outside
    (folder / "0001_c1s1_000001_00.jpg").symlink_to(base / target.name)
    (folder / "0001_c1s1_000002_00.jpg").symlink_to(base)
    (folder / "0001_c1s1_000003_00.jpg").symlink_to("/dev/zero")
    (folder / "0001_c1s1_000004_00.jpg").symlink_to("nowhere.jpg")
    put(folder, "0001_c1s1_000005_00.jpg")
    (folder / "0001_c1s1_000005_00.json").symlink_to(base / secret.name)
    put(folder, "0001_c1s1_000006_00.jpg")
    own = source(folder, delete=True)
    with capture_logs() as logs:
        batches = read(own)
    assert [batch.number for batch in batches] == [6]
    refused = {line["file"]: line["reason"] for line in logs if line["event"] == "crop_refused"}
    assert len(refused) == 5
    assert all("symbolic link" in reason for reason in refused.values())
    own.erase([Pictures("yard-c1", 1_000_001, 0.0, math.inf)])
    assert sorted(one.name for one in outside.iterdir()) == [target.name, secret.name]
    assert (folder / "0001_c1s1_000001_00.jpg").is_symlink()


def test_a_link_that_takes_the_place_of_a_picture_is_not_followed(folder, monkeypatch):
    """Between the listing and the reading, and between the reading and the deletion."""
    outside = put(folder.parent, "outside.jpg")
    picture = put(folder, "0001_c1s1_000001_00.jpg")
    own, describe = source(folder), crop_metadata.CropDescriber.describe

    def swap(self, file):
        crop = describe(self, file)
        picture.unlink()
        picture.symlink_to(outside)
        return crop

    monkeypatch.setattr(crop_metadata.CropDescriber, "describe", swap)
    assert read(own) == []
    monkeypatch.undo()
    picture.unlink()
    put(folder, picture.name, at=LONG_AGO + 9)
    own = source(folder, delete=True)
    [batch] = read(own, acknowledge=False)
    picture.unlink()
    picture.symlink_to(outside)
    own.done(batch)
    assert outside.is_file()


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/{}/outside.jpg", "sub/../../outside.jpg", "..", "", "a\0b"]
)
def test_a_record_with_names_that_lead_out_of_the_folder_deletes_nothing(folder, name):
    outside = put(folder.parent, "outside.jpg")
    status = outside.stat()
    own = source(folder, delete=True)
    read(own)
    path = folder.parent / "state" / "crops.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        row = (name.format(folder.parent), status.st_size, status.st_mtime_ns, "read", 0.0)
        database.execute("INSERT INTO crops VALUES (?, ?, ?, ?, ?)", row)
    read(source(folder, delete=True))
    assert outside.is_file()


def test_the_record_is_private_under_any_umask(folder):
    before = os.umask(0)
    try:
        read(source(folder))
    finally:
        os.umask(before)
    path = folder.parent / "state" / "crops.sqlite"
    assert [one.stat().st_mode & 0o777 for one in (path.parent, path)] == [0o700, 0o600]
    path.chmod(0o644)  # by an earlier version
    read(source(folder))
    assert path.stat().st_mode & 0o777 == 0o600
