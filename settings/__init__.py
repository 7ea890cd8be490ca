"""What settings are made of: strict, frozen mappings, types with ranges, and marks.

Each component declares its settings once, in a `settings.py` of its own, with default, unit, range and source; recipes
inherit or embed them, and functions take them whole. `SIZE` keys may be set by a scale; `FREE` keys do not change what
a stage computes, so changing them does not invalidate a finished stage, and `BY_EFFECT` keys count in a fingerprint by
what they do to that stage (orchestra/run/fingerprint.py), not by what is written. `Refers` says what a name stands for:
it is looked up before anything runs, and what it names takes part in a stage's fingerprint.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    create_model,
)

SLUG = r"^[a-z0-9][a-z0-9_-]*$"


class Mark:
    """A word attached to a field's annotation; see the module docstring."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


SIZE = Mark("SIZE")
FREE = Mark("FREE")
BY_EFFECT = Mark("BY_EFFECT")


class Refers(Mark):
    """The value names something outside the settings.

    Args:
        to: a `model` (Hub id, folder, shipped), `problems` (a source of them), a `file`, an `adapter`'s folder, or an
            earlier stage that gives a `policy`, `traces` or an `evaluation`.
        also: words with a meaning of their own there.
        file: instead of a stage, a .jsonl file may be named.
        keys: of a mapping, its keys are the names and not its values.
    """

    def __init__(
        self,
        to: Literal["model", "problems", "file", "adapter", "policy", "traces", "evaluation"],
        *,
        also: tuple[str, ...] = (),
        file: bool = False,
        keys: bool = False,
    ) -> None:
        super().__init__(f"Refers({to})")
        self.to, self.also, self.file, self.keys = to, also, file, keys

    @property
    def to_stage(self) -> bool:
        """Whether an earlier stage is named."""
        return self.to in ("policy", "traces", "evaluation")

    def names_in(self, value: object) -> tuple[tuple[tuple[str, ...], object], ...]:
        """(further keys, name) of what stands for names in a value: the value itself, the items of a list, the keys of
        a mapping or its values. A number, where one may stand instead, names nothing."""
        if isinstance(value, int):
            return ()
        if isinstance(value, Mapping) and not self.keys:
            return tuple(((str(key),), item) for key, item in value.items())
        return tuple(((), item) for item in (value if isinstance(value, list | tuple | Mapping) else (value,)))

    def renamed(self, value: object, rename: Callable[[object], object]) -> object:
        """The same value with other names."""
        if isinstance(value, Mapping):
            return {rename(k) if self.keys else k: v if self.keys else rename(v) for k, v in value.items()}
        return [rename(item) for item in value] if isinstance(value, list | tuple) else rename(value)


class FrozenDict(dict):
    """A mapping that is a value, as settings are: it has a hash, in which the order of its keys has no part."""

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return FrozenDict, (dict(self),)

    def _unchanged(self, *args: object, **kwargs: object) -> None:
        raise TypeError("settings do not change")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _unchanged


def as_tuple(value: object) -> object:
    """YAML lists become tuples, so that settings are hashable and frozen all the way down."""
    return tuple(value) if isinstance(value, list) else value


def as_names(value: object) -> object:
    """The same of a setting that takes one name or several."""
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
    BeforeValidator(as_names),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class FrozenSequence(FrozenDict):
    """The same where the order of the keys counts."""

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return FrozenSequence, (dict(self),)


Sources = Annotated[dict[Slug, Text], Field(min_length=1), AfterValidator(FrozenSequence)]
"""Several of them, each under a name; the first one comes first."""
Shares = Annotated[dict[Text, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1), AfterValidator(FrozenDict)]
"""Of several sources, by name; only their ratios count."""


def by_form(names: object, mapping: object) -> object:
    """A type of settings that are written in either of two forms; faults are those of the form that was meant."""
    forms = Annotated[names, Tag("[names]")] | Annotated[mapping, Tag("[mapping]")]
    return Annotated[forms, Discriminator(lambda value: "[mapping]" if isinstance(value, Mapping) else "[names]")]


def _number_or_name(value: object) -> str:
    return "[number]" if isinstance(value, int | float) else "[name]"


CountOrName = Annotated[
    Annotated[Count, Tag("[number]")] | Annotated[Text, Tag("[name]")], Discriminator(_number_or_name)
]
"""So many of something, or the name of something else; faults are those of the form that was meant."""


class Node(BaseModel):
    """A mapping in the YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)  # fmt: skip

    def overridden_by(self, other: Node) -> Self:
        """These settings, with those that `other` has under the same names and that are not None."""
        own = {name: getattr(other, name, None) for name in type(self).model_fields}
        return self.model_copy(update={name: value for name, value in own.items() if value is not None})


def near(word: object, options: Iterable[str]) -> str:
    """`"; did you mean 'explore'?"` when one of the options is close to the word, else nothing."""
    found = difflib.get_close_matches(str(word)[:200], list(options), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def marked(model: type[BaseModel], mark: Mark) -> frozenset[str]:
    """The fields of a model that carry the mark."""
    return frozenset(name for name, field in model.model_fields.items() if mark in field.metadata)


def uncounted(model: type[BaseModel]) -> frozenset[str]:
    """The fields of a model that are not in a fingerprint as they are written."""
    return marked(model, FREE) | marked(model, BY_EFFECT)


def reference_of(model: type[BaseModel], name: str) -> Refers | None:
    """What this field's value refers to, if anything."""
    field = model.model_fields.get(name)
    return next((mark for mark in field.metadata if isinstance(mark, Refers)), None) if field is not None else None


def or_false(model: type[Node]) -> object:
    """A type of settings that may be written as `false` instead, which leaves out what they are of."""
    forms = Annotated[model, Tag("[mapping]")] | Annotated[Literal[False], Tag("[false]")]
    return Annotated[forms, Discriminator(lambda value: "[false]" if value is False else "[mapping]")]


def node_in(annotation: object) -> type[BaseModel] | None:
    """The class of the mapping that a field with this annotation holds, if it holds one."""
    # a form of several has a tag around it
    options = (getattr(one, "__origin__", one) for one in (annotation, *get_args(annotation)))
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def optional(model: type[Node], *names: str, otherwise: str) -> type[Node]:
    """A model with these fields of another, each of which may be None: an override without a second declaration.

    Args:
        otherwise: what None means, a sentence for the field's description.
    """
    fields = {}
    for name in names:
        field = model.model_fields[name]
        marks = [part for part in field.metadata if isinstance(part, Mark)]
        limits = [part for part in field.metadata if part not in marks]
        kind = Annotated[field.annotation, *limits] if limits else field.annotation
        description = f"{field.description} {otherwise}"
        fields[name] = (Annotated[kind | None, Field(description=description), *marks], None)
    return create_model(f"Own{model.__name__}", __base__=Node, **fields)
