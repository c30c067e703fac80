"""Commands to the agent: one dataclass each, see `core.events` for how they are encoded."""

# ruff: noqa: RUF009 - `about` and its like return a dataclasses.field

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge_agent.core.fields import Time, about, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Fields of every command."""

    transaction: str = about(
        "Chosen by the sender, unique for every command; repeated in the result.",
        min_length=1,
        max_length=128,
    )
    issued: Time = about("When the command was sent; old commands are refused.")
    session: str | None = value(
        "The run that the command is for, from its status; another run refuses it. Needed only where the"
        " device's clock is ahead.",
        max_length=128,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolCommand(Command):
    """Enrol the person of a track or of a picture in the gallery."""

    name: str | None = value("Name of the person.", max_length=200)
    camera: str | None = value("Camera of the track.")
    track_id: int | None = value("A track that is present now.")
    crop: str | None = value("Picture of one person, JPEG or PNG, in base64.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NameCommand(Command):
    """Name a person."""

    identity_id: str = about("The person.", min_length=1)
    name: str | None = about("The new name; null removes it.", max_length=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCommand(Command):
    """Merge two identities of one person."""

    identity_id: str = about("The identity that remains.", min_length=1)
    absorbed_id: str = about("The identity that is merged into it.", min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCommand(Command):
    """Make a new person of what one track contributed to another."""

    identity_id: str = about("The person of whom it was taken to be.", min_length=1)
    origin: str = about(
        "The track: `<session>:<camera>:<track_id>` of one of its events, or as `gallery show` lists it.",
        min_length=1,
        max_length=256,
    )
    name: str | None = value("Name of the new person.", max_length=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectCommand(Command):
    """Note that two identities are two people, so that nobody joins or suggests them again."""

    identity_id: str = about("One person.", min_length=1)
    other_id: str = about("The other person.", min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepCommand(Command):
    """Set how long one person is kept, regardless of the settings."""

    identity_id: str = about("The person.", min_length=1)
    keep: Literal["forever", "hours", "as-others"] = about(
        "forever: never erased automatically; hours: `hours` after the last sighting; as-others: by the"
        " settings."
    )
    hours: float | None = value("For hours: 0.001 to 8,760,000.", "h")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestionsCommand(Command):
    """Return pairs of identities that are probably one person, best first."""

    most: int = about("Greatest number of pairs.", default=20, minimum=1, maximum=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetCommand(Command):
    """Erase a person from gallery, outbox and crop spool."""

    identity_id: str = about("The person.", min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadCommand(Command):
    """Read the settings again and apply those that may change while running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsCommand(Command):
    """Return counters of gallery and delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalibrateCommand(Command):
    """Discard the scores learned at this site and learn the threshold again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdCommand(Command):
    """Set the threshold of a match by hand, for the network that runs; `identify.threshold` prevails."""

    threshold: float | None = about(
        "Least cosine of raw embeddings; null: by the rules again.", minimum=-1, maximum=1
    )


COMMAND_TYPES: Mapping[str, type[Command]] = types.MappingProxyType(
    {
        "enrol": EnrolCommand,
        "name": NameCommand,
        "merge": MergeCommand,
        "split": SplitCommand,
        "reject": RejectCommand,
        "keep": KeepCommand,
        "suggestions": SuggestionsCommand,
        "forget": ForgetCommand,
        "reload": ReloadCommand,
        "stats": StatsCommand,
        "recalibrate": RecalibrateCommand,
        "threshold": ThresholdCommand,
    }
)
"""Class of each command, by the last part of its topic."""
