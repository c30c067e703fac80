"""A clock that does not jump: ages by running time, and a label of Unix seconds for people.

The wall clock of a device jumps. Without a battery it starts in 1970, or at the last shutdown, and is set by
NTP while the agent runs; a person or a fault may set it to anything. So nothing that cannot be undone is
decided by wall-clock times. `Clock` has three scales:

*Instants* (`now`, `ago`, `age`) are for every decision: how old is it, has it expired, which is older. They
are seconds of running time on an axis of this state folder: `CLOCK_BOOTTIME` within one boot (which counts
through a suspend, and through any restart of the agent), continued after a reboot. The time that the device
was off is known from the wall clock only. It counts once the clocks before and after it are confirmed and
their difference is plausible, and never otherwise. It is stored beside the axis, so stored instants are never
rewritten. Store instants, with `id`: an instant of another axis (a file that was copied here, a lost clock
file) means nothing, and is replaced by `now`.

*Moments* (`moment`) are the times of frames. They are Unix seconds, but continue by running time from the
start of this run, whatever the clock does, so that speeds and intervals are right. `current` turns them into
labels.

*Labels* (`label`) are for people, events and logs. They follow the wall clock, but not through a step that is
not plausible: from then on they continue by running time, until the clock returns or the step is accepted.
Acceptance changes labels only; it changes no age. A step is accepted at once when the kernel confirms it
(adjtimex, or the file of systemd-timesyncd) and had not confirmed the time before; when the clock was known
to be wrong before, and is not any more; and when it has stayed away for `ACCEPT_AFTER_S`.

::

    clock = Clock.open(state / CLOCK_FILE)
    created = clock.now()                            # store this, and clock.id
    if created <= clock.ago(max_age_s): ...          # at least max_age_s old
    event_time, uncertain = clock.label(), clock.uncertain

Only the agent calls `check` and `save`; other processes open the same file and get the same instants. Tests
pass a `TimeSource` of their own.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import threading
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import structlog

from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.core.files import read_json
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.system_time import SystemTime, TimeSource
from edge_agent.core.timing import duration

_log = structlog.get_logger(__name__)

CLOCK_FILE = "clock.json"
"""In the state folder."""
CLOCK_SET = 1_704_067_200.0
"""2024-01-01: a wall clock before this has never been set."""
TOLERANCE_S = 60.0
"""Labels follow steps up to this size; a larger one is not plausible while the agent runs."""
LONGEST_OFF_S = 366 * 86_400.0
"""A device that seems to have been off for longer has a wrong clock, as far as anyone can know."""
ACCEPT_AFTER_S = 3600.0
"""A step that stays away for this long is accepted, so that expiry does not pause for ever."""
SAVE_INTERVAL_S = 60.0
"""What a power cut takes from the running time at most; ages are then too small, never too great."""
_GAPS_KEPT = 500
"""Times off that are remembered; without the oldest, what is older still seems younger than it is."""
_AFTER_MARK_S = 0.001
"""What is stored after a reboot is younger than all before it."""
_LAST_LABEL = 2.5e11
"""Year 9892; the texts of events end with year 9999."""
_ID = re.compile("[0-9a-f]{16}")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """The last instant before a reboot, and its label, while the time off after it is not known yet."""

    instant: float
    label: float


@dataclass(frozen=True, slots=True)
class _Line:
    """What the file contains: one moment on all scales, from which the others follow.

    `began` is the first instant of this boot. `gaps` are the known times off: `(instant, seconds)`, rising;
    they make all that is not after `instant` older. `confirmed`: the labels of this boot are synchronised.
    `doubted`: a step was accepted that the kernel had not noticed, so its word counts when it changes.
    `provisional`: they continue those before the reboot, since the wall clock is not plausible. `stepped` is
    when the wall clock left the labels.
    """

    id: str
    boot: str
    running: float
    instant: float
    label: float
    began: float = 0.0
    confirmed: bool = False
    doubted: bool = False
    provisional: bool = False
    stepped: float | None = None
    mark: Mark | None = None
    gaps: tuple[tuple[float, float], ...] = ()

    @property
    def has_been_away(self) -> bool:
        """Whether the wall clock left the labels so long ago that expiry does not pause any more."""
        return self.stepped is not None and self.instant - self.stepped >= ACCEPT_AFTER_S

    def at(self, running: float) -> _Line:
        """Return the same line at another moment of this boot."""
        passed = max(0.0, running - self.running)
        return replace(
            self, running=self.running + passed, instant=self.instant + passed, label=self.label + passed
        )

    @staticmethod
    def parse(document: Any) -> _Line:  # noqa: ANN401 - JSON
        """Return the content of a file; ValueError, KeyError or TypeError when it is not one."""
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']!r}")
        mark = document["mark"]
        line = _Line(
            id=str(document["id"]),
            boot=str(document["boot"]),
            running=_number(document["running"]),
            instant=_number(document["instant"]),
            label=_number(document["label"]),
            began=_number(document["began"]),
            confirmed=bool(document["confirmed"]),
            doubted=bool(document["doubted"]),
            provisional=bool(document["provisional"]),
            stepped=None if document["stepped"] is None else _number(document["stepped"]),
            mark=None if mark is None else Mark(_number(mark["instant"]), _number(mark["label"])),
            gaps=tuple((_number(at), _number(seconds)) for at, seconds in document["gaps"]),
        )
        known = line.mark or Mark(0.0, 0.0)
        past = (line.began, line.stepped or 0.0, known.instant, *(at for at, _ in line.gaps))
        if not all(0.0 <= at <= line.instant for at in past) or list(line.gaps) != sorted(line.gaps):
            raise ValueError("instants in disorder")
        if not all(0.0 <= one < _LAST_LABEL for one in (line.running, line.instant, line.label, known.label)):
            raise ValueError("a time out of range")
        if not all(0 <= off <= LONGEST_OFF_S for _, off in line.gaps) or not _ID.fullmatch(line.id):
            raise ValueError("an id, or a time off, that this program does not write")
        return line


def _number(value: Any) -> float:  # noqa: ANN401 - JSON
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


@dataclass(frozen=True, slots=True)
class Relabelled:
    """The labels of this boot have changed by `step_s`.

    Those are of the instants from `since` on; they were `first` to `last` before.
    """

    step_s: float
    since: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class ClockState:
    """What is known about the wall clock, for the status and for people.

    Attributes:
        state: `confirmed`: synchronised; `unconfirmed`: nobody has confirmed it since the boot; `stepped`: it
            differs from the labels by an implausible step.
        time: the label of now, Unix seconds.
        step_s: how far the wall clock is ahead of it; 0.0 unless `stepped`.
        stepped_s: for how long; None unless `stepped`.
        paused: whether expiry pauses: `stepped`, and not for longer than `ACCEPT_AFTER_S`.
        off_unknown: whether the device was off before this boot for a time that is not known (yet).
    """

    state: Literal["confirmed", "unconfirmed", "stepped"]
    time: float
    step_s: float
    stepped_s: float | None
    paused: bool
    off_unknown: bool

    def __str__(self) -> str:
        if self.state == "confirmed":
            return "the system clock is synchronised"
        if self.time < CLOCK_SET:
            return "the system clock has not been set since the boot; ages are counted by running time"
        if self.state == "unconfirmed":
            return "the system clock is not synchronised; ages are counted by running time"
        way = "ahead of" if self.step_s > 0 else "behind"
        text = f"the system clock is {duration(abs(self.step_s))} {way} the time that has passed"
        if not self.paused:
            return text
        return (
            f"{text}; expiry pauses until the clock returns, is synchronised, or has stayed there for"
            f" {duration(ACCEPT_AFTER_S)}"
        )


class Clock:
    """The clock of a state folder; any thread may call. Without a file it lives as long as the object."""

    def __init__(self, system: TimeSource | None = None, *, path: Path | None = None) -> None:
        """Continue the axis of a file; start a new one where there is no path, or no usable file."""
        self._system = system or SystemTime()
        self._path = path
        self._lock = threading.Lock()
        self._saved = -math.inf
        known = None if path is None else _read(path)
        self.is_new = known is None
        """Whether no file has this axis yet."""
        wall = self._system.wall()
        new = _Line(secrets.token_hex(8), self._system.boot, self._system.running(), 0.0, wall)
        self._line = new if known is None else self._continued(known)
        self._first = self._line

    @classmethod
    def open(cls, path: Path, system: TimeSource | None = None) -> Clock:
        """Return the clock of a file, which is made when missing; a damaged one is replaced, and logged.

        A file that cannot be written is logged: this process then has a clock all the same.
        """
        clock = cls(system, path=Path(path))
        if clock.is_new:
            clock.save()
        return clock

    @classmethod
    def existing(cls, path: Path, system: TimeSource | None = None) -> Clock | None:
        """Return the clock of a file, for reading; None where there is none yet, or it is damaged."""
        clock = cls(system, path=Path(path))
        return None if clock.is_new else clock

    # --- instants -----------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Id of the axis: instants that were stored with another one mean nothing here."""
        return self._line.id

    def now(self) -> float:
        """Return the present instant: seconds of running time on this axis. It never falls."""
        line = self._line
        return line.instant + max(0.0, self._system.running() - line.running)

    def age(self, instant: float) -> float:
        """Return the seconds that have passed since an instant, known times off included; 0.0 in future."""
        line = self._line
        off = sum(seconds for at, seconds in line.gaps if at >= instant)
        return max(0.0, self.now() - instant + off)

    def ago(self, seconds: float) -> float:
        """Return the instant so long ago: what has an instant up to this is at least so old."""
        instant, left = self.now(), seconds
        for at, off in reversed(self._line.gaps):
            if left <= instant - at:
                break
            left -= instant - at
            instant = at
            if left <= off:
                return instant
            left -= off
        return instant - left

    # --- labels -------------------------------------------------------------------------------------------

    def label(self, instant: float | None = None) -> float:
        """Return an instant (now by default) as Unix seconds, for people."""
        line = self._line.at(self._system.running())
        return line.label if instant is None else line.label - self.age(instant)

    def moment(self) -> float:
        """Return the time for a frame that arrives now: Unix seconds that never jump in this run."""
        return self._first.label + self._system.running() - self._first.running

    def current(self, moment: float) -> float:
        """Return the label of a moment of this run; another time, as of recorded material, is unchanged."""
        if not self._first.label <= moment <= self.moment():
            return moment
        line, first = self._line, self._first
        return moment + (line.label - line.running) - (first.label - first.running)

    @property
    def uncertain(self) -> bool:
        """Whether the present label may be wrong: the wall clock is not synchronised, or has stepped."""
        return self.state().state != "confirmed"

    @property
    def paused(self) -> bool:
        """Whether expiry pauses, see `ClockState`."""
        return self.state().paused

    def state(self) -> ClockState:
        """Return what is known about the wall clock."""
        line = self._line.at(self._system.running())
        step = self._system.wall() - line.label
        stepped = abs(step) > TOLERANCE_S
        return ClockState(
            state="stepped" if stepped else "confirmed" if line.confirmed else "unconfirmed",
            time=line.label,
            step_s=step if stepped else 0.0,
            stepped_s=(line.instant - (line.stepped or line.instant)) if stepped else None,
            paused=stepped and not line.has_been_away,
            off_unknown=line.mark is not None,
        )

    # --- for the agent ------------------------------------------------------------------------------------

    def check(self) -> Relabelled | None:
        """Compare with the wall clock and the kernel; call it every few seconds or minutes.

        Returns how the labels have changed, when a step was accepted; only labels do, never ages.
        """
        with self._lock:
            before = self._line
            line, relabelled = self._checked(before.at(self._system.running()))
            self._line = line
            due = line.running - self._saved >= SAVE_INTERVAL_S
        facts = attrgetter("stepped", "confirmed", "provisional", "mark")
        if due or relabelled is not None or facts(line) != facts(before):
            self.save()
        return relabelled

    def save(self) -> None:
        """Write the file; a failure is logged."""
        if self._path is None:
            return
        with self._lock:
            line = self._line = self._line.at(self._system.running())
            self._saved = line.running
            try:
                write_json_atomic(self._path, {"version": _VERSION, **asdict(line)}, mode=0o600)
            except EdgeAgentError as problem:
                _log.warning("clock_not_saved", path=str(self._path), error=str(problem))

    # --- inner --------------------------------------------------------------------------------------------

    def _checked(self, line: _Line) -> tuple[_Line, Relabelled | None]:
        """Return the line as of this check, and how its labels have changed by a step."""
        wall = self._system.wall()
        step = wall - line.label
        synchronised = wall >= CLOCK_SET and self._system.synchronised()
        follows = replace(line, label=wall, stepped=None, provisional=False)
        relabelled = None
        if abs(step) <= TOLERANCE_S:
            line = follows
        elif _is_acceptable(line, wall, synchronised=synchronised):
            since = line.instant - line.began
            relabelled = Relabelled(step, line.began, line.label - since, line.label)
            line = replace(follows, confirmed=False, doubted=synchronised and line.confirmed)
            _log.info("clock_set", step=duration(abs(step)), ahead=step > 0, synchronised=synchronised)
        elif line.stepped is None:
            line = replace(line, stepped=line.instant)
        if not synchronised:
            line = replace(line, doubted=False)
        elif line.stepped is None and not line.doubted:
            line = _with_time_off(replace(line, confirmed=True))
        return line, relabelled

    def _continued(self, known: _Line) -> _Line:
        """Continue a stored line: in the same boot by running time, after a reboot from where it ended."""
        running, wall = self._system.running(), self._system.wall()
        if known.boot == self._system.boot != "" and running >= known.running:
            return known.at(running)
        # How long the device has run since is not known: in a container the clocks are those of the host.
        mark = known.mark
        if mark is None and known.confirmed and known.stepped is None:
            mark = Mark(known.instant, known.label)
        began = known.instant + _AFTER_MARK_S
        plausible = -TOLERANCE_S <= wall - known.label <= LONGEST_OFF_S
        return replace(
            known,
            boot=self._system.boot,
            running=running,
            instant=began,
            began=began,
            label=wall if plausible else known.label,
            confirmed=False,
            doubted=False,
            provisional=not plausible,
            stepped=None,
            mark=mark,
        )


def _read(path: Path) -> _Line | None:
    """Return what a file contains; None where there is none, or it is damaged."""
    if not os.path.lexists(path):
        return None
    try:
        return _Line.parse(read_json(path))
    except (InputError, KeyError, TypeError, ValueError) as problem:
        _log.warning("clock_forgotten", path=str(path), error=str(problem))
        return None


def _is_acceptable(line: _Line, wall: float, *, synchronised: bool) -> bool:
    """Whether labels may follow the wall clock, which has stepped. One that was never set is wrong."""
    if wall < CLOCK_SET:
        return False
    if (synchronised and not line.confirmed) or line.label < CLOCK_SET:
        return True
    if line.provisional and 0.0 <= wall - line.label <= LONGEST_OFF_S:
        return True
    return line.has_been_away


def _with_time_off(line: _Line) -> _Line:
    """Count the time that the device was off, now that both ends are confirmed, if it is plausible."""
    if line.mark is None:
        return line
    off = (line.label - line.mark.label) - (line.instant - line.mark.instant)
    gaps = line.gaps
    if 0.0 < off <= LONGEST_OFF_S:
        gaps = tuple(sorted((*gaps, (line.mark.instant, off))))[-_GAPS_KEPT:]
        _log.info("time_off_counted", off=duration(off))
    else:
        _log.warning("time_off_ignored", seconds=round(off))
    return replace(line, mark=None, gaps=gaps)
