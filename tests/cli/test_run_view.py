"""What `edge-agent run` shows: people and progress on a terminal, a summary, and why nothing was embedded."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent.results import Summary
from edge_agent.cli.arguments import overrides
from edge_agent.cli.run_view import event_line, summary_lines
from edge_agent.core.config import QualitySettings, Settings
from edge_agent.core.errors import ConfigError
from edge_agent.core.loading import load
from edge_agent.core.structures import Decision, DecisionKind
from edge_agent.embed import quality
from edge_agent.offline.demo.street import render
from edge_agent.offline.synthetic.street import Street

SUMMARY = Summary({"yard": 90}, 12, 3, 2, 4.0, 1.0, 1.0, {}, {"yard": 0}, {}, 0)


def decision(kind: DecisionKind, number: int | None, **fields) -> Decision:
    own = Decision(
        id="1", kind=kind, camera="yard", track_id=4, identity=f"p-{number}", number=number, name=None,
        score=0.8123, runner_up=None, threshold=0.7, rule="site", evidence=6, quality=0.5,
        box=np.zeros(4, np.float32), size=(640, 480), frame=1, time=3661.0, first_seen=0.0, last_seen=0.0,
    )  # fmt: skip
    return replace(own, **fields)


def test_one_line_per_event():
    line = event_line(decision(DecisionKind.MATCHED, 3, name="Ana"), None)
    assert line.split() == [
        "01:01:01",
        "yard",
        "#4",
        "matched",
        "Ana",
        "(3)",
        "0.81",
        "(threshold",
        "0.70,",
        "site)",
    ]
    corrected = decision(DecisionKind.CORRECTED, 2, previous="p-5", reason="fused", score=None)
    assert "person 5 -> person 2  fused" in event_line(corrected, "person 5")
    assert "unknown" in event_line(decision(DecisionKind.UNKNOWN, None), None)


def test_the_summary_names_dropped_frames_and_the_next_command(tmp_path: Path):
    settings = Settings(state_dir=tmp_path)
    lines = summary_lines(replace(SUMMARY, dropped={"yard": 7, "gate": 0}), settings)
    assert "7 frames of yard dropped" in lines
    assert lines[-1] == f"next: edge-agent gallery list --state {tmp_path}"


def test_a_run_without_embeddings_states_the_reasons_with_their_settings():
    refused = {"small": 900, "blurred": 30, "engine failed": 2}
    lines = summary_lines(replace(SUMMARY, crops=0, identities=0, refused=refused), Settings())
    assert lines[1:] == [
        "no crop was embedded: 932 boxes were refused",
        "  900 small (see quality.min_width, quality.min_height)",
        "  30 blurred (see quality.min_sharpness)",
        "  2 engine failed",
    ]
    found_nobody = replace(SUMMARY, crops=0, identities=0, detector="hog")
    (_, nobody) = summary_lines(found_nobody, Settings())
    assert "the detector hog found nobody; try edge-agent model fetch yolox-nano," in nobody
    served = Settings.model_validate({"engine": {"backend": "triton:localhost:8001/reid"}})
    (_, nobody) = summary_lines(found_nobody, served)
    assert "or the inference server was away;" in nobody


def test_the_summary_states_what_hog_cost(tmp_path: Path):
    spent = replace(SUMMARY, stage_seconds={"detect": 2.7, "pack": 1.0}, detector="hog")
    assert summary_lines(spent, Settings(state_dir=tmp_path))[1] == (
        "the detector hog took 30 ms a frame, 68% of the run; a network finds more for less: "
        "edge-agent model fetch yolox-nano (docs/models.md#detectors)"
    )
    for other in ("yolox:nano", "external:edge-agent", "none", ""):
        assert len(summary_lines(replace(spent, detector=other), Settings(state_dir=tmp_path))) == 2
    idle = replace(spent, frames={}, crops=0, identities=0)
    assert not any("of the run" in line for line in summary_lines(idle, Settings(state_dir=tmp_path)))


def test_the_summary_has_the_advice_for_small_pictures(tmp_path: Path):
    lines = summary_lines(replace(SUMMARY, small=("the pictures of yard are small",)), Settings())
    assert "the pictures of yard are small" in lines


def test_the_summary_states_why_events_wait(tmp_path: Path):
    lines = summary_lines(replace(SUMMARY, undelivered=5), Settings(state_dir=tmp_path))
    assert lines[1].startswith(
        "5 events wait in the outbox: the broker was not reached, or has no subscriber"
    )


def test_a_process_that_ends_at_once_shows_the_cursor_again():
    code = """
import os
from rich.progress import Progress
from edge_agent.cli.output import console, show_cursor
with Progress(console=console(stderr=True)):
    show_cursor()
    os._exit(7)
"""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, close_fds=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with suppress(OSError):  # the other side is closed
        while got := os.read(leader, 65536):
            shown += got
    os.close(leader)
    assert process.wait(10) == 7
    assert 0 <= shown.rfind(b"\x1b[?25l") < shown.rfind(b"\x1b[?25h")


def test_every_setting_of_the_gate_is_named_by_a_reason():
    named = {key for keys in quality.SETTINGS_OF.values() for key in keys}
    assert named == set(QualitySettings.model_fields)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    return render(Street(3, people=2, seconds=6.0, fps=5.0, size=(640, 480)), folder).videos[0].video


def command(street: Path, tmp_path: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "edge_agent", "run", "--source", str(street), "--model", "colour-stripes",
            "--broker", "none", "--state", str(tmp_path / "state"), *more]  # fmt: skip


def test_a_terminal_shows_people_and_progress(street: Path, tmp_path: Path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command(street, tmp_path), stdin=follower, stdout=follower, stderr=follower, close_fds=True,
        env={**os.environ, "COLUMNS": "160", "TERM": "xterm", "EDGE_AGENT__IDENTIFY__ENROL_CROPS": "3"},
    )  # fmt: skip
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([leader], [], [], 1.0)[0]:
                continue
            try:
                got = os.read(leader, 65536)
            except OSError:  # the other side is closed
                break
            shown += got
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"\d\d:\d\d:\d\d  \S+ #\d+ +enrolled +person 1", text)
    assert "/30" in text, "frames of the header"
    assert "0 dropped" in text
    assert "next: edge-agent gallery list --state" in text
    assert "<6>" not in text


def test_a_pipe_gets_json_lines_and_the_summary(street: Path, tmp_path: Path):
    done = subprocess.run(
        command(street, tmp_path, "--json"), capture_output=True, text=True, timeout=60, check=True
    )
    assert {json.loads(line)["event"] for line in done.stderr.splitlines()} >= {"started", "first_frame"}
    assert json.loads(done.stdout)["dropped"] == {street.stem: 0}


def test_a_wrong_form_of_the_log_is_an_error():
    with pytest.raises(ConfigError, match="log_format"):
        load(Path(os.devnull), overrides(log_format="xml"))


def test_what_came_from_upstream_is_counted_or_missed():
    settings = Settings(sources=({"url": "deepstream:front", "size": (9, 9)},))
    (counted, *_) = summary_lines(replace(SUMMARY, crops=0, received=40), settings)
    assert "40 embeddings from upstream" in counted
    (_, missed) = summary_lines(replace(SUMMARY, crops=0, identities=0), settings)
    assert "no embedding was received" in missed
