"""Arms and seeds: the same recipe with named differences, each under several training seeds.

A recipe file may say, besides the recipe itself,

    extends: 40d                # another recipe, of which this file says only what is different
    seeds: [1, 2, 3]            # or 3
    arms:
      self: {}                  # the recipe as it stands
      human:
        model: {lora: {rank: 8}}
        stages:
          imitate: {data: human.jsonl}                                      # other keys of a stage
          polish: null                                                      # without it
          look: {kind: evaluate, samples: 8, after: imitate}                # one more

An overlay is written over the recipe's own text, before a scale and the command line's `--set` are; what comes out is
an ordinary recipe, and checked as such.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from orchestra.config.faults import Fault, brief
from orchestra.config.yamlfile import line_of, shown
from settings import SLUG, Node, Slug, Text, near

Where = tuple[str | int, ...]
Origins = dict[Where, str]
POSITION = ("after", "before")
MAX_SEEDS = 1000


def as_seeds(value: object) -> object:
    """`3` is 1, 2, 3."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 < value <= MAX_SEEDS:
            raise PydanticCustomError("rule", f"{{value}}: from 1 to {MAX_SEEDS}, or a list of seeds", {"value": value})
        return tuple(range(1, value + 1))
    return tuple(value) if isinstance(value, list) else value


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...],
    BeforeValidator(as_seeds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_SEEDS},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "uniqueItems": True},
            ]
        }
    ),
]


class Figure(Node):
    """A number that others have reported."""

    what: Text
    """Of what, in their words."""
    value: float
    """As they give it."""
    arm: Text | None = None
    """Which of this recipe's arms it belongs to. None: to none, or to all."""


class Reported(Node):
    """What others have reported of this experiment, shown beside what is measured here."""

    source: Text
    """Where it stands."""
    figures: Annotated[tuple[Figure, ...], BeforeValidator(lambda value: tuple(value) if value else ())] = ()
    """Their numbers."""


class ExperimentKeys(Node):
    """What a recipe file may say besides the recipe."""

    extends: Text | None = None
    """Another recipe, by name or path, over which this file is written; its arms and seeds are not taken over."""
    seeds: Seeds = ()
    """Training seeds, or how many (3 is 1, 2, 3). None: the recipe's `seed` alone."""
    arms: Annotated[
        dict[Slug, Any],
        WithJsonSchema(
            {
                "type": "object",
                "propertyNames": {"pattern": SLUG, "maxLength": 40},
                "additionalProperties": {"anyOf": [{"type": "object"}, {"type": "null"}]},
            }
        ),
    ] = Field(default_factory=dict)
    """Named differences: keys of the recipe, and of its stages by name (null takes a stage out, `kind` and `after` or
    `before` put one in; where no other is left there is no place to say). `{}` is the recipe as it stands."""
    reported: Reported | None = None
    """Others' numbers."""

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise PydanticCustomError(
                "rule", "{seed} is there twice; the second run would be the first", {"seed": twice[0]}
            )
        return seeds


@dataclass
class Overlaid:
    """A raw recipe with an overlay written over it.

    Fields:
        raw: of its own, all the way down; origins: where what was written comes from; faults: of the overlay itself.
        places: where the recipe's stages stand now; None: where they stood.
    """

    raw: dict[str, Any]
    origins: Origins
    faults: list[Fault]
    places: Mapping[int, int] | None = None

    def origins_over(self, earlier: Origins, path: Path) -> Origins:
        """With those of the recipe itself, which is in the file `path` where they say nothing else."""
        if ("stages",) in self.origins:  # all of them are others
            earlier = {at: place for at, place in earlier.items() if at[:1] != ("stages",)}
        if self.places is None:
            return earlier | self.origins
        found = {at: place for at, place in earlier.items() if at[:1] != ("stages",) or len(at) < 2}
        for old, new in self.places.items():
            own = {at[2:]: place for at, place in earlier.items() if at[:2] == ("stages", old)}
            if old != new:  # its lines are not found by its position
                own = {(): shown(path)} | own
            found |= {("stages", new, *rest): place for rest, place in own.items()}
        return found | self.origins


def overlaid(raw: Mapping[str, Any], changes: Mapping[str, Any], path: Path, at: Where, label: str = "") -> Overlaid:
    """Write an overlay over a raw recipe.

    Args:
        path: of the file that the overlay stands in, at the keys `at`.
        label: what faults are told of, `arm 'human'` say.
    """
    return _Writer(path, at, label).write(raw, changes)


@dataclass(frozen=True)
class _Writer:
    path: Path
    at: Where
    label: str

    def write(self, raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Overlaid:
        made = Overlaid(copy.deepcopy(dict(raw)), {}, [])
        for key, value in changes.items():
            if key == "stages" and isinstance(value, Mapping):
                continue
            self._set(made, made.raw, key, value, (), ())
        if isinstance(changes.get("stages"), Mapping):
            self._stages(made, changes["stages"])
        return made

    def _set(
        self, made: Overlaid, target: dict[str, Any], key: object, value: object, place: Where, said: Where
    ) -> None:
        """A mapping is written over a mapping key by key; null takes the key out, so that its default holds."""
        own = target.get(key)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            target[key] = dict(own)
            for inner, one in value.items():
                self._set(made, target[key], inner, one, (*place, key), (*said, key))
            return
        if value is None:
            target.pop(key, None)
        else:
            target[key] = copy.deepcopy(value)
        made.origins[(*place, key)] = self._where((*said, key))

    def _stages(self, made: Overlaid, changes: Mapping[str, Any]) -> None:
        own = made.raw.get("stages")
        before = own if isinstance(own, list) else []
        changes = {str(name): change for name, change in changes.items()}  # `1` is a name, too
        stages: list[Any] = list(before)
        for name, change in changes.items():
            if not isinstance(change, Mapping | None):
                self._fault(made, (name,), f"{brief(change)} is not a mapping (`key: value`), nor null")
        for name in [name for name, change in changes.items() if change is None]:
            at = self._index(made, stages, name, "to take out")
            if at is not None:
                del stages[at]
        added = {name for name, one in changes.items() if isinstance(one, Mapping) and _index(stages, name) is None}
        for name, change in changes.items():
            if name in added:
                self._add(made, stages, name, change)
        made.raw["stages"] = stages
        now = {id(stage): at for at, stage in enumerate(stages)}
        made.places = {at: now[id(stage)] for at, stage in enumerate(before) if id(stage) in now}
        for name, change in changes.items():
            at = _index(stages, name)
            if isinstance(change, Mapping) and at is not None:
                stages[at] = dict(stages[at])
                for word in () if name in added else (word for word in POSITION if word in change):
                    self._fault(made, (name, word), "the recipe has this stage already, and it stays where it stands")
                for key, value in change.items():
                    if key not in POSITION:
                        self._set(made, stages[at], key, value, ("stages", at), ("stages", name))

    def _add(self, made: Overlaid, stages: list[Any], name: str, change: Mapping[str, Any]) -> None:
        names = [str(stage.get("name")) for stage in stages if isinstance(stage, Mapping)]
        if "kind" not in change:
            self._fault(
                made, (name,), f"the recipe has no such stage (stages: {', '.join(names)}){near(name, names)}; "
                "one that is added says its `kind`, and `after` or `before` which other it stands",
            )  # fmt: skip
            return
        places = [word for word in POSITION if word in change]
        if not stages and not places:
            stages.append({"name": name})
            return
        if len(places) != 1:
            self._fault(made, (name,), "a stage that is added stands `after` or `before` another: say which")
            return
        at = self._index(made, stages, change[places[0]], f"for it to stand {places[0]}", (name, places[0]))
        if at is not None:
            stages.insert(at + (places[0] == "after"), {"name": name})

    def _index(self, made: Overlaid, stages: Sequence[Any], name: object, why: str, at: Where = ()) -> int | None:
        found = _index(stages, name)
        if found is None:
            names = [str(stage.get("name")) for stage in stages if isinstance(stage, Mapping)]
            there = f"(stages: {', '.join(names)}){near(name, names)}"
            self._fault(made, at or (name,), f"there is no stage {name!r} {why} {there}")
        return found

    def _fault(self, made: Overlaid, keys: Where, message: str) -> None:
        made.faults.append(Fault(("stages", *keys), message, where=self._where(("stages", *keys))))

    def _where(self, keys: Where) -> str:
        line = line_of(self.path, (*self.at, *keys))
        place = f"{shown(self.path)}:{line}" if line else shown(self.path)
        return f"{place}: {self.label}" if self.label else place


def _index(stages: Sequence[Any], name: object) -> int | None:
    return next((i for i, stage in enumerate(stages) if isinstance(stage, Mapping) and stage.get("name") == name), None)
