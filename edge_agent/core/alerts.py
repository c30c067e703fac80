"""The kinds of alerts: the one list from which the schema and the table in docs/subscribers.md are made."""

from __future__ import annotations

from enum import Enum


class AlertKind(str, Enum):
    """Last part of an alert's topic, with its meaning and what ends it ("": nothing), in Markdown."""

    meaning: str
    ends: str

    def __new__(cls, kind: str, meaning: str, ends: str = "") -> AlertKind:
        """Make a member that is equal to its text."""
        member = str.__new__(cls, kind)
        member._value_ = kind
        member.meaning = meaning
        member.ends = ends
        return member

    def __str__(self) -> str:
        return str(self.value)

    CAMERA_LOST = "camera_lost", "a camera has been away for half a minute", "`active: false`"
    GOVERNOR = (
        "governor",
        "the load is lowered for heat; `details`: `step` of `steps`, `zone`, `celsius`, `limit_c`;"
        " `critical` at the last step",
        "step 0, `active: false`",
    )
    THERMAL_THROTTLE = (
        "thermal_throttle",
        "the board itself limits its clocks; `details.reasons`",
        "`active: false`",
    )
    STAGE_STUCK = (
        "stage_stuck",
        "a stage makes no progress; a restart may follow; `details.stages`",
        "`active: false`, or the restart",
    )
    RUN_CRASHED = "run_crashed", "the previous run was killed, stuck or failed; `details.how`"
    CRASH_LOOP = (
        "crash_loop",
        "several runs did so within minutes: starts are delayed",
        "`active: false`",
    )
    MEMORY_GROWTH = (
        "memory_growth",
        "the agent uses more memory than expected, or more every hour",
        "`active: false`",
    )
    CLOCK_STEPPED = (
        "clock_stepped",
        "the system clock differs from the time that has passed; `details`: `step_s`, `expiry_paused`",
        "`active: false`",
    )
    CALIBRATION_STALE = (
        "calibration_stale",
        "the active calibration is of another network and is not used; `details.calibration`",
    )
    ENGINE_REBUILT = (
        "engine_rebuilt",
        "no stored TensorRT engine fitted at this start, and one was built; `details.seconds`",
    )
    ENGINE_LOST = (
        "engine_lost",
        "the inference server gives no embeddings: people are tracked, not identified; `details`: `server`,"
        " `reason`",
        "`active: false`",
    )
    FLEET_DOWN = (
        "fleet_down",
        "the store of the fleet has been away for five minutes, or refuses this device: it works alone"
        " meanwhile ([fleet](fleet.md#when-the-server-is-away)); `details`: `site`, `store`, `link`,"
        " `reason`, `pending`",
        "`active: false`",
    )
    FLEET_CONFLICT = (
        "fleet_conflict",
        "two people of the site are probably one person but have two names, so that nothing joins them: merge"
        " them, or reject the pair ([fleet](fleet.md#conflicts)); `details`: `one_id`, `other_id`",
        "`active: false`: an operator has decided",
    )
    CLIENT_ID_CONFLICT = (
        "client_id_conflict",
        "another client has the id of this agent; each leaves the broker to the other for some minutes;"
        " `details.client_id`",
        "`active: false`",
    )
    OUTBOX_DAMAGED = "outbox_damaged", "a problem with the agent's disk"
    DELIVERY_REFUSED = (
        "delivery_refused",
        "the broker does not take a message ([delivery](delivery.md#what-a-broker-does-not-take));"
        " `details`: `topic`, `code`, `first_seq`",
    )


def alerts_table() -> str:
    """Return the table of all kinds, as in docs/subscribers.md."""
    rows = [f"| `{kind}` | {kind.meaning} | {kind.ends} |".replace("|  |", "| |") for kind in AlertKind]
    return "\n".join(["| kind | meaning | ends with |", "|---|---|---|", *rows]) + "\n"
