"""What the commands of `edge-agent gallery` share: opening, operations, and how people are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument

if TYPE_CHECKING:
    from edge_agent.agent.operations import Operations
    from edge_agent.core.clock import Clock
    from edge_agent.core.config import Settings
    from edge_agent.gallery import Gallery, Identity

Who = Annotated[str, Argument(metavar="WHO", help="Number, id or name.")]
BY = "command line"
"""Who requested a change, in the audit file."""


def open_existing(settings: Settings) -> Gallery:
    """Return the gallery of the state folder, not yet entered; StorageError where there is none."""
    from edge_agent.core.encryption import database_key
    from edge_agent.gallery.gallery import GALLERY_FILE, Gallery

    path, key = settings.state_dir / GALLERY_FILE, database_key(settings.storage)
    return Gallery.existing(path, key=key, clock=clock_of(settings))


def clock_of(settings: Settings) -> Clock | None:
    """Return the clock of the state folder; None where it has none yet, or it is damaged."""
    from edge_agent.core.clock import CLOCK_FILE, Clock

    return Clock.existing(settings.state_dir / CLOCK_FILE)


def operations_on(settings: Settings, gallery: Gallery) -> Operations:
    """Return the operations of the command line on an entered gallery."""
    from edge_agent.agent.operations import operations_beside

    return operations_beside(settings, gallery, BY)


def called(person: Identity) -> str:
    """Return how a person is named in a sentence."""
    return f"{person.number}" if person.name is None else f"{person.number} ({person.name})"
