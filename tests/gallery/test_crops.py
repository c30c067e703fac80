"""Pictures of people in the gallery: bounded, and gone with the person on every path."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.agent.databases import make_erasure
from edge_agent.cli import app
from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings, Settings
from edge_agent.core.errors import InputError
from edge_agent.core.loading import load
from edge_agent.core.pictures import KEPT_SIDE, LARGEST_KEPT, decode_picture, encode_kept
from edge_agent.core.reloading import RELOADABLE
from edge_agent.gallery import Gallery, Identity, erasure
from edge_agent.gallery.crop_rows import EVIDENCE_PER_TRACK, Shot
from tests.hand_clock import HandTime

D = 16
KEEP = GallerySettings(keep_crops=3)


def unit(seed: int) -> np.ndarray:
    row = np.random.default_rng(seed).standard_normal(D).astype(np.float32)
    return row / np.linalg.norm(row)


def shot(
    seed: int, *, origin: str = "s:yard:1", quality: float = 0.5, time: float = 100.0, size: int = 4000
) -> Shot:
    jpeg = np.random.default_rng(1000 + seed).bytes(size)
    return Shot(origin, "yard", time, quality, unit(seed), jpeg)


def opened(folder: Path, settings: GallerySettings = KEEP, *, owner: bool = True) -> Gallery:
    return Gallery(folder / "gallery.db", settings, space="s", dimension=D, owner=owner)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with opened(tmp_path) as one:
        yield one


def enrol(gallery: Gallery, seed: int = 1, **values: object) -> Identity:
    seen = {"origin": "s:yard:1", "camera": "yard", "time": 100.0} | values
    return gallery.enrol(unit(seed)[None], np.ones(1, np.float32), **seen)  # type: ignore[arg-type]


def kept(gallery: Gallery, person: Identity) -> list[bytes]:
    return [one.jpeg for one in gallery.crops.of(person.number)]


def erased(gallery: Gallery, folder: Path) -> None:
    """Do what the agent does within seconds."""
    if waiting := gallery.notices.waiting():
        gallery.notices.published(waiting[-1])
    make_erasure(load(None, {"state_dir": folder}), gallery, {}, []).run()


def traces(*shots: Shot) -> list[bytes]:
    """Every 16 bytes of the pictures and the embeddings."""
    texts = [part for one in shots for part in (one.jpeg, one.vector.tobytes())]
    return [text[at : at + 16] for text in texts for at in range(0, len(text) - 15, 16)]


def found(folder: Path, words: list[bytes]) -> int:
    """How many of the words any file of the folder has."""
    content = b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
    return sum(word in content for word in words)


def test_nothing_is_kept_by_default(tmp_path: Path) -> None:
    with opened(tmp_path, GallerySettings()) as gallery:
        person = enrol(gallery)
        gallery.crops.add(person.number, [shot(1)], [shot(1)])
        assert (kept(gallery, person), gallery.stats().crops) == ([], 0)
        assert gallery.crops.evidence("s", "yard", 1) == []


def test_the_most_diverse_of_good_quality_are_kept(gallery: Gallery) -> None:
    person = enrol(gallery)
    views = [shot(1, quality=0.9), shot(2), shot(3)]
    same = [replace(views[0], quality=0.2), replace(views[1], quality=0.8, jpeg=b"better")]
    for one in (*views, *same):
        gallery.crops.add(person.number, [one])
    assert kept(gallery, person) == [views[0].jpeg, b"better", views[2].jpeg]
    stats = gallery.stats()
    assert (stats.keep_crops, stats.crops, stats.crop_bytes) == (3, 3, 8006)


def test_evidence_has_the_best_of_a_track_and_the_latest_tracks(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = enrol(gallery)
    many = [shot(n, quality=n / 10, time=float(n)) for n in range(EVIDENCE_PER_TRACK + 2)]
    gallery.crops.add(person.number, [], many)
    found = gallery.crops.evidence("s", "yard", 1)
    assert [one.time for one in found] == [2.0, 3.0, 4.0, 5.0]
    assert kept(gallery, person) == []
    monkeypatch.setattr("edge_agent.gallery.crop_rows.MOST_EVIDENCE", 5)
    for track in (2, 3):
        gallery.crops.add(person.number, [], [shot(n, origin=f"s:yard:{track}") for n in range(2)])
    assert [len(gallery.crops.evidence("s", "yard", track)) for track in (1, 2, 3)] == [1, 2, 2]


def test_all_pictures_together_are_bounded(tmp_path: Path) -> None:
    settings = GallerySettings(keep_crops=16, crops_mb=1)
    with opened(tmp_path, settings) as gallery:
        people = [enrol(gallery, seed) for seed in range(6)]
        gallery.rename(people[0].number, "Ada")
        for person in people:
            shots = [shot(100 * person.number + n, size=20_000) for n in range(10)]
            gallery.crops.add(person.number, shots, shots[:1])
        stats = gallery.stats()
        assert stats.crop_bytes <= 1 << 20
        listed = gallery.crops.listed()
        assert people[0].number in listed  # named: the unnamed make room first
        assert people[1].number not in listed  # the longest unseen of them
        assert people[5].number in listed


def test_too_large_a_picture_is_refused(gallery: Gallery) -> None:
    person = enrol(gallery)
    with pytest.raises(InputError, match="at most"):
        gallery.crops.add(person.number, [shot(1, size=LARGEST_KEPT + 1)])
    assert kept(gallery, person) == []


def test_a_person_who_is_gone_gets_no_picture(gallery: Gallery) -> None:
    gallery.crops.add(7, [shot(1)], [shot(1)])
    assert gallery.stats().crops == 0


def test_a_corrected_track_takes_its_pictures_along(gallery: Gallery) -> None:
    """From the time of a slip on; to nobody, they are erased."""
    one, other = enrol(gallery, 1), enrol(gallery, 2)
    early, late = shot(1, time=10.0), shot(2, time=20.0)
    gallery.crops.add(one.number, [early, late], [late])
    gallery.crops.move("s:yard:1", other.number, since=15.0)
    assert (kept(gallery, one), kept(gallery, other)) == ([early.jpeg], [late.jpeg])
    assert [crop.number for crop in gallery.crops.evidence("s", "yard", 1)] == [other.number]
    gallery.crops.move("s:yard:1", None)
    assert gallery.stats().crops == 0


def test_merged_people_have_the_pictures_of_both_bounded(gallery: Gallery) -> None:
    one, other = enrol(gallery, 1), enrol(gallery, 2)
    for number, person in enumerate((one, other)):
        gallery.crops.add(person.number, [shot(10 * number + n) for n in range(3)])
    gallery.merge(one.number, other.number)
    assert len(kept(gallery, one)) == 3
    assert gallery.stats().crops == 3


def test_split_takes_the_pictures_of_the_track(gallery: Gallery) -> None:
    person = enrol(gallery)
    gallery.add_exemplars(
        person.number, unit(2)[None], np.ones(1), origin="s:yard:2", camera="yard", time=200.0
    )
    own, theirs = shot(1), shot(2, origin="s:yard:2")
    gallery.crops.add(person.number, [own, theirs], [theirs])
    new = gallery.corrections.split(person.number, "s:yard:2")
    assert (kept(gallery, person), kept(gallery, new)) == ([own.jpeg], [theirs.jpeg])
    assert [crop.number for crop in gallery.crops.evidence("s", "yard", 2)] == [new.number]


@pytest.mark.parametrize("path", ["forget", "command", "expire", "evict", "all", "merged", "off"])
def test_no_byte_of_a_picture_is_left(tmp_path: Path, path: str) -> None:
    """After forget, expiry, eviction, and turning the setting off."""
    shots = [shot(10 + n) for n in range(3)]
    words = traces(*shots)
    settings = GallerySettings(keep_crops=3, capacity=2)
    time = HandTime()
    clock = Clock(time)
    with Gallery(
        tmp_path / "gallery.db", settings, space="s", dimension=D, owner=True, clock=clock
    ) as gallery:
        person = enrol(gallery)
        gallery.crops.add(person.number, shots, shots)
        other = enrol(gallery, 2)
        gallery.crops.add(other.number, [shot(50)])
        assert found(tmp_path, words) == len(words)
        if path == "forget":
            erasure.forget(gallery, person.number)
        elif path == "command":
            words_of_command = ["gallery", "forget", person.id, "--yes", "--state", str(tmp_path)]
            assert CliRunner().invoke(app, words_of_command).exit_code == 0
        elif path == "expire":
            gallery.touch(other.number, 200.0)
            gallery.retention.set_ttl(person.number, 10.0)
            time.passes(20.0)
            assert [one.number for one in gallery.retention.expire()] == [person.number]
        elif path == "evict":
            enrol(gallery, 3)
        elif path == "all":
            erasure.forget_all(gallery)
        elif path == "merged":
            gallery.merge(other.number, person.number)
            erasure.forget(gallery, other.number)
        else:
            assert gallery.crops.apply(GallerySettings(keep_crops=0)) == 7
        erased(gallery, tmp_path)
        assert found(tmp_path, words) == 0
        assert gallery.stats().crops == (0 if path in ("all", "merged", "off") else 1)


def test_turning_the_setting_off_or_down_erases_at_the_next_start(tmp_path: Path) -> None:
    shots = [shot(10 + n) for n in range(3)]
    with opened(tmp_path) as gallery:
        person = enrol(gallery)
        gallery.crops.add(person.number, shots, shots[:1])
    with opened(tmp_path, GallerySettings(), owner=False) as beside:
        assert len(kept(beside, person)) == 3  # only the agent's own setting counts
    with opened(tmp_path, GallerySettings(keep_crops=2)) as gallery:
        assert len(kept(gallery, person)) == 2
    with opened(tmp_path, GallerySettings()) as gallery:
        erased(gallery, tmp_path)
        assert gallery.stats().crops == 0
    assert found(tmp_path, traces(*shots)) == 0


def test_pictures_are_encrypted_with_the_gallery(tmp_path: Path) -> None:
    pytest.importorskip("sqlcipher3", reason="extra `encrypt` is not installed")
    key = bytes(range(32))
    one = shot(10)
    with Gallery(tmp_path / "gallery.db", KEEP, space="s", dimension=D, owner=True, key=key) as gallery:
        person = enrol(gallery)
        gallery.crops.add(person.number, [one], [one])
        assert found(tmp_path, traces(one)) == 0
        assert kept(gallery, person) == [one.jpeg]


def test_a_reload_switches_pictures_on_and_off(gallery: Gallery, tmp_path: Path) -> None:
    """As `Agent.reload` does, without a restart."""
    person = enrol(gallery)
    gallery.crops.add(person.number, [shot(10)])
    assert {"gallery.keep_crops", "gallery.crops_mb"} <= RELOADABLE
    assert gallery.crops.apply(GallerySettings()) == 1
    gallery.crops.add(person.number, [shot(11)])
    assert kept(gallery, person) == []
    gallery.crops.apply(KEEP)
    gallery.crops.add(person.number, [shot(12)])
    assert kept(gallery, person) == [shot(12).jpeg]
    erased(gallery, tmp_path)
    assert found(tmp_path, traces(shot(10), shot(11))) == 0


def test_an_earlier_version_erases_pictures_with_the_person(gallery: Gallery, tmp_path: Path) -> None:
    """It knows nothing of the table, but SQLite does."""
    person = enrol(gallery)
    gallery.crops.add(person.number, [shot(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "gallery.db")) as database, database:
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("DELETE FROM identity WHERE number = ?", (person.number,))
    assert gallery.stats().crops == 0


@pytest.mark.parametrize("size", [(300, 100), (20, 8), (2000, 900), (1, 1), (256, 256)])
def test_pictures_are_scaled_and_bounded(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)  # the worst that JPEG may get
    encoded = encode_kept(noise)
    assert len(encoded) <= LARGEST_KEPT
    shown = decode_picture(encoded, "crop")
    assert max(shown.shape) <= max(KEPT_SIDE, 3)


def test_settings_are_bounded() -> None:
    assert Settings().gallery.keep_crops == 0
    for value in (-1, 17):
        with pytest.raises(ValueError, match="keep_crops"):
            GallerySettings(keep_crops=value)
