"""People who come one at a time: nobody is ever seen together with another, and all are recognised."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.agent.results import FrameOutcome
from edge_agent.core.config import Settings
from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity

PEOPLE = 6
CROPS = 10
STEP_S = 0.5
GAP_S = 60.0


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people who pass a door twice, one after another: crops without boxes and track ids."""
    folder = tmp_path_factory.mktemp("door")
    view, moment = camera(4242), 1_700_000_000.0
    for visit in range(2 * PEOPLE):
        person = identity(90_000 + visit % PEOPLE)
        rng = np.random.default_rng([7, visit])
        hour = float(rng.uniform(9, 17))
        for crop in range(CROPS):
            name = f"{visit:02d}_{crop:02d}"
            cv2.imwrite(str(folder / f"{name}.jpg"), render_crop(person, view, rng, (160, 80), hour))
            where = {"camera": "door", "time": moment}
            (folder / f"{name}.json").write_text(json.dumps(where))
            moment += STEP_S
        moment += GAP_S
    return folder


def decisions_of(folder: Path, state: Path) -> list[Decision]:
    outcomes: list[FrameOutcome] = []
    source = {"id": "in", "url": f"crops:{folder}", "once": True, "settle_seconds": 0.0}
    settings = Settings(state_dir=state, sources=(source,))
    Agent(settings, Outputs(), observe=outcomes.append).run(threading.Event())
    return [decision for outcome in outcomes for decision in outcome.decisions]


def visit_of(decision: Decision) -> int:
    return int((decision.first_seen - 1_700_000_000.0) // (CROPS * STEP_S + GAP_S))


def test_people_who_come_one_at_a_time_are_recognised(door: Path, tmp_path: Path) -> None:
    found = decisions_of(door, tmp_path)
    last = {visit_of(one): one.identity for one in found}
    assert len(last) == 2 * PEOPLE
    recognised = [last[visit] == last[visit + PEOPLE] for visit in range(PEOPLE)]
    assert sum(recognised) >= PEOPLE - 1, Counter((one.kind, one.rule, one.threshold) for one in found)
    assert len({last[visit] for visit in range(PEOPLE)}) == PEOPLE  # nobody was merged
    assert {one.rule for one in found} <= {"prior", "site"}
    assert next(one for one in found if one.kind is DecisionKind.MATCHED).threshold is not None
