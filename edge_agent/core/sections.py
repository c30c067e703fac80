"""How a section of the settings is declared."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


def about(default: T, description: str, **limits: Any) -> T:  # noqa: ANN401 - as `pydantic.Field`
    """Declare a key with its default, description and limits."""
    field: T = Field(default, description=description, **limits)
    return field


class Section(BaseModel):
    """Frozen model without unknown keys (nested models do not inherit this in pydantic)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)
