"""Changes of people by an operator: one implementation for command line, MQTT commands and page.

WHO is a number, an id (also a former one), or a name. Every change has a line in the audit file, with who
requested it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from edge_agent.core.errors import InputError
from edge_agent.gallery import audit, erasure
from edge_agent.gallery.suggestions import Suggestion, suggestions
from edge_agent.identify.site import ThresholdPolicy

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.gallery.crop_rows import Crop
    from edge_agent.gallery.erasure import Removed
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.rows import Erased, Identity

T = TypeVar("T")
Who = int | str

MOST_SUGGESTIONS = 200
_BELOW = 0.1
"""How far below the threshold of a match a pair may be that is suggested."""


class Run(Protocol):
    """Runs a change of the gallery, e.g. on the driving thread of an agent."""

    def __call__(self, change: Callable[[], T], /) -> T: ...  # noqa: D102


def _here(change: Callable[[], T], /) -> T:
    return change()


@dataclass(frozen=True, slots=True)
class Operations:
    """Changes people of an open gallery, in this process or, next to a running agent, beside it.

    All methods raise InputError where there is no such person, and StorageError.
    """

    gallery: Gallery
    state: Path
    """Folder of the audit file."""
    by: str
    """Who requested the changes, for the audit file."""
    erase: Callable[[Callable[[], list[Erased]]], tuple[list[Erased], Removed | None]]
    """Erases people by a function, then their events and pictures; None where a running agent will do it."""
    threshold: Callable[[], float | None] = lambda: None
    """Returns the threshold of a match, as compared; None: not known."""
    together: Callable[[Collection[int]], Collection[tuple[int, int]]] = lambda _: ()
    """Returns pairs with some identities, lower number first, who are known to be two people."""
    run: Run = _here
    follow: Callable[[], None] = lambda: None
    """Lets open tracks follow the change, and publishes it; called in `run`."""

    def name(self, who: Who, name: str | None) -> Identity:
        """Name a person, who is then enrolled; None removes the name."""
        return self._change("name", lambda: self.gallery.rename(self._number(who), name))

    def merge(self, keep: Who, absorb: Who) -> Identity:
        """Combine two identities that are one person; `keep` stays."""
        return self._change("merge", lambda: self.gallery.merge(self._number(keep), self._number(absorb)))

    def split(self, who: Who, origin: str, name: str | None = None) -> Identity:
        """Make a new identity of what a track contributed to one; see `Corrections.split`."""
        return self._change("split", lambda: self.gallery.corrections.split(self._number(who), origin, name))

    def reject(self, one: Who, other: Who) -> tuple[Identity, Identity]:
        """Note that two identities are two people: they are never joined by a guess, nor suggested again."""

        def reject() -> tuple[Identity, Identity]:
            first, second = self.gallery.get(one), self.gallery.get(other)
            self.gallery.corrections.reject(first.number, second.number)
            return first, second

        return self._change("reject", reject)

    def keep(self, who: Who, ttl_s: float | None) -> Identity:
        """Give a person an own time to live in seconds; 0.0: for ever; None: as in the settings."""
        return self._change("keep", lambda: self.gallery.retention.set_ttl(self._number(who), ttl_s))

    def forget(self, people: Sequence[Who]) -> tuple[list[Erased], Removed | None]:
        """Erase people with their events and pictures; see `erasure.forget`."""

        def forget() -> list[Erased]:
            # Resolved here, on the thread that joins identities: an id may have become a former one by now.
            numbers = {self._number(who): None for who in people}
            return [erasure.forget(self.gallery, number) for number in numbers]

        return self._erase(forget)

    def forget_all(self) -> tuple[list[Erased], Removed | None]:
        """Erase everyone; the gallery then accepts another network."""
        return self._erase(lambda: erasure.forget_all(self.gallery))

    def suggestions(self, most: int = 20) -> list[Suggestion]:
        """Return pairs of identities that are probably one person, best first; changes nothing."""
        if not 1 <= most <= MOST_SUGGESTIONS:
            raise InputError(f"1 to {MOST_SUGGESTIONS} pairs can be suggested")
        threshold = self.run(self.threshold)
        floor = -1.0 if threshold is None else threshold - _BELOW
        found = suggestions(self.gallery, 2 * most, floor=floor)
        numbers = {one.number for pair in found for one in (pair.one, pair.other)}
        apart = self.run(lambda: self.together(numbers))
        return [pair for pair in found if (pair.one.number, pair.other.number) not in apart][:most]

    def crops(self, who: Who) -> list[Crop]:
        """Return the kept pictures of a person, best first."""
        return self.gallery.crops.of(self._number(who))

    def _number(self, who: Who) -> int:
        return self.gallery.get(who).number

    def _change(self, action: str, change: Callable[[], T]) -> T:
        done = self.run(lambda: self._followed(change))
        audit.record(self.state, action, self.by)
        return done

    def _followed(self, change: Callable[[], T]) -> T:
        done = change()
        self.follow()
        return done

    def _erase(self, change: Callable[[], list[Erased]]) -> tuple[list[Erased], Removed | None]:
        def erase() -> list[Erased]:
            erased = self.run(change)
            for one in erased:
                audit.record(self.state, "forget", self.by, exemplars=one.exemplars)
            return erased

        done = self.erase(erase)
        self.run(self.follow)  # the events of a person are erased before subscribers learn that they are gone
        return done


def operations_beside(settings: Settings, gallery: Gallery, by: str) -> Operations:
    """Return the operations of a process that is not the agent; the agent, if one runs, follows by itself."""
    from edge_agent.agent.databases import erase_at_rest
    from edge_agent.embed.prior import known_prior

    def threshold() -> float | None:
        gallery.cameras.start()
        prior = known_prior(gallery.space, settings.state_dir)
        scores = None if prior is None else prior.scores
        return compared_threshold(ThresholdPolicy(gallery, settings.identify, prior=scores), gallery)

    return Operations(
        gallery,
        settings.state_dir,
        by,
        erase=lambda erase: (erase(), erase_at_rest(settings, gallery)),
        threshold=threshold,
    )


def compared_threshold(thresholds: ThresholdPolicy, gallery: Gallery) -> float | None:
    """Return the threshold for two identities, by the camera of which least is subtracted."""
    return thresholds.current(gallery.cameras.least_bias(gallery.present())).value
