"""Encode and decode events as CloudEvents 1.0 JSON, and derive their JSON Schemas.

Encoding is on the hot path and uses the standard library. pydantic decodes and describes the classes; it is
imported at the first use, since most processes only encode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from edge_agent.core.commands import COMMAND_TYPES
from edge_agent.core.errors import InputError
from edge_agent.core.events import DATA_TYPES, NUMBERED, DeviceSummary, EngineData, Event
from edge_agent.core.fields import Time
from edge_agent.core.text import encodable_json
from edge_agent.core.timing import rfc3339

if TYPE_CHECKING:
    from pydantic import TypeAdapter

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

T = TypeVar("T")


def encode(event: Event) -> bytes:
    """Encode an event as one line of UTF-8 JSON; `seq` is last, and absent where it is not known.

    ValueError: the data contains a number that is not finite, which JSON cannot represent.
    """
    line = _ENCODER.encode(envelope(event))
    try:
        return line.encode()
    except UnicodeEncodeError:  # the name of a file, which need not be UTF-8
        return _ENCODER.encode(encodable_json(envelope(event))).encode()


def envelope(event: Event) -> dict[str, Any]:
    """Return the event as a JSON object."""
    document: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": rfc3339(event.time),
        "datacontenttype": "application/json",
        "dataschema": schema_urn(event.kind),
        "session": event.session,
    }
    if event.traceparent:
        document["traceparent"] = event.traceparent
    document["data"] = to_wire(event.data)
    if event.seq is not None:
        document["seq"] = event.seq
    return document


def to_wire(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Convert a data class to JSON values: times to text, tuples to lists."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        names, values, writers = _fields(type(value))
        found = dict(zip(names, values(value), strict=True))
        for name, write in writers:
            found[name] = write(found[name])
        return found
    if isinstance(value, Mapping):
        return {str(key): to_wire(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_wire(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} cannot be encoded as JSON")


class _Fields(NamedTuple):
    """Names of the fields of a data class, what reads all of them, and what converts those that need it."""

    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]
    writers: tuple[tuple[str, Callable[[Any], Any]], ...]


@lru_cache
def _fields(data_type: Any) -> _Fields:  # noqa: ANN401 - a dataclass
    hints = get_type_hints(data_type, include_extras=True)
    names = tuple(field.name for field in fields(data_type))
    writers = ((name, _writer(hints[name])) for name in names)
    several = attrgetter(*names) if len(names) > 1 else None
    return _Fields(
        names,
        several or (lambda value: tuple(getattr(value, name) for name in names)),
        tuple((name, write) for name, write in writers if write is not None),
    )


def _writer(hint: Any) -> Callable[[Any], Any] | None:  # noqa: ANN401 - a type
    """Return what converts values of a type; None where they are JSON values already."""
    if hint == Time:
        return rfc3339
    if hint == Time | None:
        return _written_time
    choices = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    if all(one in _SCALARS or get_origin(one) is Literal for one in choices):
        return None
    return _written if hint in _REPEATED else to_wire


_SCALARS = {str, int, float, bool, NoneType}
_REPEATED = {EngineData, DeviceSummary}
"""Classes whose values stay the same for many events."""


def _written_time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


@lru_cache(maxsize=16)
def _written(value: Any) -> Any:  # noqa: ANN401 - a dataclass, and JSON
    return to_wire(value)


def decode(payload: bytes | str) -> Event:
    """Decode one message; unknown keys are ignored.

    InputError: not JSON, not an event of this package, or a key is missing or has the wrong type.
    """
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"not an event of edge-agent: {problem}") from problem
    event = from_wire(Event, found)
    missing = {"source", "session"} - found.keys()  # optional only in events that were not published yet
    data_type = DATA_TYPES.get(event.type.partition(".")[2].partition(".")[0])
    if missing or data_type is None:
        reason = f"key {min(missing)!r} is missing" if missing else f"unknown type {event.type!r}"
        raise InputError(f"not an event of edge-agent: {reason}")
    return replace(event, data=from_wire(data_type, event.data))


def from_wire(data_type: type[T], found: object) -> T:
    """Build a data class from a JSON object; unknown keys are ignored.

    InputError: not an object, a key without default is missing, or a value has the wrong type.
    """
    from pydantic import ValidationError

    if not isinstance(found, dict):
        raise InputError(f"{data_type.__name__}: expected an object, got {type(found).__name__}")
    adapter: TypeAdapter[T] = _adapter(cast("Any", data_type))
    try:
        # Only the JSON mode of pydantic is strict about numbers and still turns lists into tuples.
        return adapter.validate_json(json.dumps(found), strict=True)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, (data_type.__name__, *first["loc"])))
        raise InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from problem


@lru_cache
def _adapter(data_type: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(data_type)


def schema_urn(kind: str) -> str:
    """Name of the schema of a kind of data, as `dataschema` and as `$id`."""
    return f"urn:edge-agent:schema:{kind}:1"


def data_schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the data of one kind."""
    return _schema(kind, DATA_TYPES[kind])


def envelope_schema(kind: str) -> dict[str, Any]:
    """JSON Schema of a whole message of one kind: the envelope and its data."""
    text = {"type": "string"}
    unique = "Globally unique; drop a message whose id you have already received."
    properties: dict[str, Any] = {
        "specversion": {"const": "1.0", "description": "Version of CloudEvents."},
        "id": text | {"minLength": 1, "description": unique},
        "source": text | {"pattern": r"^edge/v1/[a-z0-9_-]{1,64}/[a-z0-9_-]{1,64}$"},
        "type": text | {"pattern": rf"^edge\.{kind}(\.[a-z0-9_]+)?\.v1$"},
        "time": text | {"format": "date-time", "description": "When it happened, UTC."},
        "datacontenttype": {"const": "application/json"},
        "dataschema": {"const": schema_urn(kind)},
        "session": text | {"description": "One run of the agent."},
        "data": _class_schema(DATA_TYPES[kind]),
    }
    required = list(properties)
    if kind in NUMBERED:
        required.append("seq")
        number = "Counts the numbered events of the device over all sessions, without holes."
        trace = "W3C Trace Context: events of one frame share a trace; each has its own span."
        properties |= {
            "seq": {"type": "integer", "minimum": 1, "description": number},
            "traceparent": text | {"pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$", "description": trace},
        }
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "$id": f"urn:edge-agent:schema:{kind}-message:1",
        "title": f"Message with {DATA_TYPES[kind].__name__}",
        "type": "object",
        "properties": properties,
        "required": required,
    }


def command_schema(verb: str) -> dict[str, Any]:
    """JSON Schema of the payload of one command. Unlike in events, unknown keys are refused."""
    return _schema(f"command-{verb}", COMMAND_TYPES[verb]) | {"additionalProperties": False}


def _schema(name: str, data_type: type) -> dict[str, Any]:
    own = {"$schema": JSON_SCHEMA_DIALECT, "$id": schema_urn(name), "title": data_type.__name__}
    return own | _class_schema(data_type)


def _class_schema(data_type: type) -> dict[str, Any]:
    """JSON Schema of one data class; additional keys are allowed, since later versions add some."""
    schema = _adapter(data_type).json_schema()
    classes = schema.get("$defs", {})
    plain: dict[str, Any] = _plain(schema, classes)
    return {"description": data_type.__doc__, "required": [], **plain}


def _plain(node: Any, classes: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """A schema of pydantic in the published form.

    Nested classes are inlined, generated titles and defaults are removed, a choice of plain types is a list
    of types, and a tuple of equal entries has `items`.
    """
    if isinstance(node, list):
        return [_plain(entry, classes) for entry in node]
    if not isinstance(node, dict):
        return node
    found = (classes[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}) | node
    plain = {
        key: {name: _plain(one, classes) for name, one in entry.items()}
        if key == "properties"
        else _plain(entry, classes)
        for key, entry in found.items()
        if key not in {"$defs", "$ref", "title", "default"}
    }
    choices = plain.get("anyOf", [{}])
    if all({"type"} <= one.keys() <= {"type", "minLength", "maxLength"} for one in choices):
        del plain["anyOf"]
        for one in choices:
            plain |= one
        plain["type"] = [one["type"] for one in choices]
    if "prefixItems" in plain:
        plain["items"] = plain.pop("prefixItems")[0]
    return plain
