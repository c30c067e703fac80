"""After `forget`, no file of the state folder contains anything of the person."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.agent.databases import make_erasure
from edge_agent.cli import app
from edge_agent.core.config import GallerySettings, Settings
from edge_agent.core.loading import load
from edge_agent.core.structures import DecisionKind
from edge_agent.deliver.copies import COPIES_FILE
from edge_agent.deliver.outbox import OUTBOX_FILE
from edge_agent.deliver.recent import RecentEvents
from edge_agent.gallery import Gallery, Identity
from edge_agent.gallery.erasure import forget
from edge_agent.source.crops import CropFolderOptions, CropFolderSource
from tests.deliver.deliver_fixtures import decision, outbox_at

DIMENSION = 64


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(None, {"state_dir": tmp_path, "gallery": {"capacity": 1000}})


def opened(folder: Path, *, owner: bool = False) -> Gallery:
    path = folder / "gallery.db"
    return Gallery(path, GallerySettings(), space="s", dimension=DIMENSION, owner=owner)


def enrol(gallery: Gallery, rng: np.random.Generator, name: str) -> Identity:
    rows = rng.standard_normal((3, DIMENSION)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return gallery.enrol(
        rows, np.ones(3, np.float32), name=name, kind="enrolled", origin="t", camera="yard", time=100.0
    )


def traces(gallery: Gallery, person: Identity) -> list[bytes]:
    """What no file may contain afterwards: id, former ids, name, and every 8 bytes of the embeddings."""
    vectors = gallery.exemplars(person.number)[0].astype(np.float32)
    words = [person.id.encode(), *(one.encode() for one in gallery.former_ids(person.number))]
    words += [str(person.name).encode()]
    return words + [row.tobytes()[at : at + 8] for row in vectors for at in range(0, DIMENSION * 4, 8)]


def found(folder: Path, words: list[bytes]) -> set[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.name for file in files for word in words if word in file.read_bytes()}


def fill(folder: Path, rng: np.random.Generator) -> tuple[Identity, list[bytes]]:
    """A gallery with one person among others, merged from two, and events of all in the outbox."""
    with opened(folder) as gallery, outbox_at(folder / "outbox.db") as outbox:
        others = [enrol(gallery, rng, f"Other-{number}-Name") for number in range(40)]
        person, absorbed = enrol(gallery, rng, "Anna-Karenina"), enrol(gallery, rng, "Somebody-Else")
        for one in (*others, person, absorbed):
            outbox.append(b'{"who":"%b"}' % one.id.encode(), "t")
        person = gallery.merge(person.number, absorbed.number)
        return person, traces(gallery, person)


def publish(gallery: Gallery) -> None:
    """Let subscribers learn the ids that are gone, as `agent.people_events` does."""
    gallery.notices.published(gallery.notices.waiting()[-1])


def test_by_command_while_no_agent_runs(settings: Settings, rng: np.random.Generator) -> None:
    state = settings.state_dir
    person, words = fill(state, rng)
    (state / "gallery.db.rekeyed").write_bytes(words[0])  # of a `rekey` that was killed
    assert found(state, words) >= {"gallery.db", "outbox.db"}
    done = CliRunner().invoke(app, ["gallery", "forget", person.id, "--yes", "--state", str(state)])
    assert done.exit_code == 0, done.output
    assert "2 waiting event(s)" in done.output
    assert found(state, words) == set()


def test_copies_that_wait_for_another_broker_are_erased_too(
    settings: Settings, rng: np.random.Generator
) -> None:
    state = settings.state_dir
    person, words = fill(state, rng)
    with outbox_at(state / COPIES_FILE) as copies:
        for _ in range(3):
            copies.append(b'{"who":"%b"}' % person.id.encode(), "identity")
        copies.append(b'{"who":"nobody"}', "identity")
    done = CliRunner().invoke(app, ["gallery", "forget", person.id, "--yes", "--state", str(state)])
    assert "5 waiting event(s)" in done.output
    assert found(state, words) == set()
    with outbox_at(state / COPIES_FILE) as copies:
        assert copies.depth.rows == 1


def test_by_command_next_to_an_agent(settings: Settings, rng: np.random.Generator) -> None:
    """The agent has the gallery open; it completes the erasure at its next turn."""
    state = settings.state_dir
    person, words = fill(state, rng)
    with opened(state, owner=True) as own, outbox_at(state / "outbox.db") as outbox:
        done = CliRunner().invoke(app, ["gallery", "forget", person.id, "--yes", "--state", str(state)])
        assert done.exit_code == 0, done.output
        assert "the running agent removes" in done.output
        assert make_erasure(settings, own, {OUTBOX_FILE: outbox}, []).run().events == 2
        publish(own)
        make_erasure(settings, own, {OUTBOX_FILE: outbox}, []).run()
        assert found(state, words) == set()


def test_by_the_command_over_mqtt(settings: Settings, rng: np.random.Generator) -> None:
    """Its handler calls `Erasure.forget`, in the process that has all files open."""
    state = settings.state_dir
    person, words = fill(state, rng)
    with opened(state, owner=True) as own, outbox_at(state / "outbox.db") as outbox:
        recent = RecentEvents()
        for seq, who in enumerate((person.id, "nobody"), 1):
            recent.add(seq, b'{"who":"%b"}' % who.encode())
        erasure = make_erasure(settings, own, {OUTBOX_FILE: outbox}, [], recent=lambda: recent)
        erasure.forget(lambda: forget(own, person.number))
        assert recent.after(0, 10) == (0, [(2, b'{"who":"nobody"}')])
        assert found(state, words) <= {"gallery.db"}  # the ids, for subscribers
        publish(own)
        erasure.run()
        assert found(state, words) == set()


def test_also_when_a_reader_held_the_log_at_first(settings: Settings, rng: np.random.Generator) -> None:
    state = settings.state_dir
    person, words = fill(state, rng)
    with opened(state, owner=True) as own:
        erasure = make_erasure(settings, own, {}, [])
        with opened(state) as reader:
            held = threading.Event()

            def hold() -> None:
                with reader.file.reading() as rows, rows.store.snapshot():
                    rows.store.value("SELECT count(*) FROM identity")
                    held.set()
                    time.sleep(0.3)

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            erasure.forget(lambda: forget(own, person.number))  # waits for the reader
            thread.join()
        publish(own)
        erasure.run()
        assert found(state, words) == set()


def test_the_record_of_crops_forgets_the_names_of_files(tmp_path: Path, rng: np.random.Generator) -> None:
    state, folder = tmp_path / "state", tmp_path / "crops"
    folder.mkdir()
    settings = load(None, {"state_dir": state})
    picture = (Path(__file__).parent.parent / "fixtures/from-0ed139b/crops").glob("*.jpg")
    data = next(iter(picture)).read_bytes()
    names = [f"{track:04d}_c1s1_{frame:06d}_00.jpg" for track in (3, 4) for frame in range(30)]
    for name in names:
        (folder / name).write_bytes(data)
    options = CropFolderOptions(once=True, settle_seconds=0.0)
    source = CropFolderSource("yard", folder, state / "crops-yard.sqlite", options)
    for batch in source.frames():
        if batch is not None:
            source.done(batch)
    track = 1_000_003
    with opened(state, owner=True) as own:
        person = enrol(own, rng, "Anna-Karenina")
        erasure = make_erasure(settings, own, {}, [source])
        erasure.note(
            decision(
                track, camera="yard-c1", number=person.number, kind=DecisionKind.ENROLLED, first_seen=0.0
            )
        )
        words = [name.encode() for name in names if name.startswith("0003")]
        assert "crops-yard.sqlite" in found(state, words)
        assert erasure.forget(lambda: forget(own, person.number))[1].pictures == 30
        assert found(state, words) == set()
        assert sorted(file.name for file in folder.iterdir()) == sorted(names[30:])


def test_everyone_at_once(settings: Settings, rng: np.random.Generator) -> None:
    """Also ids noted before, whose events a running agent had not erased yet."""
    state = settings.state_dir
    person, words = fill(state, rng)
    with opened(state, owner=True) as own:
        forget(own, person.number)  # the agent is killed here
    done = CliRunner().invoke(app, ["gallery", "forget", "--all", "--yes", "--state", str(state)])
    assert done.exit_code == 0, done.output
    assert "42 waiting event(s)" in done.output
    assert found(state, [*words, b"Other-"]) == set()


def test_people_who_are_evicted_leave_nothing(settings: Settings, rng: np.random.Generator) -> None:
    state = settings.state_dir
    limits = GallerySettings(capacity=2)
    with Gallery(state / "gallery.db", limits, space="s", dimension=DIMENSION, owner=True) as own:
        erasure = make_erasure(settings, own, {}, [])
        people = []
        for _ in range(3):  # the third takes the place of the first
            rows = rng.standard_normal((1, DIMENSION)).astype(np.float32)
            rows /= np.linalg.norm(rows)
            people.append(
                own.enrol(rows, np.ones(1, np.float32), origin="t", camera="yard", time=time.time())
            )
        publish(own)
        erasure.run()
        assert found(state, [people[0].id.encode()]) == set()
