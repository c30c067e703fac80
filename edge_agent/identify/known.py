"""The gallery and the state that the parts of the decision share."""

# ruff: noqa: D102  the methods are documented in `edge_agent.gallery.Gallery`

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import InputError
from edge_agent.identify.near import Searchable
from edge_agent.identify.threshold import FactStore, ThresholdPolicy

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings
    from edge_agent.identify.links import Covisibility
    from edge_agent.identify.tracks import TrackTable

__all__ = ["KnownIdentities", "KnownIdentity", "Shared"]

Vector = NDArray[np.float32]


class KnownIdentity(Protocol):
    """The properties of an identity that the decision uses; see `edge_agent.gallery.rows.Identity`."""

    @property
    def number(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def kind(self) -> str: ...


class KnownIdentities(Searchable, Protocol):
    """The methods of `edge_agent.gallery.Gallery` that the decision uses."""

    def enrol(
        self, vectors: Vector, qualities: Vector, *, origin: str, camera: str, time: float
    ) -> KnownIdentity: ...
    def add_exemplars(
        self, number: int, vectors: Vector, qualities: Vector, *, origin: str, camera: str, time: float
    ) -> int: ...
    def remove_origin(self, number: int, origin: str) -> int: ...
    def exemplars(self, number: int) -> tuple[Vector, Vector, tuple[str, ...]]: ...
    def exclusive(self) -> AbstractContextManager[None]: ...
    def present(self, numbers: set[int]) -> set[int]: ...
    def enrolled(self, numbers: list[int]) -> set[int]: ...
    def touch(self, number: int, time: float) -> None: ...
    def merge(self, keep: int, absorb: int) -> KnownIdentity: ...
    def rename(self, number: int, name: str | None) -> KnownIdentity: ...
    def get(self, key: int | str) -> KnownIdentity: ...
    @property
    def facts(self) -> FactStore: ...


@dataclass(slots=True)
class Shared:
    """What the parts of the decision work on.

    Attributes:
        gallery: the identities, open.
        settings: limits of the decision; a reload replaces them.
        tracks: one record per track.
        links: which tracks are certainly different people.
        thresholds: the match threshold.
    """

    gallery: KnownIdentities
    settings: IdentifySettings
    tracks: TrackTable
    links: Covisibility
    thresholds: ThresholdPolicy

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings of all parts."""
        self.settings = self.tracks.settings = settings
        self.links.needed = settings.covisible_frames
        self.thresholds.reload(settings)

    def known(self, number: int | None) -> KnownIdentity | None:
        """Return an identity; None where it is unknown or was erased meanwhile."""
        if number is None:
            return None
        try:
            return self.gallery.get(number)
        except InputError:
            return None

    def seen_with(self, number: int) -> set[int]:
        """Return the identities that were ever seen together with this one."""
        keys = {rival for key in self.tracks.holders(number) for rival in self.links.rivals(key)}
        return self.tracks.numbers(keys)
