"""What the site changes in a gallery is recorded, so that a replay compares as the run did."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from edge_agent.agent.recording import Journal
from edge_agent.core.clock import Clock
from edge_agent.core.config import GallerySettings
from edge_agent.gallery import Gallery
from edge_agent.offline.replay.others import Others
from edge_agent.record.entries import Decisions
from edge_agent.record.recorder import Recorder

D = 8


def test_means_of_other_devices_are_recorded_and_repeated(tmp_path: Path) -> None:
    entries: list[Any] = []
    clock = Clock.open(tmp_path / "clock.json")
    total = np.linspace(0.0, 1.0, D) * 9

    def opened(name: str) -> Gallery:
        return Gallery(tmp_path / name, GallerySettings(), space="s", dimension=D, owner=True, clock=clock)

    with opened("a.db") as live, opened("b.db") as replayed:
        live.cameras.start()
        replayed.cameras.start()
        recorder = cast(Recorder, SimpleNamespace(put=entries.append))
        journal = Journal(live, clock, recorder)
        journal.begin({})
        with live.file.changing() as rows:
            rows.site.put_mean("gate/door", 0, 20.0, total)
            live.file.means.share_all(rows.site.means(D))
            number = rows.insert(
                id="p-aaaaaaaaaaaa",
                name=None,
                kind="auto",
                created=0.0,
                last_seen=0.0,
                sightings=1,
                ttl_s=None,
            )
            vector = np.eye(1, D, 3, dtype=np.float32)
            rows.exemplars.replace_origin(
                number, "fleet/gate/p", vector, [(1.0, "fleet/gate/p", "gate/door", 0.0, 0)]
            )
        journal.others()
        (entry,) = entries
        body = json.loads(json.dumps(entry.body))
        assert [one[:3] for one in body["means"]] == [["gate/door", 0, 20.0]]
        others = Others(replayed, lambda number: number, {}, Decisions({}))
        assert others.repeat(body, entry.vectors, with_vectors=True) == 0
        np.testing.assert_array_equal(replayed.vectors([1])[1], live.vectors([1])[1])
        assert np.abs(live.vectors([1])[1] - vector).max() > 0.1  # the mean counts
        journal.others()
        assert len(entries) == 1
