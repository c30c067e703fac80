"""Identity quality of the whole agent on real video, scored against people by motmetrics.

The threshold comes from the site's own rule; nothing is fitted to this video here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.identity.footage import blue_hour, of_file
from benchmarks.identity.running import Network, run_clips
from benchmarks.scoring import PETS_VISITS, people_of, read_mot, score, scored_reentries
from tests.conftest import REPO


def run_agent(tmp_path: Path, video: Path, *options: object) -> tuple[Path, Path]:
    online, final = tmp_path / "online.txt", tmp_path / "final.txt"
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "run", "--source", str(video), "--broker", "none",
         "--state", str(tmp_path / "state"), "--mot", str(online), "--mot-final", str(final), "--json",
         *map(str, options)],
        capture_output=True, text=True, check=False, cwd=REPO,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == {"vtest": 795}
    return online, final


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("network", "profile"), [("osnet", "imagenet"), ("omz", "openvino-raw")])
def test_people_of_vtest_keep_their_identity(
    tmp_path: Path, vtest_video: Path, vtest_truth: Path, yolox_onnx: Path,
    request: pytest.FixtureRequest, network: str, profile: str,
) -> None:  # fmt: skip
    model = request.getfixturevalue(f"{network}_onnx")
    online, final = run_agent(
        tmp_path, vtest_video, "--detector", f"yolox:{yolox_onnx}", "--model", model, "--preprocess", profile
    )
    truth, people = read_mot(vtest_truth, truth=True), people_of(PETS_VISITS)
    known, last = score(read_mot(online), truth, people), score(read_mot(final), truth, people)
    assert known.idf1 >= 0.82
    assert (known.reentries, known.merged) == (9, 0)
    assert known.recognised >= 8
    assert last.idf1 >= 0.88


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_identities_survive_a_slow_change_of_light_and_colour(
    vtest_video: Path, vtest_truth: Path, yolox_onnx: Path
) -> None:
    clip = blue_hour(of_file(vtest_video, vtest_truth, people_of(PETS_VISITS)))
    last = run_clips([clip], f"yolox:{yolox_onnx}", Network("shipped"))["final"]
    assert (last["merged"], last["reentries"]) == (0, 9)
    assert last["recognised"] >= 8
    assert last["idf1"] >= 0.86


def boxes(*rows: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array([i for i, _ in rows])
    return ids, np.array([[x, 0, x + 10, 20] for _, x in rows], np.float32).reshape(-1, 4)


def test_a_perfect_answer_scores_one() -> None:
    truth = {n: boxes((1, 0), (2, 100)) for n in range(1, 6)} | {n: boxes((3, 50)) for n in range(6, 11)}
    people = {1: 1, 2: 2, 3: 1}  # visit 3 is person 1 again
    found = {n: boxes((7, 0), (8, 100)) for n in range(1, 6)} | {n: boxes((7, 50)) for n in range(6, 11)}
    result = score(found, truth, people)
    assert (result.idf1, result.mota) == (1.0, 1.0)
    assert (result.reentries, result.recognised, result.merged) == (1, 1, 0)


def test_a_new_identity_for_a_known_person_is_a_missed_reentry() -> None:
    truth = {1: boxes((1, 0)), 2: boxes((3, 50))}
    result = score({1: boxes((7, 0)), 2: boxes((9, 50))}, truth, {1: 1, 3: 1})
    assert (result.reentries, result.recognised) == (1, 0)
    assert result.idf1 == pytest.approx(0.5)


def test_one_identity_for_two_people_is_a_merge() -> None:
    truth = {1: boxes((1, 0)), 2: boxes((2, 50))}
    assert score({1: boxes((7, 0)), 2: boxes((7, 50))}, truth, {1: 1, 2: 2}).merged == 1


def test_reentries_are_counted_in_order_of_time() -> None:
    begun, person = {5: 1, 6: 10, 7: 20}, {5: 1, 6: 1, 7: 1}
    assert scored_reentries(begun, {5: 40, 6: 41, 7: 40}, person) == (2, 1)
