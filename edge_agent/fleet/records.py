"""What devices and the store of a fleet exchange.

The store orders everything: each change of a site has a version, and versions follow the order of commits. A
device sends the state of what changed (a repeat changes nothing), and reads pages since its mark. Wall
clocks of devices are never compared: they send ages, and the store returns times of its own clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.gallery.rows import Kind

Vectors = NDArray[np.float32]

MOST_SHARED = 4
"""Exemplars of one person that a device shares, the most diverse; see `gallery.exemplars.diverse_rows`."""
MOST_CHANGES = 200
"""Changed people in one `Push`."""
MOST_CANDIDATES = 5
"""People in an `Answer`."""

Reason = Literal["request", "expired"]
"""Why a person was erased at the site: on request, or not seen by any device for the time to live."""


@dataclass(frozen=True, slots=True)
class SharedExemplar:
    """One embedding `(D,)` of length 1, raw, with the view of its camera (see `gallery.means`)."""

    camera: str
    epoch: int
    quality: float
    vector: Vectors


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that the last writer sets, in the order of the store: a name, or a time to live."""

    value: str | float | None


@dataclass(frozen=True, slots=True)
class PersonChange:
    """The state of one person on a device, to be merged into that of the site.

    Attributes:
        id: its id on the device; `former` are the ids of people that were merged into it.
        kind: `enrolled` prevails over `auto`.
        name, ttl_s: None where the device did not change it since it last sent it.
        first_age_s, last_age_s: seconds since the first and the last sighting by this device.
        camera: where it was seen last by this device; "" without a camera.
        exemplars: everything that this device shares of the person, instead of what it shared before; None:
            unchanged.
    """

    id: str
    former: tuple[str, ...]
    kind: Kind
    name: Setting | None
    ttl_s: Setting | None
    first_age_s: float
    last_age_s: float
    camera: str
    exemplars: tuple[SharedExemplar, ...] | None


@dataclass(frozen=True, slots=True)
class CameraMean:
    """Number of people and the sum of their votes `(D,)` for one view of a camera, see `gallery.means`."""

    device: str
    camera: str
    epoch: int
    people: float
    total: NDArray[np.float64]

    def fits(self, dimension: int) -> bool:
        """Whether it can be a mean of embeddings of this length, whatever device made it."""
        return (
            self.total.shape == (dimension,)
            and bool(np.isfinite(self.total).all())
            and 0 <= self.people < math.inf
        )


@dataclass(frozen=True, slots=True)
class Apart:
    """Two people who are certainly not one, the smaller id first."""

    one: str
    other: str
    reason: str


@dataclass(frozen=True, slots=True)
class Push:
    """Changes of a device; applied in one transaction. A repetition changes nothing."""

    people: tuple[PersonChange, ...] = ()
    forgotten: tuple[tuple[str, Reason], ...] = ()
    apart: tuple[Apart, ...] = ()
    means: tuple[CameraMean, ...] = ()


@dataclass(frozen=True, slots=True)
class PushResult:
    """What the store answers to a `Push`.

    Attributes:
        version: of the change at the site, the former one if nothing changed; the pages up to it contain its
            result.
        forgotten: ids of people in the push who are erased at the site: the device erases them.
        renamed: names that the site gave instead, by id, since another person has the wanted one.
        kept: ids in the push that expired on the device, but not at the site: others saw the person later.
        exact: the device had applied the whole site, and the site now has what the device has: there is
            nothing new for it in the pages up to `version`.
    """

    version: int
    forgotten: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True, slots=True)
class SitePerson:
    """One id of the site.

    Attributes:
        created: place in the order in which ids became known, unique, a version of the site; of people who
            are one, the oldest id stays.
        root: the id of the person, which is another one for an id that was merged, and which then has no
            values of its own.
        kind, name, ttl_s, first_seen, last_seen, device, camera: of a root; times are Unix seconds of the
            store's clock; `device` and `camera` are where the person was seen last.
        forgotten: why the person was erased; None: not erased. Nothing but the id is left, which is its own
            root; `first_seen` and `last_seen` are when it was erased.
        version: of the latest change of this row.
        named, ttl_set: after which version the name and the time to live were set, for the order of writers.
    """

    id: str
    created: int
    root: str
    kind: Kind
    name: str | None
    ttl_s: float | None
    first_seen: float
    last_seen: float
    device: str
    camera: str
    forgotten: Reason | None
    version: int
    named: int = 0
    ttl_set: int = 0


@dataclass(frozen=True, slots=True)
class Contribution:
    """All exemplars of one id that one device shares; none: it shares none any more."""

    id: str
    device: str
    exemplars: tuple[SharedExemplar, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What changed at the site after a mark, up to and including the version `upto`.

    All of one version is in one page. `people` contains besides, as they are now, the rows of the ids that
    the contributions and pairs name, and all roots: a page refers to nobody who is in a later one.

    Attributes:
        people: by rising version; roots stand in no particular order with what was merged into them.
        contributions: as they are now; those without exemplars have ended.
        version: of the site when the page was read; `upto` is smaller where more pages follow.
        now: time of the store's clock.
    """

    upto: int
    version: int
    now: float
    people: tuple[SitePerson, ...]
    contributions: tuple[Contribution, ...]
    apart: tuple[Apart, ...]
    means: tuple[CameraMean, ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the store answers to a device that connects.

    Attributes:
        version: of the site.
        horizon: erased people up to this version are not known any more: a device whose mark is lower takes
            a full copy and erases what the site does not have.
        known: whether the latest receipt of the device is the one that the store has, or neither has one.
            Otherwise one of the two was restored from an older copy: the device takes a full copy and sends
            everything again.
        confirmed: mark of the device that the store has. If `known` is false, a smaller one than the device's
            means that the store was restored: nothing is erased for being absent. A greater one means that
            the device was: then the horizon decides.
        people: number of people of the site.
        now: time of the store's clock.
    """

    version: int
    horizon: int
    known: bool
    confirmed: int
    people: int
    now: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A person of the site who may be the one asked about, with all exemplars of all devices."""

    person: SitePerson
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The nearest people of the site to some evidence, best first by raw cosine.

    `means` are those of all views in the candidates; `people` is the number of people of the site, for the
    threshold of this search; `now` is the time of the store's clock.
    """

    candidates: tuple[Candidate, ...]
    means: tuple[CameraMean, ...]
    people: int
    now: float


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device as the store knows it: the version up to which it has applied everything, when it was seen."""

    device: str
    mark: int
    seen: float
    left: bool


@dataclass(frozen=True, slots=True)
class SiteState:
    """The site for `status`: sizes, order, schema, and problems that need an operator."""

    site: str
    space: str
    dimension: int
    schema: int
    version: int
    horizon: int
    now: float
    people: int
    exemplars: int
    tombstones: int
    ttl_s: float | None
    """Times to live of people at this site, by kind; None: for ever."""
    enrolled_ttl_s: float | None
    conflicts: tuple[tuple[str, str], ...]
    """Pairs of ids that are probably one person but have two names."""
    devices: tuple[DeviceState, ...]
    indexed: bool | None = None
    """Whether questions use an index; None: the site does not need one. `fleet init` builds it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two people of the site, smaller id first."""

    one: str
    other: str
