"""A run that asked others about strangers is decided again as it was, with what they replied."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent.recorded_replies import RecordedElsewhere
from edge_agent.agent.recording import RecordedIdentifier, open_recorder
from edge_agent.core.clock import Clock
from edge_agent.core.config import Settings
from edge_agent.core.names import new_id
from edge_agent.core.structures import DecisionKind
from edge_agent.gallery import erasure
from edge_agent.gallery.gallery import Gallery, open_gallery
from edge_agent.identify.elsewhere import Candidate, Reply
from edge_agent.identify.tracks import TrackKey
from edge_agent.record.recorder import FOLDER, recordings
from tests.offline.test_replay import ENGINE, D, Site, again, content, crowd


@dataclass
class _Later:
    reply_: Reply
    polls: int

    def reply(self) -> Reply | None:
        self.polls -= 1
        return self.reply_ if self.polls < 0 else None


@dataclass
class Others:
    """Others who know the people from 8 on, and are away for some questions."""

    gallery: Gallery
    known: list[np.ndarray]
    random: np.random.Generator
    ids: list[str] = field(default_factory=lambda: [new_id() for _ in range(4)])
    asked: int = 0

    def ask(self, track: TrackKey, vector: np.ndarray) -> _Later | None:
        self.asked += 1
        if self.asked % 5 == 0:
            return None
        rows = [self.gallery.cameras.centred(track[0], one[None]) for one in self.known]
        found = tuple(
            Candidate((id_,), row, ("gate",), None) for id_, row in zip(self.ids, rows, strict=True)
        )
        return _Later(Reply(found, 500), int(self.random.integers(0, 6)))

    def take(self, track: TrackKey, candidate: Candidate) -> int | None:
        place = self.ids.index(candidate.ids[0])
        with self.gallery.file.changing() as rows:
            number = rows.number_of(candidate.ids[0])
            if number is None:
                self.gallery.retention.make_room(rows, 1)
                number = rows.insert(
                    id=candidate.ids[0], name=f"person {place} there", kind="enrolled", created=1.0,
                    last_seen=2.0, sightings=1, ttl_s=None,
                )  # fmt: skip
            source = (0.8, f"fleet/gate/{candidate.ids[0]}", "gate/door", 2.0, 0)
            rows.add_exemplars(number, self.known[place][None], [source])
        return number


def run(folder: Path, stack: ExitStack, seed: int) -> tuple[Site, Others]:
    settings = Settings.model_validate({"state_dir": folder, "record": {"enabled": True}})
    random = np.random.default_rng(seed)
    people = random.normal(0, 1, (12, D)) + random.normal(0, 0.8, D)
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    clock = Clock()
    gallery = stack.enter_context(open_gallery(settings, ENGINE, clock, owner=True))
    others = Others(gallery, [np.asarray(one, np.float32) for one in people[8:]], random)
    noted = RecordedElsewhere(others, gallery)
    identifier = RecordedIdentifier(gallery, f"{seed}-session", settings.identify, elsewhere=noted)
    identifier.elsewhere = noted
    recorder = open_recorder(
        settings, gallery, identifier, ENGINE, None, None, clock, f"{seed}-session", stack
    )
    return Site(settings, gallery, identifier, recorder, random, [], people), others


def strangers(at: Site) -> None:
    crowd(at)
    at.come_and_go(8, 9, 0, camera="gate")
    at.come_and_go(8, 10)
    at.come_and_go(11, 1, crops=16)
    at.come_and_go(9, 2, crops=40)


@pytest.mark.parametrize("seed", range(3))
def test_replies_and_people_who_were_taken_are_repeated(tmp_path: Path, seed: int) -> None:
    with ExitStack() as stack:
        at, others = run(tmp_path, stack, seed)
        strangers(at)
        assert others.asked > 5
        found = [one for one in at.decided if one.origin == "fleet"]
        assert len(found) >= 3
        assert all(one.kind is DecisionKind.MATCHED and one.identities > 490 for one in found)
        decided = len(at.decided)
    outcome = again(tmp_path)
    assert len(outcome.recorded) == decided
    assert outcome.differs_at is None, (
        outcome.recorded[outcome.differs_at],
        outcome.decisions[outcome.differs_at],
    )
    assert outcome.not_repeated == 0


def test_with_other_settings_the_replies_are_judged_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        at, _ = run(tmp_path, stack, 1)
        strangers(at)
    matched = [one for one in again(tmp_path).decisions if one["identities"] > 490]
    strict = again(tmp_path, identify={"threshold": 0.999}).decisions
    assert matched
    assert not any(one["kind"] == "matched" for one in strict)


def test_who_is_forgotten_is_erased_from_replies_that_named_them(tmp_path: Path) -> None:
    with ExitStack() as stack:
        at, others = run(tmp_path, stack, 1)
        strangers(at)
        known = others.known[0]
        person = at.gallery.get(others.ids[0])
        erasure.forget(at.gallery, person.number)
        at.recorder.erase(person.id)
    (path,) = recordings(tmp_path / FOLDER)
    assert known.tobytes() not in content(path)
    assert person.id.encode() not in content(path)
    again(tmp_path)  # it can still be replayed
