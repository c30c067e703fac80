"""The decision: threshold from the site, matching, enrolment, cannot-link, contest, switch, fuse."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from edge_agent.core.config import GallerySettings, IdentifySettings
from edge_agent.core.structures import Decision, DecisionKind, TrackObservation, TrackUpdate
from edge_agent.gallery.gallery import Gallery
from edge_agent.identify import Identifier, SiteScores
from edge_agent.identify.covisible import Covisibility
from edge_agent.identify.site import FEWEST_COUNTED, Calibrated, pair_rate, search_rate
from edge_agent.identify.tracks import REVIEW_CROPS, Evidence, TrackTable, worth

D = 64
SIZE = (640, 480)


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with Gallery(":memory:", GallerySettings(), space="test", dimension=D) as opened:
        yield opened


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class People:
    """Vectors of made-up people: `likeness` to each other, `noise` from crop to crop."""

    def __init__(self, count: int, *, likeness: float = 0.2, noise: float = 0.3, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        common = unit(self._random.normal(size=D))
        own = [unit(self._random.normal(size=D)) for _ in range(count)]
        self.centres = [unit(np.sqrt(likeness) * common + np.sqrt(1 - likeness) * v) for v in own]
        self._noise = noise

    def crop(self, person: int) -> np.ndarray:
        noise = self._random.normal(size=D) / np.sqrt(D)
        return unit(self.centres[person] + self._noise * noise)


class Scene:
    """Feeds an identifier: each step shows tracks, as `{track: vector}`."""

    def __init__(self, identifier: Identifier, camera: str = "cam") -> None:
        self.identifier = identifier
        self.camera = camera
        self.frame = 0
        self.decisions: list[Decision] = []
        self.sure = True

    def show(self, tracks: dict[int, np.ndarray | None], ended: tuple[int, ...] = ()) -> list[Decision]:
        self.frame += 1
        seen = tuple(
            TrackObservation(
                self.camera, track, self.frame, self.frame / 10,
                np.array([60 * track, 50, 60 * track + 40, 150], np.float32), 0.9, vector, 0.8,
                sure=self.sure,
            )
            for track, vector in tracks.items()
        )  # fmt: skip
        update = TrackUpdate(self.camera, self.frame, self.frame / 10, SIZE, seen, ended)
        new = self.identifier.update(update)
        self.decisions += new
        return new

    def visit(self, people: People, who: dict[int, int], frames: int = 20) -> list[Decision]:
        """Let the tracks `who` (track: person) pass together and leave."""
        new: list[Decision] = []
        for _ in range(frames):
            new += self.show({track: people.crop(person) for track, person in who.items()})
        return new + self.show({}, ended=tuple(who))

    def number(self, track: int) -> int | None:
        return self.identifier.number(self.camera, track)


def kinds(decisions: list[Decision]) -> list[str]:
    return [d.kind.value for d in decisions]


def warm(scene: Scene, people: People, count: int = 6) -> None:
    """Show people 0..count-1 together, which gives the site its impostor scores."""
    scene.visit(people, {100 + p: p for p in range(count)}, frames=30)


# -- the site's threshold ----------------------------------------------------------------------


def test_one_value_for_each_pair_of_people() -> None:
    site = SiteScores()
    site.learn("a", "b", 0.1)
    site.learn("b", "a", 0.3)
    assert len(site) == 1
    site.learn("c", "b", 0.5)
    site.rename("c", "a")  # c turns out to be a
    assert len(site) == 1


def test_joining_people_does_not_bring_the_warm_up_back(gallery: Gallery) -> None:
    thresholds = Identifier(gallery, "s", IdentifySettings()).thresholds
    for n, value in enumerate((0.1, 0.2, 0.15, 0.3)):
        thresholds.site.learn("a", f"b{n}", value)
    before = thresholds.current()
    assert before.value is not None
    thresholds.site.rename("b1", "b0")
    assert len(thresholds.site) == 3
    assert thresholds.current().value == before.value


def test_an_event_carries_the_threshold_that_it_was_decided_by(gallery: Gallery) -> None:
    """Joining two people takes a pair away, which may change the site's threshold before the event is."""
    people = People(4)
    settings = IdentifySettings()
    scene = Scene(Identifier(gallery, "s", settings))
    warm(scene, people, count=4)
    decisions = []
    for _ in range(12):
        decisions += scene.show({1: people.crop(0)})
    matched = [d for d in decisions if d.kind is DecisionKind.MATCHED]
    assert [(d.rule, d.identities) for d in matched] == [("site", 4)]
    assert matched[0].threshold is not None
    assert matched[0].score is not None
    assert matched[0].threshold <= matched[0].score
    assert matched[0].pair_rate == pytest.approx(pair_rate(settings.target_fmr, FEWEST_COUNTED), rel=1e-3)
    assert matched[0].search_rate == pytest.approx(search_rate(matched[0].pair_rate, 4), rel=1e-3)
    site = scene.identifier.thresholds.site
    while len(site) > 2:
        site.rename(*list(site.to_json()["pairs"])[-1].split("|"))
    assert len(site) > 0
    assert all(d.threshold is not None for d in scene.show({}, ended=(1,)))


def test_site_scores_survive_a_restart(gallery: Gallery) -> None:
    people = People(6)
    scene = Scene(Identifier(gallery, "one", IdentifySettings()))
    warm(scene, people)
    before = scene.identifier.thresholds.current()
    assert before.rule == "site"
    scene.identifier.thresholds.save()
    assert Identifier(gallery, "two", IdentifySettings()).thresholds.current() == before


def test_drift_is_seen() -> None:
    site = SiteScores()
    assert site.drift() is None
    for n in range(40):
        site.learn("a", f"b{n}", 0.1 + 0.02 * (n % 3) + (0.3 if n >= 20 else 0.0))
    drift = site.drift()
    assert drift is not None
    assert drift > 3


# -- decisions ---------------------------------------------------------------------------------


def test_unknown_people_are_enrolled_and_recognised_when_they_come_back(gallery: Gallery) -> None:
    people = People(8)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    warm(scene, people)
    assert len(gallery) == 6
    first = {p: scene.number(100 + p) for p in range(6)}
    assert len(set(first.values())) == 6
    back = scene.visit(people, {1: 3, 2: 5})
    assert kinds(back) == ["matched", "matched", "departed", "departed"]
    assert scene.number(1) == first[3]
    assert scene.number(2) == first[5]
    stranger = scene.visit(people, {3: 7})
    assert kinds(stranger) == ["enrolled", "departed"]
    assert len(gallery) == 7


def test_a_decision_contains_its_evidence(gallery: Gallery) -> None:
    people = People(7)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    warm(scene, people)
    decision = scene.visit(people, {1: 2})[0]
    assert decision.rule == "site"
    assert decision.threshold is not None
    assert decision.score is not None
    assert decision.score >= decision.threshold
    assert decision.runner_up is not None
    assert decision.runner_up < decision.score
    assert decision.evidence >= 6
    assert decision.identity is not None
    assert decision.identity.startswith("p-")


def test_nothing_is_merged_during_warm_up(gallery: Gallery) -> None:
    """With one person per picture there are no impostor pairs: every person is new."""
    people = People(3)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    for track in (1, 2, 3):
        scene.visit(people, {track: 0})
    assert kinds(scene.decisions).count("matched") == 0
    assert len(gallery) == 3


def test_identities_of_the_warm_up_are_fused_when_the_site_is_known(gallery: Gallery) -> None:
    people = People(7, noise=0.2)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    for track in (1, 2):
        scene.visit(people, {track: 6})
    assert len(gallery) == 2
    warm(scene, people)
    assert scene.number(1) == scene.number(2)
    fused = [d for d in scene.decisions if d.reason == "fused"]
    assert fused
    assert all(d.kind is DecisionKind.CORRECTED and d.corrects and d.previous for d in fused)


def test_identities_are_not_fused_before_there_are_enough_crops(gallery: Gallery) -> None:
    people = People(7, noise=0.2)
    scene = Scene(Identifier(gallery, "s", IdentifySettings(fuse_crops=10_000)))
    for track in (1, 2):
        scene.visit(people, {track: 6})
    warm(scene, people)
    assert scene.number(1) != scene.number(2)


@pytest.mark.parametrize("pool_crops", [10, 30])
def test_a_track_stores_one_embedding_for_each_pool(gallery: Gallery, pool_crops: int) -> None:
    scene = Scene(Identifier(gallery, "s", IdentifySettings(pool_crops=pool_crops)))
    scene.visit(People(1), {1: 0}, frames=61)
    assert gallery.stats().exemplars == 60 // pool_crops


def test_two_people_on_one_picture_are_never_one_identity(gallery: Gallery) -> None:
    """Twins: a second track seen together with a known person cannot be that person."""
    people = People(6)
    scene = Scene(Identifier(gallery, "s", IdentifySettings(threshold=0.7)))
    warm(scene, people)
    known = scene.number(102)
    scene.visit(people, {1: 2, 2: 2}, frames=40)
    numbers = [scene.number(1), scene.number(2)]
    assert known in numbers
    assert numbers[0] != numbers[1]


def test_a_better_fit_takes_the_identity_back(gallery: Gallery) -> None:
    """A similar person came first and was matched; then the right person appears in the same frame."""
    people = People(7, noise=0.1)
    look_alike = unit(0.88 * people.centres[2] + 0.48 * people.centres[6])
    scene = Scene(Identifier(gallery, "s", IdentifySettings(threshold=0.7)))
    warm(scene, people)
    known = scene.number(102)
    for _ in range(12):
        scene.show({1: look_alike})
    assert scene.number(1) == known
    for _ in range(20):
        scene.show({1: look_alike, 2: people.crop(2)})
    assert scene.number(2) == known
    assert scene.number(1) not in (known, None)
    corrected = [d for d in scene.decisions if d.kind is DecisionKind.CORRECTED]
    assert [d.reason for d in corrected] == ["contested"]
    matched = next(d for d in scene.decisions if d.kind is DecisionKind.MATCHED and d.track_id == 1)
    assert corrected[0].corrects == matched.id
    assert corrected[0].previous == matched.identity


def test_a_track_that_moves_to_another_person_is_reassigned(gallery: Gallery) -> None:
    people = People(8, noise=0.1)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    warm(scene, people)
    first, second = scene.number(101), scene.number(104)
    for _ in range(35):
        scene.show({1: people.crop(1)})
    assert scene.number(1) == first
    for _ in range(60):
        scene.show({1: people.crop(4)})
    assert scene.number(1) == second
    assert scene.decisions[-1].reason == "switched"
    _, _, origins = gallery.exemplars(first or 0)
    assert not any(":1" in origin and origin.endswith(":1") for origin in origins)


def test_a_person_enrolled_too_early_is_joined_with_the_old_identity(gallery: Gallery) -> None:
    """At first seen badly, then well: the provisional identity goes up in the old one."""
    people = People(7, noise=0.1)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    warm(scene, people)
    known = scene.number(103)
    blurred = unit(0.1 * people.centres[3] + 0.95 * people.centres[6])
    for _ in range(10):
        scene.show({1: blurred})
    assert scene.number(1) not in (known, None)
    for _ in range(60):
        scene.show({1: people.crop(3)})
    assert scene.number(1) == known
    assert [d.reason for d in scene.decisions if d.kind is DecisionKind.CORRECTED] == ["fused"]
    assert len(gallery) == 6


def test_watchlist_matches_only_manually_enrolled_people(gallery: Gallery) -> None:
    people = People(4, noise=0.1)
    vectors = np.stack([people.crop(0) for _ in range(3)])
    anna = gallery.enrol(
        vectors, np.ones(3, np.float32), name="Anna", kind="enrolled", origin="cli", camera="cli", time=0.0
    )
    scene = Scene(
        Identifier(gallery, "s", IdentifySettings(enrolment="watchlist", threshold=0.6, publish_unknown=True))
    )
    decisions = scene.visit(people, {1: 0, 2: 1})
    assert scene.number(1) == anna.number
    assert scene.number(2) is None
    assert len(gallery) == 1
    assert [d.name for d in decisions if d.kind is DecisionKind.MATCHED] == ["Anna"]
    assert [d.track_id for d in decisions if d.kind is DecisionKind.UNKNOWN] == [2]


@pytest.mark.parametrize(
    ("configured", "calibrated", "rule"),
    [(0.5, 0.4, "configured"), (None, 0.4, "calibrated"), (None, None, "warm-up")],
)
def test_the_stronger_rule_wins(
    gallery: Gallery, configured: float | None, calibrated: float | None, rule: str
) -> None:
    known = None if calibrated is None else Calibrated(calibrated, 1e-3)
    identifier = Identifier(gallery, "s", IdentifySettings(threshold=configured), known)
    assert identifier.thresholds.current().rule == rule


def test_an_identity_erased_from_outside_is_survived(gallery: Gallery) -> None:
    people = People(6)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    warm(scene, people)
    for _ in range(10):
        scene.show({1: people.crop(2)})
    number = scene.number(1)
    assert number is not None
    gallery.forget(number)
    for _ in range(30):
        scene.show({1: people.crop(2)})
    assert scene.number(1) not in (None, number)


def test_bad_crops_are_no_evidence(gallery: Gallery) -> None:
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    for _ in range(50):
        assert scene.show({1: None}) == []
    assert scene.number(1) is None


@pytest.mark.parametrize(
    ("interval_s", "frame"),
    [
        (0.08, 8),  # every frame of a scene with 10 a second
        (0.15, 9),  # crops at frames 1, 3, 5, 7, 9: after the first, each counts 1.75
        (0.25, 13),  # crops at frames 1, 4, ... 13: each counts 2.2
    ],
)
def test_crops_close_in_time_count_once_and_distant_ones_more(
    gallery: Gallery, interval_s: float, frame: int
) -> None:
    people = People(1)
    scene = Scene(Identifier(gallery, "s", IdentifySettings(crop_interval_s=interval_s)))
    found = [n for n in range(1, 40) if "enrolled" in kinds(scene.show({1: people.crop(0)}))]
    assert found == [frame]


def test_what_a_crop_is_worth_depends_on_the_time_since_the_last() -> None:
    assert worth(0.1) == 1.0
    assert worth(1_700_000_000.3 - 1_700_000_000.2) == 1.0  # as times of frames are
    assert worth(0.0) == 0.0
    assert worth(0.5) == pytest.approx(2.5, abs=0.1)
    assert worth(np.inf) == worth(60.0) == pytest.approx(2.6, abs=0.1)


def test_a_track_needs_crops_until_it_is_decided_and_after_a_narrow_decision(gallery: Gallery) -> None:
    people = People(8, noise=0.1)
    scene = Scene(Identifier(gallery, "s", IdentifySettings(enrol_crops=12, threshold=0.85)))
    tracks = scene.identifier.tracks

    def wanted(number: int) -> int:
        track = tracks.find("cam", number)
        assert track is not None
        return max(0, math.ceil(tracks.crops_wanted([track])[0]))

    warm(scene, people)
    scene.show({1: people.crop(7)})
    assert wanted(1) == 11
    scene.show({1: None})
    assert wanted(1) == 11
    while scene.number(2) is None:
        decisions = scene.show({2: people.crop(3)})
    assert decisions[0].kind is DecisionKind.MATCHED
    assert wanted(2) == 0
    near_the_threshold = unit(0.735 * people.centres[2] + 0.5 * people.centres[6])
    while scene.number(3) is None:
        decisions = scene.show({3: near_the_threshold})
    assert 0.85 < (decisions[0].score or 0) < 0.9
    assert wanted(3) == REVIEW_CROPS
    for _ in range(REVIEW_CROPS):
        scene.show({3: near_the_threshold})
    assert wanted(3) == 0


def test_an_unknown_person_stays_unsettled(gallery: Gallery) -> None:
    people = People(2)
    settings = IdentifySettings(enrolment="watchlist", threshold=0.7, publish_unknown=True)
    scene = Scene(Identifier(gallery, "s", settings))
    for _ in range(20):
        scene.show({1: people.crop(0)})
    assert kinds(scene.decisions) == ["unknown"]
    track = scene.identifier.tracks.find("cam", 1)
    assert track is not None
    assert track.number is None
    scene.show({}, ended=(1,))
    assert scene.identifier.tracks.find("cam", 1) is None


def test_a_reload_replaces_all_limits(gallery: Gallery) -> None:
    people = People(2)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    scene.identifier.reload(
        IdentifySettings(enrol_crops=3, decide_crops=3, threshold=0.5, covisible_frames=1)
    )
    found = [
        n for n in range(1, 6) if "enrolled" in kinds(scene.show({1: people.crop(0), 2: people.crop(0)}))
    ]
    assert found == [3]
    assert scene.number(1) != scene.number(2)
    assert scene.identifier.thresholds.current().rule == "configured"


def observed(table: TrackTable, *heights: float, frame: int = 1, camera: str = "c") -> list[int]:
    """Show one track per height for 20 frames; return the crops in the evidence of each."""
    for n in range(frame, frame + 20):
        seen = tuple(
            TrackObservation(
                camera, at, n, n / 10, np.array([90 * at, 0, 90 * at + height / 2, height], np.float32),
                0.9, np.eye(D, dtype=np.float32)[at], 0.5,
            )
            for at, height in enumerate(heights)
        )  # fmt: skip
        tracks = table.observe(TrackUpdate(camera, n, n / 10, SIZE, seen, ()))
    return [track.evidence.pooled for track in tracks]


def test_small_crops_count_where_all_people_are_small() -> None:
    table = TrackTable("s", IdentifySettings())
    assert observed(table, 30, 36, 44) == [20, 20, 20]
    assert observed(table, 100, 90, 40, camera="near") == [20, 20, 0]
    assert observed(table, 400, 48, camera="mixed") == [20, 20]


def test_a_track_that_is_reported_again_after_its_end_is_present_again() -> None:
    table = TrackTable("s", IdentifySettings())
    box = np.array([0, 0, 40, 100], np.float32)
    for ended, present in (((), [7]), ((7,), []), ((), [7])):
        seen = () if ended else (TrackObservation("c", 7, 1, 0.1, box, 0.9, None, 0.0),)
        table.observe(TrackUpdate("c", 1, 0.1, SIZE, seen, ended))
        assert [track.key[1] for track in table.present("c")] == present


def test_a_track_that_was_forgotten_is_a_new_one_when_it_is_reported_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_agent.identify.tracks.REMEMBERED_TRACKS", 0)
    table, box = TrackTable("s", IdentifySettings()), np.array([0, 0, 40, 100], np.float32)
    update = TrackUpdate("c", 1, 0.1, SIZE, (TrackObservation("c", 7, 1, 0.1, box, 0.9, None, 0.0),), ())
    [track] = table.observe(update)
    track.ended = True
    assert table.forget_old() == ([track.key], [])
    [again] = table.observe(update)
    assert again is not track
    assert table.get(("c", 7)) is table.find("c", 7) is again


# -- parts -------------------------------------------------------------------------------------


def test_centroid_is_weighted_by_quality() -> None:
    pool = Evidence(limit=3)
    pool.add(np.array([1, 0], np.float32), 0.9)
    pool.add(np.array([0, 1], np.float32), 0.3)
    assert pool.centroid() == pytest.approx(np.array([3, 1]) / np.sqrt(10))
    for _ in range(3):
        pool.add(np.array([0, 1], np.float32), 0.5)
    assert pool.centroid() == pytest.approx(np.array([0, 1]))
    assert (pool.count, pool.pooled) == (5, 3)
    with pytest.raises(ValueError, match="without a good crop"):
        Evidence(3).centroid()


def test_people_are_rivals_after_enough_frames_together() -> None:
    links = Covisibility(frames=3)

    def seen(track: int, x: float) -> TrackObservation:
        box = np.array([x, 0, x + 40, 100], np.float32)
        return TrackObservation("c", track, 1, 0.0, box, 0.9, None, 0.0)

    for _ in range(2):
        links.observe([seen(1, 0), seen(2, 200)])
    assert links.rivals(("c", 1)) == set()
    links.observe([seen(1, 0), seen(2, 200)])
    assert links.rivals(("c", 1)) == {("c", 2)}
    links.forget([("c", 2)])
    assert links.rivals(("c", 1)) == set()


def test_crops_without_a_place_in_the_frame_are_rivals_by_their_tracks() -> None:
    links = Covisibility(frames=2)
    box = np.array([0, 0, 40, 100], np.float32)
    seen = [TrackObservation("c", n, 1, 0.0, box, 0.9, None, 0.0, placed=False) for n in (1, 2, 2)]
    links.observe(seen)
    links.observe(seen)
    assert links.rivals(("c", 1)) == {("c", 2)}
    assert links.rivals(("c", 2)) == {("c", 1)}


def test_doubtful_boxes_prove_nobody() -> None:
    links = Covisibility(frames=2)
    box = np.array([0, 0, 40, 100], np.float32)

    def seen(track: int, *, sure: bool) -> TrackObservation:
        return TrackObservation("c", track, 1, 0.0, box + 200 * track, 0.9, None, 0.0, sure=sure)

    for _ in range(9):
        links.observe([seen(1, sure=True), seen(2, sure=False), seen(3, sure=True)])
    assert links.rivals(("c", 1)) == {("c", 3)}
    assert links.rivals(("c", 2)) == set()
    links.observe([seen(1, sure=True), seen(2, sure=True)])
    assert links.rivals(("c", 2)) == set()
    links.observe([seen(1, sure=True), seen(2, sure=True)])
    assert links.rivals(("c", 2)) == {("c", 1)}


def test_doubtful_boxes_enrol_nobody_and_are_recognised(gallery: Gallery) -> None:
    people = People(8)
    scene = Scene(Identifier(gallery, "s", IdentifySettings()))
    scene.sure = False
    scene.visit(people, {7: 7}, frames=60)
    assert kinds(scene.decisions) == []
    scene.sure = True
    warm(scene, people)
    known = scene.number(103)
    scene.sure = False
    assert kinds(scene.visit(people, {8: 3}, frames=30)) == ["matched", "departed"]
    assert scene.number(8) == known
    assert kinds(scene.visit(people, {9: 6}, frames=60)) == []


def test_two_boxes_on_one_body_are_no_rivals() -> None:
    links = Covisibility(frames=1)
    whole = np.array([0, 0, 40, 100], np.float32)
    upper = np.array([2, 2, 38, 50], np.float32)
    links.observe(
        [TrackObservation("c", n, 1, 0.0, box, 0.9, None, 0.0) for n, box in ((1, whole), (2, upper))]
    )
    assert links.rivals(("c", 1)) == set()
