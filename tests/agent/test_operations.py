"""Operations on people: the same by MQTT command and beside an agent, with one audit file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import pytest

from edge_agent.agent.command_handlers import CommandHandlers
from edge_agent.agent.operations import operations_beside
from edge_agent.core.commands import COMMAND_TYPES
from edge_agent.core.config import GallerySettings, IdentifySettings, QualitySettings
from edge_agent.core.errors import InputError
from edge_agent.core.loading import load
from edge_agent.embed.quality import QualityGate
from edge_agent.gallery import Gallery
from edge_agent.gallery.erasure import Erasure
from edge_agent.identify import Identifier

D = 16
T = TypeVar("T")


class Now:
    """Runs tasks at once."""

    def call(self, task: Callable[[], T]) -> T:
        return task()

    def put(self, task: Callable[[], object]) -> None:
        task()


def near(seed: int, noise: float = 0.0) -> np.ndarray:
    row = np.random.default_rng(seed).standard_normal(D)
    row = row / np.linalg.norm(row) + noise * np.random.default_rng(99).standard_normal(D) / D**0.5
    return (row / np.linalg.norm(row)).astype(np.float32)[None]


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with Gallery(
        tmp_path / "gallery.db", GallerySettings(keep_crops=4), space="s", dimension=D, owner=True
    ) as one:
        for seed in range(1, 4):
            one.enrol(near(seed), np.ones(1), origin=f"s:c:{seed}", camera="c", time=100.0 * seed)
        one.enrol(near(1, 0.2), np.ones(1), origin="s:c:9", camera="c", time=900.0)
        one.add_exemplars(2, near(8), np.ones(1), origin="s:c:8", camera="c", time=800.0)
        yield one


def handlers(gallery: Gallery, folder: Path) -> CommandHandlers:
    return CommandHandlers(
        gallery=gallery,
        identifier=Identifier(gallery, "s", IdentifySettings(threshold=0.6)),
        embed=lambda _: near(5),
        gate=QualityGate(QualitySettings()),
        tasks=cast("Any", Now()),
        erasure=Erasure(gallery, lambda _: 0),
        reload=list,
        delivery=cast("Any", None),
        state=folder,
    )


def audit(folder: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    return [(line["action"], line["by"]) for line in lines]


def run(table: dict[str, Any], verb: str, **values: Any) -> Any:
    return table[verb](COMMAND_TYPES[verb](transaction="t", issued=0.0, **values))


def test_commands(gallery: Gallery, tmp_path: Path) -> None:
    table = handlers(gallery, tmp_path).table()
    ids = [one.id for one in gallery.identities()]
    (pair,) = [p for p in run(table, "suggestions", most=20)["pairs"] if p["score"] > 0.6]
    assert (pair["identity_id"], pair["other_id"]) == (ids[0], ids[3])
    run(table, "reject", identity_id=ids[0], other_id=ids[3])
    assert run(table, "suggestions")["pairs"] == []
    new = run(table, "split", identity_id=ids[1], origin="s:c:8", name="Ada")
    assert (new["name"], new["exemplars"]) == ("Ada", 1)
    assert run(table, "keep", identity_id=ids[2], keep="forever") == {
        "identity_id": ids[2],
        "expires": None,
    }
    assert run(table, "keep", identity_id=ids[2], keep="hours", hours=1.0)["expires"] is not None
    assert gallery.get(ids[2]).ttl_s == 3600.0
    run(table, "keep", identity_id=ids[2], keep="as-others")
    assert gallery.get(ids[2]).ttl_s is None
    assert run(table, "forget", identity_id=ids[2]) == {"exemplars": 1, "events": 0, "pictures": 0}
    verbs = ["reject", "split", "keep", "keep", "keep", "forget"]
    assert audit(tmp_path) == [(verb, "mqtt") for verb in verbs]


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("keep", {"keep": "hours"}),
        ("keep", {"keep": "forever", "hours": 2.0}),
        ("keep", {"keep": "hours", "hours": -1.0}),
        ("keep", {"keep": "hours", "hours": float("inf")}),
        ("keep", {"keep": "hours", "hours": float("nan")}),
        ("suggestions", {"most": 0}),
        ("suggestions", {"most": 10**9}),
        ("reject", {"other_id": "1"}),
        ("split", {"origin": "\x00"}),
        ("split", {"origin": "s:c:1"}),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    gallery: Gallery, tmp_path: Path, verb: str, values: dict[str, Any]
) -> None:
    values = values if verb == "suggestions" else {"identity_id": "1", **values}
    before = gallery.identities()
    with pytest.raises(InputError):
        run(handlers(gallery, tmp_path).table(), verb, **values)
    assert gallery.identities() == before
    assert not (tmp_path / "audit.jsonl").exists()


def test_beside_an_agent(gallery: Gallery, tmp_path: Path) -> None:
    """As the page and the command line use them."""
    settings = load(None, {"state_dir": tmp_path})
    with Gallery.existing(tmp_path / "gallery.db") as beside:
        operations = operations_beside(settings, beside, "page: ann")
        operations.name(1, "Ada")
        kept = operations.merge("Ada", 4)
        assert (kept.number, kept.name) == (1, "Ada")
        erased, removed = operations.forget(["Ada", 1, 2])
        assert [one.number for one in erased] == [1, 2]
        assert removed is None  # the agent does the rest
        operations.forget_all()
    assert len(gallery) == 0
    actions = ["name", "merge", "forget", "forget", "forget"]
    assert audit(tmp_path) == [(action, "page: ann") for action in actions]


def test_an_enrolled_picture_is_kept(gallery: Gallery, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (40, 16, 3), np.uint8)
    picture = cv2.resize(noise, (64, 160))
    crop = base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()
    data = run(handlers(gallery, tmp_path).table(), "enrol", name="Eve", crop=crop)
    (kept,) = gallery.crops.of(gallery.get(data["identity_id"]).number)
    assert (kept.origin, kept.camera) == ("mqtt:t", "")
    assert cv2.imdecode(np.frombuffer(kept.jpeg, np.uint8), cv2.IMREAD_COLOR).shape == picture.shape


def test_people_whom_the_agent_sees_together_are_not_suggested(gallery: Gallery, tmp_path: Path) -> None:
    asked: list[set[int]] = []

    def together(numbers: Any) -> set[tuple[int, int]]:
        asked.append(set(numbers))
        return {(1, 4)}

    operations = handlers(gallery, tmp_path).operations
    assert (1, 4) in {(pair.one.number, pair.other.number) for pair in operations.suggestions(3)}
    pairs = replace(operations, together=together).suggestions(3)
    assert (1, 4) not in {(pair.one.number, pair.other.number) for pair in pairs}
    assert asked[0] >= {1, 4}
