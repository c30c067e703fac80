"""Declaration of the fields of event data: JSON Schema, Prometheus metric and Home Assistant entity.

The declaration is the metadata of a dataclass field, so the classes need nothing but the standard library.
pydantic reads `description` and `json_schema_extra` from it (see `core.codec`).
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from edge_agent.core.timing import parse_time

if TYPE_CHECKING:
    from pydantic_core import CoreSchema


class UnixTime:
    """Marks Unix seconds that are RFC 3339 text in JSON."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(parse_time, core_schema.str_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: object, _handler: object) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


Time = Annotated[float, UnixTime]


@dataclass(frozen=True, slots=True)
class Metric:
    """Prometheus metric of a field; its help text is the description of the field."""

    name: str  # without the prefix `edge_agent_`
    label: str | None = None
    """Label for the keys of a mapping (or the entries of a tuple, each with the value 1)."""
    counter: bool = False  # a counter, whose samples get the suffix `_total`; else a gauge


@dataclass(frozen=True, slots=True)
class Entity:
    """Home Assistant entity of a field. A mapping has one entity for each of its entries, named by the entry.

    `component` is its key in the discovery message (for a mapping, the prefix of the keys). A `problem` is a
    binary sensor: true, or a list with entries, is a problem. `icon` is one of Material Design.
    """

    component: str
    name: str = ""
    icon: str | None = None
    diagnostic: bool = True
    problem: bool = False


def about(
    description: str,
    unit: str | None = None,
    metric: str | None = None,
    *,
    label: str | None = None,
    counter: bool = False,
    default: Any = MISSING,  # noqa: ANN401 - as `dataclasses.field`
    min_length: int | None = None,
    max_length: int | None = None,
    entity: Entity | None = None,
    **schema: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Declare a dataclass field with its default, or a function that makes the default.

    `metric`, `label` and `counter` declare its Prometheus metric, see `Metric`. Decoding enforces the lengths
    of a text, and none of the further keywords of the JSON Schema (`schema`).
    """
    metadata = {
        "description": description,
        "min_length": min_length,
        "max_length": max_length,
        "json_schema_extra": schema if unit is None else {"unit": unit, **schema},
        "metric": None if metric is None else Metric(metric, label, counter),
        "entity": entity,
    }
    made = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata=metadata)


value = partial(about, default=None)
"""Declare a field that is null while its value is unknown."""

entries = partial(about, default=dict)
"""Declare a field with values by name; unknown values have no entry."""
