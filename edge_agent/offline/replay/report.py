"""The result of replays as JSON values, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_agent.core.manifest import write_atomic
from edge_agent.core.text import html_text
from edge_agent.offline import page
from edge_agent.offline.replay.compare import Difference, TrackChange
from edge_agent.offline.replay.recording import Recording
from edge_agent.offline.replay.run import Outcome


@dataclass(frozen=True, slots=True)
class Run:
    """A replay with other settings, and what it changes."""

    name: str
    difference: Difference


def document(recording: Recording, base: Outcome, runs: Sequence[Run]) -> dict[str, Any]:
    """Return all results as JSON values."""
    return {
        "recording": {
            "files": [str(file.path) for file in recording.files],
            "session": recording.header["session"],
            "from_start": bool(recording.header["cold"]),
            "erased": recording.erased,
            "frames": base.frames,
            "tracks": len(base.numbers),
            "decisions": len(base.recorded),
        },
        "repeated": {
            "identical": base.differs_at is None,
            "first_difference": base.differs_at,
            "decisions": len(base.decisions),
            "not_repeated": base.not_repeated,
        },
        "shadow": base.shadow,
        "runs": [{"settings": run.name, **asdict(run.difference)} for run in runs],
    }


def verdict(recording: Recording, base: Outcome) -> str:
    """Return one line on how exactly the recorded decisions were made again."""
    count = len(base.recorded)
    if base.differs_at is None:
        return f"with the recorded settings, all {count} decisions are the same, bit for bit"
    why = "another version, library or processor computes differently"
    if recording.erased:
        why = f"{recording.erased} erased from it"
    elif not recording.header["cold"]:
        why = "it begins within a run"
    return (
        f"with the recorded settings, decision {base.differs_at + 1} of {count} is not the recorded one"
        f" ({why}); compared are two replays"
    )


def shadow_lines(base: Outcome) -> list[str]:
    """Return a line on the second network that ran during the recording; none without one."""
    found = base.shadow
    if found is None:
        return []
    text = shadow_text(found)
    return [f"second network {text}; errors are crops nearest to somebody else than decided"]


def shadow_text(found: Mapping[str, Any]) -> str:
    """Return what a second network found, see `agent.shadow.Shadow.state`."""
    compared = found.get("compared") or 0
    text = f"{found.get('model')}: {found.get('embedded')} crops, {found.get('dropped')} dropped"
    if not compared:
        return f"{text}, none compared yet"
    share = 100 * float(found.get("disagreement") or 0)
    return (
        f"{text}; disagrees on {share:.1f} % of {compared} compared (errors: first {found.get('own_errors')},"
        f" second {found.get('errors')})"
    )


def summary_rows(base: Outcome, runs: Sequence[Run]) -> list[list[str]]:
    """Return a row for each run: settings, decisions, tracks that change, people, joined, split, expected."""
    if not runs:
        return []
    first = runs[0].difference
    rows = [
        [
            "as recorded",
            str(first.decisions[0]),
            "",
            str(first.people[0]),
            "",
            "",
            "",
            _rate(first.expected_false_matches[0]),
        ]
    ]
    for run in runs:
        one = run.difference
        rows.append(
            [
                run.name,
                str(one.decisions[1]),
                f"{len(one.changed)} of {len(base.numbers)}",
                str(one.people[1]),
                "; ".join("+".join(map(str, group)) for group in one.joined) or "-",
                "; ".join(f"{number} into {parts}" for number, parts in one.split.items()) or "-",
                f"-{one.lost} +{one.gained}",
                _rate(one.expected_false_matches[1]),
            ]
        )
    return rows


SUMMARY = (
    "settings",
    "decisions",
    "tracks that change",
    "people",
    "joined",
    "split",
    "identified",
    "expected false",
)
CHANGES = ("camera", "track", "from (UTC)", "to", "as recorded", "replayed", "score", "threshold")


def change_row(one: TrackChange) -> list[str]:
    """Return a track that changes as cells."""
    return [
        one.camera,
        str(one.track),
        _moment(one.first),
        _moment(one.last).rpartition(" ")[2],
        ", ".join(one.before) or "nothing",
        ", ".join(one.after) or "nothing",
        _number(one.score),
        _number(one.threshold),
    ]


def write_page(path: Path, recording: Recording, base: Outcome, runs: Sequence[Run]) -> None:
    """Write an HTML page; StorageError, or DiskFull, where that is not possible."""
    parts = [
        "<h1>Replay</h1>",
        page.facts(
            [
                ", ".join(file.path.name for file in recording.files),
                f"{base.frames} frames with tracks, {len(base.numbers)} tracks",
                verdict(recording, base),
                *shadow_lines(base),
                "expected false: tracks that would be taken for somebody else, if each showed somebody new",
            ]
        ),
        page.table(SUMMARY, summary_rows(base, runs)),
    ]
    for run in runs:
        changed = run.difference.changed
        parts += [f"<h2>{html_text(run.name)}</h2>"]
        parts += [
            page.table(CHANGES, map(change_row, changed)) if changed else page.facts(["nothing changes"])
        ]
    write_atomic(path, page.page("Replay", parts))


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
