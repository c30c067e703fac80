"""Data of the messages about people as a whole: who is in view, and changes of identities.

See `core.events` for the other kinds; `docs/subscribers.md` states how they fit together.
"""

# ruff: noqa: RUF009 - `about` and its like return a dataclasses.field

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from edge_agent.core.fields import Time, about, value


def uncertain(consequence: str = "") -> Any:  # noqa: ANN401 - as `about`
    """Declare the mark of times that may be wrong; `deliver.local.Origin` sets it."""
    return about(
        f"True when the clock of the device was not synchronised, or had stepped{consequence}.", default=False
    )


@dataclass(frozen=True, slots=True)
class PresentPerson:
    """One track that is open: a person in view of a camera."""

    camera: str = about("Id of the camera.")
    track_id: int = about("Number of the track within its camera and session.", minimum=1)
    identity_id: str | None = about("Opaque id of the person; null when unknown.")
    number: int | None = about("The person's number in the local gallery; null when unknown.")
    name: str | None = about("Name that the operator gave the person; null without one.")
    since: Time = about("First time of this track.")
    score: float | None = about("Score of its last event; null without a comparison.", minimum=-1, maximum=1)
    event_id: str = about("Id of its last event.")


@dataclass(frozen=True, slots=True)
class PresentData:
    """Everyone in view of the cameras of a device after the event with the number `seq`. Retained."""

    seq: int = about("Number of the last event that is included; 0 before the first.", minimum=0)
    people: tuple[PresentPerson, ...] = about("The open tracks, in the order of their last events.")
    omitted: int = about(
        "Count of open tracks that are left out because the broker takes no larger message: those with the"
        " oldest events.",
        default=0,
        minimum=0,
    )
    time_uncertain: bool = uncertain()


@dataclass(frozen=True, slots=True)
class PersonData:
    """A change of an identity of the gallery, not of a track."""

    kind: Literal["merged", "forgotten", "named", "split"] = about(
        "merged: absorbed_id is the same person as identity_id, and is not used any more; forgotten: the"
        " identity does not exist any more; named: it has another name, or none; split: identity_id is new,"
        " of a track that was taken for the person of split_from_id."
    )
    identity_id: str = about("Opaque id of the person; for merged, the id that remains.")
    absorbed_id: str | None = value("For merged: the id that is not used any more.")
    split_from_id: str | None = value("For split: the id that the person had until now.")
    number: int | None = value("The person's number in the local gallery; null when forgotten.")
    name: str | None = value("Name of the person now; null without one.")
    reason: str = about(
        "For merged: operator, fused; for forgotten: request, expired, evicted; for named and split:"
        " operator.",
        default="",
    )
    time_uncertain: bool = uncertain()
