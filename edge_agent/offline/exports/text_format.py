"""Protobuf's text format, in which Triton and nvinferserver have their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """A number or the name of an enumeration, which is written without quotes."""

    __slots__ = ()


def text_format(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a message; texts must be printable ASCII."""
    for name, value in fields.items():
        several = isinstance(value, list) and value and isinstance(value[0], Mapping)
        for one in value if several else [value]:
            if isinstance(one, Mapping):
                yield f"{name} {{"
                yield from (f"  {line}" for line in text_format(one))
                yield "}"
            elif isinstance(one, list):
                yield f"{name}: [ {', '.join(map(_scalar, one))} ]"
            else:
                yield f"{name}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
