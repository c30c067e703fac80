"""A recorded run is decided again as it was, whatever happened in it; with other settings otherwise."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent import cli
from edge_agent.agent.recording import (
    RecordedIdentifier,
    UnwantedPictures,
    open_recorder,
    remove_old_recordings,
    shadow_entry,
)
from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings, Settings
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError, StorageError
from edge_agent.core.pictures import encode_kept
from edge_agent.core.structures import Decision, EngineInfo, TrackObservation, TrackUpdate
from edge_agent.gallery import erasure
from edge_agent.gallery.gallery import Gallery, open_gallery
from edge_agent.identify import Identifier
from edge_agent.offline.replay.changes import sweep
from edge_agent.offline.replay.compare import compare
from edge_agent.offline.replay.preview import preview
from edge_agent.offline.replay.recording import Recording
from edge_agent.offline.replay.run import replay
from edge_agent.record import recorder as recorder_module
from edge_agent.record.file import RecordingFile
from edge_agent.record.recorder import FOLDER, Pictures, Recorder, recordings
from tests.conftest import REPO

D = 32
ENGINE = EngineInfo("onnxruntime", "fp32", "none", "", "0" * 16, D, 64, "cpu")
BEGIN = 1_700_000_000.0


@dataclass
class Site:
    """A gallery, its identifier and recorder, and people who walk past."""

    settings: Settings
    gallery: Gallery
    identifier: RecordedIdentifier
    recorder: Recorder
    random: np.random.Generator
    decided: list[Decision]
    people: np.ndarray
    time: float = BEGIN
    track: int = 0

    def visit(self, *people: int, camera: str = "door", crops: int = 24) -> list[int]:
        """People are seen together by a camera, as one track each."""
        tracks = list(range(self.track + 1, self.track + 1 + len(people)))
        self.track += len(people)
        for n in range(crops):
            self.time += 0.1
            seen = tuple(
                TrackObservation(
                    camera, track, n, self.time,
                    np.array([100 * at, 10, 100 * at + 60, 210], np.float32),
                    0.9, self._crop(person), 0.8, sure=n % 7 > 0,
                )
                for at, (track, person) in enumerate(zip(tracks, people, strict=True))
            )  # fmt: skip
            self._update(TrackUpdate(camera, n, self.time, (640, 480), seen, ()))
        return tracks

    def leave(self, *tracks: int, camera: str = "door") -> None:
        """Tracks end."""
        self.time += 3.0
        self._update(TrackUpdate(camera, 0, self.time, (640, 480), (), tracks))

    def come_and_go(self, *people: int, camera: str = "door", crops: int = 24) -> None:
        self.leave(*self.visit(*people, camera=camera, crops=crops), camera=camera)

    def _update(self, update: TrackUpdate) -> None:
        self.decided += self.identifier.update(update)

    def _crop(self, person: int) -> np.ndarray | None:
        if self.random.random() < 0.05:
            return None
        vector = self.people[person] + self.random.normal(0, 0.12, D)
        return np.asarray(vector / np.linalg.norm(vector), np.float32)


@contextmanager
def site(folder: Path, seed: int = 1, key: str | None = None, **changes: object) -> Iterator[Site]:
    values: dict[str, object] = {"state_dir": folder, "record": {"enabled": True}, **changes}
    if key is not None:
        values["storage"] = {"key": key}
    settings = Settings.model_validate(values)
    random = np.random.default_rng(seed)
    people = random.normal(0, 1, (12, D)) + random.normal(0, 0.8, D)
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    with ExitStack() as stack:
        clock = Clock()
        gallery = stack.enter_context(open_gallery(settings, ENGINE, clock, owner=True))
        identifier = RecordedIdentifier(gallery, f"{seed}-session", settings.identify)
        recorder = open_recorder(
            settings, gallery, identifier, ENGINE, None, None, clock, f"{seed}-session", stack
        )
        yield Site(settings, gallery, identifier, recorder, random, [], people)


def crowd(at: Site) -> None:
    """Enough people for all kinds of decisions."""
    at.come_and_go(0, 1, 2)
    at.come_and_go(3, 4)
    at.come_and_go(0, 5, camera="gate")
    at.come_and_go(1, 6, 2, 7, camera="gate")
    at.come_and_go(0, 1, 2, 3, crops=40)


def again(folder: Path, key: bytes | None = None, **changes: dict[str, object]):  # type: ignore[no-untyped-def]
    with Recording(folder / FOLDER, key) as recording:
        return replay(recording, changes, key=key)


def assert_identical(folder: Path, decisions: int) -> None:
    outcome = again(folder)
    assert len(outcome.recorded) == decisions > 10
    assert outcome.differs_at is None, (
        outcome.recorded[outcome.differs_at],
        outcome.decisions[outcome.differs_at],
    )
    assert outcome.not_repeated == 0


# --- the same decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_recorded_run_is_decided_again_bit_for_bit(tmp_path: Path, seed: int) -> None:
    with site(tmp_path, seed) as at:
        crowd(at)
    kinds = {decision.kind.value for decision in at.decided}
    assert {"matched", "enrolled", "departed"} <= kinds
    assert_identical(tmp_path, len(at.decided))


def test_a_gallery_that_has_people_already(tmp_path: Path) -> None:
    with site(tmp_path, 1) as first:
        crowd(first)
    for path in recordings(tmp_path / FOLDER):
        path.unlink()
    with site(tmp_path, 1) as at:
        crowd(at)
        at.come_and_go(8, 9, 10)
    assert_identical(tmp_path, len(at.decided))


def merge(at: Site) -> None:
    keep, absorb = [one.number for one in at.gallery.identities()][:2]
    at.gallery.merge(keep, absorb)
    at.identifier.merged(keep, absorb)


def forget(at: Site) -> None:
    number = at.gallery.identities()[0].number
    erasure.forget(at.gallery, number)
    at.identifier.forgotten(number)


def enrol_picture(at: Site) -> None:
    at.gallery.enrol(
        at.people[11].astype(np.float32)[None], np.ones(1, np.float32), name="Ann", kind="enrolled",
        origin="mqtt:1", camera="", time=at.time,
    )  # fmt: skip
    at.come_and_go(11)


def enrol_track(at: Site) -> None:
    tracks = at.visit(9, crops=3)
    at.identifier.enrol_track("door", tracks[0], "Bob")
    at.leave(*tracks)


def name(at: Site) -> None:
    at.gallery.rename(at.gallery.identities()[-1].number, "Eve")


def recalibrate(at: Site) -> None:
    at.identifier.recalibrate()


def reload(at: Site) -> None:
    at.identifier.reload(at.settings.identify.model_copy(update={"threshold": 0.6, "enrol_crops": 6}))


def remove_exemplars(at: Site) -> None:
    number = at.gallery.identities()[1].number
    at.gallery.remove_origin(number, at.gallery.exemplars(number)[2][0])


def split(at: Site) -> None:
    """An operator takes a part of a person out, and rejects a pair."""
    people = at.gallery.identities()
    mixed = next(one.number for one in people if len(set(at.gallery.exemplars(one.number)[2])) > 1)
    new = at.gallery.corrections.split(mixed, at.gallery.exemplars(mixed)[2][-1])
    at.identifier.split(mixed, new.number)
    at.gallery.corrections.reject(people[-1].number, people[-2].number)


def other_process(at: Site) -> None:
    """What the command line does while the agent runs."""
    with open_gallery(at.settings, ENGINE) as other:
        people = other.identities()
        other.merge(people[0].number, people[2].number)
        other.rename(people[1].number, "Zoe")
        other.forget(people[3].number)


@pytest.mark.parametrize(
    "happening",
    [
        merge,
        forget,
        enrol_picture,
        enrol_track,
        name,
        recalibrate,
        reload,
        remove_exemplars,
        split,
        other_process,
    ],
)
def test_what_others_do_meanwhile_is_repeated(tmp_path: Path, happening: Callable[[Site], None]) -> None:
    with site(tmp_path, 3) as at:
        crowd(at)
        open_tracks = at.visit(4, 5)
        happening(at)
        crowd(at)
        at.leave(*open_tracks)
    if happening is forget:
        return  # what is forgotten is no longer in the recording: below
    assert_identical(tmp_path, len(at.decided))


def test_every_method_that_changes_an_identifier_is_recorded() -> None:
    reads = {"number", "replied", "together", "at_once"}
    public = {name for name in vars(Identifier) if not name.startswith("_")} - reads
    assert public <= set(vars(RecordedIdentifier)), (
        "override it in RecordedIdentifier, and repeat it in a replay"
    )


def test_a_run_in_several_files_is_decided_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_S", 0.02)
    with site(tmp_path, record={"enabled": True, "max_mb": 16}) as at:
        at.recorder.limits = recorder_module.Limits(8 * 150_000, 1e6)
        for _ in range(3):
            crowd(at)
            time.sleep(0.1)
    assert len(recordings(tmp_path / FOLDER)) > 2
    with Recording(tmp_path / FOLDER, None) as recording:
        whole = recording.header["cold"]
        outcome = replay(recording, {})
    assert whole, "the first file was kept"
    assert outcome.differs_at is None


# --- other settings ---------------------------------------------------------------------------------------


def test_a_lower_threshold_joins_people(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
    base = again(tmp_path)
    none = again(tmp_path, identify={"threshold": 1.0})
    all_one = again(tmp_path, identify={"threshold": 0.05})
    assert not any(one["kind"] == "matched" for one in none.decisions)
    stricter, looser = compare(base, none), compare(base, all_one)
    assert stricter.people[1] > stricter.people[0]
    assert stricter.split
    assert looser.joined
    assert looser.people[1] < looser.people[0]
    assert looser.expected_false_matches[1] is None or looser.expected_false_matches[1] > 0
    assert not compare(base, again(tmp_path)).changed


def test_an_operators_changes_follow_the_person_where_a_replay_goes_another_way(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
        merge(at)
        name(at)
        crowd(at)
    other = again(tmp_path, identify={"threshold": 0.97, "enrol_crops": 4})
    assert len(other.decisions) != len(other.recorded)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("identify.target_fmr", "KEY=VALUE"),
        ("identify.target_fmr=", "KEY=VALUE"),
        ("identify.target_fmr=9", "less than 0.5"),
        ("identify.target=1", "can be set"),
        ("tracker.max_cost=1", "can be set"),
        ("gallery.ttl_hours=1", "can be set"),
        ("identify.enrolment=maybe", "auto"),
        ("identify.margin-=0.1", "relative"),
        ("identify.threshold-=x", "relative"),
        ("identify.threshold=" + ",".join(f"0.{n:03}" for n in range(65)), "too many"),
    ],
)
def test_wrong_settings_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        sweep([text], 0.7)


def test_a_sweep_has_all_combinations() -> None:
    found = sweep(["identify.threshold-=0.1,0.2", "identify.enrolment=watchlist"], 0.7)
    assert [one["identify"] for _, one in found] == [
        {"threshold": 0.6, "enrolment": "watchlist"},
        {"threshold": 0.5, "enrolment": "watchlist"},
    ]
    assert sweep([], None) == []
    with pytest.raises(ConfigError, match="twice"):
        sweep(["identify.margin=0", "identify.margin=1"], None)


def test_the_preview_of_a_threshold_is_bounded_and_agrees_with_the_scores(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
    folder = tmp_path / FOLDER
    nobody, everybody = preview(folder, None, 1.0), preview(folder, None, -1.0)
    assert nobody.matched_after == 0 < nobody.matched_before <= nobody.tracks
    assert {flip.change for flip in nobody.flips} == {"unmatched"}
    assert everybody.matched_after >= everybody.matched_before
    assert list(nobody.scores) == sorted(nobody.scores)
    with pytest.raises(InputError, match="no recording"):
        preview(tmp_path / "none", None, 0.5)


# --- erasure ----------------------------------------------------------------------------------------------


def test_forgetting_a_person_erases_the_embeddings(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
        person = at.gallery.identities()[0]
        tracks = {(one.camera, one.track_id) for one in at.decided if one.identity == person.id}
        at.recorder.erase("nobody")  # all is written
        path = recordings(tmp_path / FOLDER)[0]
        with Recording(path, None) as recording:
            vectors = [
                seen.vector.tobytes()
                for step in recording.steps()
                if step.update is not None
                for seen in step.update.seen
                if (seen.camera, seen.track_id) in tracks and seen.vector is not None
            ]
        assert len(vectors) > 20
        assert any(vector in content(path) for vector in vectors)
        assert at.recorder.erase(person.id) > 20
        assert not any(vector in content(path) for vector in vectors)
        assert person.id.encode() not in content(path)
        crowd(at)
    outcome = again(tmp_path)
    assert outcome.frames > 0
    assert outcome.differs_at is not None


def test_a_person_of_the_gallery_at_the_start_is_erased(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
    with site(tmp_path, 2) as at:
        name(at)
        person = at.gallery.identities()[-1]
        vectors = [row.tobytes() for row in at.gallery.exemplars(person.number)[0]]
        at.come_and_go(8)
        at.recorder.erase("nobody")
        path = recordings(tmp_path / FOLDER)[-1]
        assert any(vector in content(path) for vector in vectors)
        assert b"Eve" in content(path)
        at.recorder.erase(person.id)
        assert not any(vector in content(path) for vector in vectors)
        assert b"Eve" not in content(path)


def test_a_split_part_is_erased_from_what_states_the_other_part(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
        people = at.gallery.identities()
        mixed = next(one.number for one in people if len(set(at.gallery.exemplars(one.number)[2])) > 1)
        at.gallery.rename(mixed, "Ann")  # recorded as a change, with all exemplars
        at.come_and_go(8)
        origin = at.gallery.exemplars(mixed)[2][-1]
        new = at.gallery.corrections.split(mixed, origin)
        at.identifier.split(mixed, new.number)
        at.come_and_go(9)
        exemplars = [row.tobytes() for row in at.gallery.exemplars(new.number)[0]]
        camera, track = origin.split(":")[1:]
        at.recorder.erase("nobody")
        path = recordings(tmp_path / FOLDER)[0]
        assert embedded(path, camera, int(track))
        others = embedded(path, "door", 1), embedded(path, "door", 2)
        erasure.forget(at.gallery, new.number)
        removed = erasure.Erasure(at.gallery, at.recorder.erase).run()
        assert removed.events > 10
        assert not embedded(path, camera, int(track))
        assert not any(vector in content(path) for vector in exemplars)
        assert others == (embedded(path, "door", 1), embedded(path, "door", 2)) or track in "12"
    again(tmp_path)


def embedded(path: Path, camera: str, track: int) -> int:
    """Return how often a track has an embedding in a recording."""
    with Recording(path, None) as recording:
        return sum(
            (seen.camera, seen.track_id) == (camera, track) and seen.vector is not None
            for step in recording.steps()
            if step.update is not None
            for seen in step.update.seen
        )


@pytest.mark.parametrize("between", ["file", "entry", "camera"])
def test_a_picture_is_erased_with_its_frame_whatever_came_between(tmp_path: Path, between: str) -> None:
    with site(tmp_path) as at:
        crowd(at)
        (track,) = at.visit(0)
        person = next(one.identity for one in at.decided if one.track_id == track)
        if between == "file":
            at.recorder.begin(True)
        elif between == "entry":
            at.recorder.put(shadow_entry({}, at.time))
        else:
            at.visit(5, camera="gate")
        crop = at.random.integers(0, 256, (12, 8, 3), dtype=np.uint8)  # in one page of the file
        at.recorder.put(Pictures("door", {track: crop}))
        at.recorder.erase("nobody")
        assert at.recorder.lost_pictures == (between == "file")
        assert person is not None
        at.recorder.erase(person)
        left = b"".join(map(content, recordings(tmp_path / FOLDER)))
        assert encode_kept(crop) not in left
    with Recording(recordings(tmp_path / FOLDER)[0], None) as recording:
        assert not recording.has_pictures()


def test_no_picture_stays_once_the_gallery_keeps_none(tmp_path: Path) -> None:
    """Also those that wait for the writer, and those of a moment between two turns; the rest replays."""
    with site(tmp_path, gallery={"keep_crops": 4}) as at:
        unwanted = UnwantedPictures(at.settings, at.gallery, at.recorder)
        crops = [at.random.integers(0, 256, (12, 8, 3), dtype=np.uint8) for _ in range(3)]

        def record(crop: np.ndarray) -> None:
            (track,) = at.visit(0)
            at.recorder.put(Pictures("door", {track: crop}))

        def recorded() -> list[bool]:
            content = b"".join(path.read_bytes() for path in (tmp_path / FOLDER).iterdir())
            return [encode_kept(crop) in content for crop in crops]

        record(crops[0])
        at.recorder.erase("nobody")  # all is written
        unwanted.erase()
        assert recorded() == [True, False, False]
        at.recorder.begin(True)
        record(crops[1])
        at.gallery.crops.apply(GallerySettings(keep_crops=0))
        unwanted.erase()
        assert recorded() == [False, False, False]
        record(crops[2])  # of a setting that was back before the next turn
        at.recorder.erase("nobody")
        assert recorded() == [False, False, True]
        unwanted.erase()
        assert recorded() == [False, False, False]
        crowd(at)
    assert_identical(tmp_path, len(at.decided))


@pytest.mark.parametrize("key", [None, "ab" * 32])
def test_pictures_of_earlier_runs_go_while_nothing_is_recorded(tmp_path: Path, key: str | None) -> None:
    if key is not None:
        pytest.importorskip("sqlcipher3")
    with site(tmp_path, key=key, gallery={"keep_crops": 4}) as at:
        (track,) = at.visit(0)
        at.recorder.put(Pictures("door", {track: np.zeros((64, 32, 3), np.uint8)}))
    broken = tmp_path / FOLDER / "20000101T000000-broken-0000.rec"
    broken.write_bytes(b"x" * 9000)
    settings = at.settings.model_copy(update={"gallery": GallerySettings(keep_crops=0)})
    with open_gallery(settings, ENGINE, Clock(), owner=True) as gallery:
        UnwantedPictures(settings, gallery, None).erase()
    assert not broken.exists()
    (left,) = recordings(tmp_path / FOLDER)
    with Recording(left, None if key is None else bytes.fromhex(key)) as recording:
        assert not recording.has_pictures()


def test_an_erasure_that_the_writer_delays_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSHED_S", 0.1)
    monkeypatch.setattr(RecordingFile, "append", lambda *_: time.sleep(0.5))
    with site(tmp_path) as at:
        at.visit(0)
        with pytest.raises(StorageError, match="has not written"):
            at.recorder.erase("nobody")


def test_a_file_that_cannot_be_read_does_not_outlive_somebody_who_is_forgotten(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        crowd(at)
        person = at.gallery.identities()[0]
        broken = tmp_path / FOLDER / "20000101T000000-broken-0000.rec"
        broken.write_bytes(b"x" * 9000)
        assert at.recorder.erase(person.id) > 0
    assert not broken.exists()


def test_recordings_expire_while_nothing_is_recorded(tmp_path: Path) -> None:
    with site(tmp_path) as at:
        at.come_and_go(0)
    kept = Settings.model_validate({"state_dir": tmp_path})
    remove_old_recordings(kept, Clock())
    assert recordings(tmp_path / FOLDER)
    short = Settings.model_validate({"state_dir": tmp_path, "record": {"hours": 1e-9}})
    time.sleep(0.01)
    remove_old_recordings(short, Clock())
    assert not recordings(tmp_path / FOLDER)


def content(path: Path) -> bytes:
    """All bytes of a recording on the disk."""
    files = (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-journal"))
    return b"".join(file.read_bytes() for file in files if file.exists())


# --- what can go wrong ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a short recording."""
    folder = tmp_path_factory.mktemp("recorded")
    with site(folder) as at:
        at.come_and_go(0, 1, 2)
        at.come_and_go(0, 3)
    return recordings(folder / FOLDER)[0]


def damaged(data: bytes) -> bytes:
    return data[:9000] + bytes(range(256)) * 40 + data[9000 + 256 * 40 :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (damaged, "damaged"),
        (lambda _: b"", "not a recording"),
        (lambda _: b"hello" * 1000, "encrypted, and no key is given, or it is no recording"),
        (lambda data: data[:60] + (99).to_bytes(4, "big") + data[64:], "layout 99"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, recorded: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(change(recorded.read_bytes()))
    with pytest.raises(StorageError, match=reason) as caught, Recording(path, None) as recording:
        replay(recording, {})
    assert "\n" not in str(caught.value)


def test_the_gallery_is_no_recording(tmp_path: Path, recorded: Path) -> None:
    shutil.copy(recorded.parent.parent / "gallery.db", tmp_path / "a.rec")
    with pytest.raises(StorageError, match="not a recording"), Recording(tmp_path / "a.rec", None):
        pass
    with (
        pytest.raises(EdgeAgentError, match="makes the agent record"),
        Recording(tmp_path / "none.rec", None),
    ):
        pass
    with pytest.raises(InputError, match="makes the agent record"), Recording(tmp_path / "..", None):
        pass


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET body = x'00'",
        "UPDATE entry SET vectors = x'0011' WHERE length(vectors) > 0",
        "UPDATE entry SET kind = 'call'",
        "UPDATE entry SET kind = 'change', body = CAST('{}' AS BLOB), vectors = x''",
        "UPDATE entry SET kind = 'call', body = CAST('[]' AS BLOB), vectors = x''",
        "UPDATE decision SET body = '{'",
        "UPDATE decision SET body = 7",
        "UPDATE header SET value = '{}'",
        "UPDATE header SET value = 'x'",
        "DELETE FROM header",
        "UPDATE header SET value = json_set(value, '$.identify.margin', -1)",
        "UPDATE header SET value = json_set(value, '$.gallery.capacity', 'x')",
        "UPDATE header SET value = json_set(value, '$.calibrated', 3)",
        "UPDATE header SET value = json_set(value, '$.erased', 'x')",
        "UPDATE header SET value = json_set(value, '$.prior', 'x')",
        "UPDATE decision SET body = json_set(body, '$.number', 'x')",
        "DROP TABLE start_meta",
        "DROP TABLE entry",
        "CREATE TRIGGER t AFTER UPDATE ON entry BEGIN SELECT 1; END",
        "UPDATE start_meta SET value = 'x' WHERE key = 'dimension'",
        "ALTER TABLE start_fact ADD COLUMN 'a b'",
    ],
)
def test_hostile_content_is_refused_in_one_line(tmp_path: Path, recorded: Path, statement: str) -> None:
    path = tmp_path / "a.rec"
    shutil.copy(recorded, path)
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()
    with pytest.raises(EdgeAgentError) as caught, Recording(path, None) as recording:
        replay(recording, {})
    assert "\n" not in str(caught.value)


def test_a_file_that_continues_itself_is_refused(tmp_path: Path, recorded: Path) -> None:
    folder = tmp_path / FOLDER
    shutil.copytree(recorded.parent, folder)
    path = recordings(folder)[-1]
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE header SET value = json_set(value, '$.follows', ?)", (path.name,))
    connection.close()
    with pytest.raises(StorageError, match="continues it"), Recording(folder, None):
        pass


def test_an_encrypted_recording_needs_its_key(tmp_path: Path) -> None:
    pytest.importorskip("sqlcipher3")
    key = "ab" * 32
    with site(tmp_path, key=key) as at:
        crowd(at)
    path = recordings(tmp_path / FOLDER)[0]
    assert not path.read_bytes().startswith(b"SQLite")
    with pytest.raises(StorageError, match="no key is given"), Recording(path, None):
        pass
    with pytest.raises(StorageError, match="another key"), Recording(path, bytes(32)):
        pass
    outcome = again(tmp_path, bytes.fromhex(key))
    assert outcome.differs_at is None


def test_a_recorder_that_cannot_write_stops_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "LEAST_FREE_BYTES", 1 << 60)
    monkeypatch.setattr(recorder_module, "FLUSH_S", 0.01)
    with site(tmp_path) as at:
        at.come_and_go(0, 1)
        deadline = time.monotonic() + 10
        while not at.recorder.problem and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "free" in at.recorder.problem
        crowd(at)
    assert any(one.kind.value == "matched" for one in at.decided)
    assert at.recorder.state()["problem"]


def test_a_folder_that_takes_no_files_does_not_prevent_the_start(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with site(tmp_path) as at:
        crowd(at)
    assert at.recorder.problem
    assert at.decided


def test_entries_that_the_writer_cannot_take_are_lost_and_a_new_chain_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MOST_WAITING_BYTES", 20_000)
    monkeypatch.setattr(recorder_module, "FLUSH_S", 0.05)
    with site(tmp_path) as at:
        crowd(at)
        assert at.recorder.lost > 0
        monkeypatch.setattr(recorder_module, "MOST_WAITING_BYTES", 1 << 30)
        time.sleep(0.3)
        crowd(at)
    with Recording(tmp_path / FOLDER, None) as recording:
        assert not recording.header["cold"]
        assert not recording.is_whole
        assert recording.header["follows"] is None
        outcome = replay(recording, {})
    assert outcome.frames > 0


def test_the_limits_remove_the_oldest_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_S", 0.02)
    with site(tmp_path, record={"enabled": True, "max_mb": 16, "hours": 1}) as at:
        assert at.recorder.limits == recorder_module.Limits(16 << 20, 3600.0)
        at.recorder.limits = recorder_module.Limits(1_000_000, 1e6)
        for _ in range(6):
            crowd(at)
            time.sleep(0.1)
        assert at.recorder.size < 1_400_000
        at.recorder.limits = recorder_module.Limits(1_000_000, 0.0)
        time.sleep(0.3)
        assert len(recordings(tmp_path / FOLDER)) <= 2
    with site(tmp_path / "b", gallery={"ttl_hours": 0.5}) as at:
        assert at.recorder.limits.seconds == 1800


KILLED = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from edge_agent.record import recorder
recorder.FLUSH_S = 0.05
from tests.offline.test_replay import crowd, site
with site(Path(sys.argv[1])) as at:
    while True:
        crowd(at)
        print(len(at.decided), flush=True)
        time.sleep(0.05)
"""


def test_a_kill_leaves_what_was_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(REPO)], stdout=subprocess.PIPE, cwd=REPO
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    outcome = again(tmp_path)
    assert len(outcome.recorded) > 20
    assert outcome.differs_at is None


# --- the command ------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_shows_what_changes(tmp_path: Path, recorded: Path) -> None:
    page = tmp_path / "page.html"
    done = command(recorded, "--set", "identify.threshold=0.05,1", "--json", "--html", page)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["repeated"]["identical"]
    assert [run["settings"] for run in found["runs"]] == [
        "identify.threshold = 0.05",
        "identify.threshold = 1",
    ]
    assert found["runs"][0]["changed"]
    assert "<h2>identify.threshold = 0.05</h2>" in page.read_text()
    shown = command(recorded)
    assert "bit for bit" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere.rec",), "there is no recording"),
        (("{file}", "--model", "x.onnx"), "has no pictures"),
        (("{file}", "--set", "a=1"), "can be set"),
        (("{file}", "--html", "no/such/page.html"), "does not exist"),
    ],
)
def test_the_command_refuses_in_one_line(recorded: Path, arguments: tuple[str, ...], reason: str) -> None:
    given = [one.replace("{file}", str(recorded)) for one in arguments]
    error = CliRunner().invoke(cli.app, ["replay", *given]).exception
    assert isinstance(error, EdgeAgentError)
    assert reason in str(error)
    assert len(str(error).splitlines()) == 1


def test_a_recording_is_private(recorded: Path) -> None:
    assert recorded.stat().st_mode & 0o777 == 0o600
    assert recorded.parent.stat().st_mode & 0o777 == 0o700
    with RecordingFile.existing(recorded, None) as file:
        assert file.header["space"] == ENGINE.space
