"""What the schema is made of: strict, frozen mappings, types with ranges, and two marks.

`SIZE` keys may be set by a scale; `FREE` keys do not change what a stage computes, so changing them does not
invalidate a finished stage.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

SLUG = r"^[a-z0-9][a-z0-9_-]*$"


class Mark:
    """A word attached to a field's annotation; see the module docstring."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


SIZE = Mark("SIZE")
FREE = Mark("FREE")


def as_tuple(value: object) -> object:
    """YAML lists become tuples, so that the recipe is hashable and frozen all the way down."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else as_tuple(value)


Slug = Annotated[str, Field(pattern=SLUG, max_length=40)]
Count = Annotated[int, Field(gt=0, le=10**9)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=5)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Names = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_many),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class Node(BaseModel):
    """A mapping in the YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)  # fmt: skip


def marked(model: type[BaseModel], mark: Mark) -> frozenset[str]:
    """The fields of a model that carry the mark."""
    return frozenset(name for name, field in model.model_fields.items() if mark in field.metadata)
