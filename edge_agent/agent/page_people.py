"""What the operator's page may ask about people: lists, pictures, evidence, pairs; it changes nothing.

Changes are commands, see `agent.command_handlers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from edge_agent.core.errors import InputError
from edge_agent.gallery.listing import Listing, Order
from edge_agent.gallery.suggestions import likeness

if TYPE_CHECKING:
    from edge_agent.agent.operations import Operations
    from edge_agent.agent.page_service import Answer, Operation
    from edge_agent.gallery.crop_rows import Crop
    from edge_agent.gallery.gallery import Gallery
    from edge_agent.gallery.rows import Identity

MOST_PEOPLE = 200
"""In one answer."""
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PeopleOperations:
    """The operations by name; `table` lists them."""

    gallery: Gallery
    changes: Operations
    """For suggestions, and what they compare with."""

    def table(self) -> dict[str, Operation]:
        """Return the operations."""
        return {
            "people": self.people,
            "person": self.person,
            "missing": self.missing,
            "pair": self.pair,
            "suggestions": self.suggestions,
            "crop": self.crop,
            "evidence": self.evidence,
        }

    def people(self, values: Values, _bytes: bytes) -> Answer:
        """Return a page of identities, and how many there are."""
        order = values.get("order", "seen")
        if order not in get_args(Order):
            raise InputError(f"order must be one of {', '.join(get_args(Order))}")
        offset, most = _whole(values, "offset", 0, 1 << 40), _whole(values, "most", 60, MOST_PEOPLE)
        found, count = Listing(self.gallery.file).page(_text(values, "text"), order, offset, most)
        return {"people": self._shown(found), "count": count, "keep_crops": self.gallery.crops.most}, b""

    def person(self, values: Values, _bytes: bytes) -> Answer:
        """Return one identity with contributions of tracks, pictures, and whom it is kept apart from."""
        person = self.gallery.get(_text(values, "person"))
        parts = Listing(self.gallery.file).contributions(person.number)
        apart = [self.gallery.get(number) for number in sorted(self.gallery.corrections.apart(person.number))]
        found = {
            "person": self._shown([person])[0],
            "contributions": [asdict(one) for one in parts],
            "crops": [_described(one) for one in self.gallery.crops.of(person.number)],
            "apart": self._shown(apart),
            "keep_crops": self.gallery.crops.most,
        }
        return found, b""

    def missing(self, values: Values, _bytes: bytes) -> Answer:
        """Return those of `people`, ids, who are not in the gallery."""
        asked = values.get("people")
        if not isinstance(asked, list):
            raise InputError("people must be a list of ids")
        return {"missing": [one for one in asked if not self._has(_text({"person": one}, "person"))]}, b""

    def _has(self, person: str) -> bool:
        try:
            self.gallery.get(person)
        except InputError:
            return False
        return True

    def pair(self, values: Values, _bytes: bytes) -> Answer:
        """Return two identities and how alike they are, by the score that suggestions have."""
        one, other = (self.gallery.get(_text(values, key)) for key in ("one", "other"))
        score = likeness(self.gallery, one.number, other.number)
        found = {
            "one": self._shown([one])[0],
            "other": self._shown([other])[0],
            "score": score,
            "threshold": self.changes.run(self.changes.threshold),
            "apart": other.number in self.gallery.corrections.apart(one.number),
        }
        return found, b""

    def suggestions(self, values: Values, _bytes: bytes) -> Answer:
        """Return pairs that are probably one person, best first."""
        pairs = self.changes.suggestions(_whole(values, "most", 20, MOST_PEOPLE))
        people = {one.number: one for pair in pairs for one in (pair.one, pair.other)}
        shown = {each["number"]: each for each in self._shown([*people.values()])}
        found = [
            {"one": shown[pair.one.number], "other": shown[pair.other.number], "score": pair.score}
            for pair in pairs
        ]
        return {"pairs": found, "threshold": self.changes.run(self.changes.threshold)}, b""

    def crop(self, values: Values, _bytes: bytes) -> Answer:
        """Return one picture as JPEG."""
        found = self.gallery.crops.get(_whole(values, "row", -1, 1 << 62))
        return _described(found), found.jpeg

    def evidence(self, values: Values, _bytes: bytes) -> Answer:
        """Return the pictures of a decided track, and those of the identity that it was compared with."""
        track = _whole(values, "track", -1, 1 << 62)
        shots = self.gallery.crops.evidence(_text(values, "session"), _text(values, "camera"), track)
        person = _text(values, "person")
        try:
            known: Identity | None = self.gallery.get(person) if person else None
        except InputError:  # forgotten meanwhile
            known = None
        found = {
            "track": [_described(one) for one in shots],
            "person": None if known is None else self._shown([known])[0],
            "keep_crops": self.gallery.crops.most,
        }
        return found, b""

    def _shown(self, people: Sequence[Identity]) -> list[dict[str, Any]]:
        crops = self.gallery.crops.listed([one.number for one in people]) if people else {}
        return [asdict(one) | {"crops": crops.get(one.number, [])} for one in people]


def _described(crop: Crop) -> dict[str, Any]:
    return {
        "row": crop.row,
        "origin": crop.origin,
        "camera": crop.camera,
        "time": crop.time,
        "quality": round(crop.quality, 3),
    }


def _text(values: Values, key: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str) or len(value) > 300:
        raise InputError(f"{key} must be a text of at most 300 characters")
    return value


def _whole(values: Values, key: str, default: int, most: int) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InputError(f"{key} must be a number from 0 to {most}")
    return value
