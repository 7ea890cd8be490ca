"""Scales: the same recipe on other hardware. A scale says how big, never what is learned.

A scale file has the recipe's own sections (`model`, `problems`, `rollouts`, `evaluate`), then `kinds` (settings for
every stage of a kind), `stages` (settings for a stage by name, where the recipe has one), `instead` (what stands for a
model or a data set of the Hub here, wherever the recipe names it, at whatever revision) and `recipes` (all of these
again, for a recipe by name and those that extend it). It may set only the keys that the schema marks with `SIZE`. A
value such as `x 0.4` is that part of the recipe's own number, and nothing where the recipe has none. What a recipe says
by a word of the project (`teacher: self`) or has in a file is not the scale's to change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from evals.settings import Evaluate
from models.settings import Model
from orchestra.config.faults import Fault, brief, dotted
from orchestra.config.words import domain_of, is_problem_file
from orchestra.config.yamlfile import line_of, shown
from orchestra.stages import kinds
from rewards.settings import Problems
from rl.settings import Rollouts
from settings import SIZE, marked, near, node_in, reference_of
from settings.hub import HubName

SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": Model,
    "problems": Problems,
    "rollouts": Rollouts,
    "evaluate": Evaluate,
}
BESIDE = ("kinds", "stages", "instead", "recipes")
FACTOR = re.compile(r"^x\s*((?:[0-9]+\.?|[0-9]*\.[0-9]+)(?:[eE][-+]?[0-9]+)?)$")

Where = tuple[str | int, ...]


def apply(
    raw: dict[str, Any], scale: Mapping[str, Any], path: Path, origins: dict[Where, str], kin: Sequence[str] = ()
) -> list[Fault]:
    """Write the scale's values into the raw recipe and note their origin; the faults of the scale file itself.

    Args:
        kin: names of the recipes that this one extends, the first one first; what is said of them is said of it.
    """
    writer = _Writer(raw, copy.deepcopy(raw), path, origins, [])
    recipes = writer.mapping(scale.get("recipes"), ("recipes",))
    written = {str(name): (settings, ("recipes", name)) for name, settings in recipes.items()}
    names, of_recipes = writer.names(scale, ()), []
    for name in dict.fromkeys((*kin, str(raw.get("name")))):
        if name in written:
            settings, keys = written[name]
            of_recipes.append((writer.mapping(settings, keys), keys))
            names |= writer.names(*of_recipes[-1])
    writer.rename(names)
    writer.write_all({key: value for key, value in scale.items() if key != "recipes"}, ())
    for settings, keys in of_recipes:
        writer.write_all(settings, keys)
    return list(dict.fromkeys(writer.faults))


@dataclass
class _Writer:
    """Fields: raw is written to; own: the same before any scale."""

    raw: dict[str, Any]
    own: Mapping[str, Any]
    path: Path
    origins: dict[Where, str]
    faults: list[Fault]
    renamed: frozenset[Where] = frozenset()

    def fault(self, keys: Where, message: str) -> None:
        line = line_of(self.path, keys)
        self.faults.append(Fault(keys, message, where=f"{shown(self.path)}:{line}" if line else shown(self.path)))

    def mapping(self, value: object, keys: Where) -> Mapping[str, Any]:
        """What stands at these keys of the scale; nothing, and a fault, where it is none."""
        if value is None or isinstance(value, Mapping):
            return value or {}
        self.fault(keys, f"{brief(value)} is not a mapping (`key: value`)")
        return {}

    def names(self, values: Mapping[str, Any], keys: Where) -> dict[str, tuple[str, Where]]:
        """Name -> what stands for it, and where that is said."""
        found = {}
        for name, other in self.mapping(values.get("instead"), (*keys, "instead")).items():
            if isinstance(other, str) and other:
                found[str(name)] = (other, (*keys, "instead", name))
            else:
                self.fault((*keys, "instead", name), f"{brief(other)} is not a name")
        return found

    def rename(self, names: Mapping[str, tuple[str, Where]]) -> None:
        """Put what stands for a name in its place, wherever the recipe names a model or problems."""
        sections = [((key,), self.raw.get(key), model) for key, model in SECTIONS.items()]
        stages = [(("stages", i), stage, kinds()[stage["kind"]]) for i, stage in _stages(self.raw)]
        renamed = set()
        for at, target, model in (one for one in (*sections, *stages) if isinstance(one[1], dict)):
            for key in set(target) & marked(model, SIZE):
                refers = reference_of(model, key)
                if refers is None or refers.to not in ("model", "problems"):
                    continue
                said = [found for _, name in refers.names_in(target[key]) if (found := _instead(name, names))]
                if said:
                    target[key] = refers.renamed(target[key], lambda name: (_instead(name, names) or (name,))[0])
                    self.origins[(*at, key)] = f"{shown(self.path)} ({dotted(said[0][1])})"
                    renamed.add((*at, key))
        self.renamed = frozenset(renamed)

    def write_all(self, values: Mapping[str, Any], keys: Where) -> None:
        """The sections, then what is said of kinds and of stages."""
        for key, value in values.items():
            if key in SECTIONS:
                if self.raw.get(key) is None:
                    self.raw[key] = {}
                if isinstance(self.raw[key], dict):
                    self.write(self.raw[key], value, SECTIONS[key], (*keys, key), (key,))
            elif key not in BESIDE or (key == "recipes" and keys):
                options = [*SECTIONS, *(word for word in BESIDE if not keys or word != "recipes")]
                self.fault((*keys, key), f"a scale has the sections {', '.join(options)}{near(key, options)}")
        for key in ("kinds", "stages"):
            for name, settings in self.mapping(values.get(key), (*keys, key)).items():
                if key == "kinds" and name not in kinds():
                    known = f"one of {', '.join(kinds())}{near(name, kinds())}"
                    self.fault((*keys, key, name), f"not a kind of stage; {known}")
                    continue
                for i, stage in _stages(self.raw):
                    if name == stage.get("kind" if key == "kinds" else "name"):
                        self.write(stage, settings, kinds()[stage["kind"]], (*keys, key, name), ("stages", i))

    def write(self, target: dict[str, Any], values: object, model: type[BaseModel], keys: Where, at: Where) -> None:
        for key, value in self.mapping(values, keys).items():
            field, inner = model.model_fields.get(str(key)), _node(model, str(key))
            if field is None:
                self.fault((*keys, key), f"unknown key{near(key, marked(model, SIZE))}")
            elif inner is not None:
                if target.get(key) is None:
                    target[key] = {}
                if isinstance(target[key], dict):  # else it is off, or a fault of the recipe's
                    self.write(target[key], value, inner, (*keys, key), (*at, key))
            elif key not in marked(model, SIZE):
                possible = ", ".join(sorted(marked(model, SIZE)))
                self.fault((*keys, key), f"a scale says how big, never what is learned (it may set: {possible})")
            elif not self._stays(target, str(key), model, (*at, key)):
                own = _own(self.own, (*at, key), field.default)
                try:
                    target[key] = _scaled(value, own, field.annotation)
                except ValueError as error:
                    self.fault((*keys, key), str(error))
                self.origins[(*at, key)] = f"{shown(self.path)} ({dotted((*keys, key))})"

    def _stays(self, target: Mapping[str, Any], key: str, model: type[BaseModel], at: Where) -> bool:
        """Whether a name is not the scale's to change: a word of the project, a file, or what it has renamed itself."""
        refers, name = reference_of(model, key), target.get(key)
        if refers is None or not isinstance(name, str):
            return False
        domain = domain_of(self.raw.get("problems"), [])
        made = refers.to == "problems" and (is_problem_file(name) or (domain is not None and name in domain.sources))
        return at in self.renamed or name in refers.also or made


def _instead(name: object, names: Mapping[str, tuple[str, Where]]) -> tuple[str, Where] | None:
    """What stands for a name, or for what it is a revision of."""
    if not isinstance(name, str):
        return None
    hub = HubName.parse(name)
    return names.get(name) or (names.get(str(replace(hub, revision=None))) if hub is not None else None)


def _stages(raw: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    stages = raw.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict) and isinstance(stage.get("kind"), str) and stage["kind"] in kinds():
            yield i, stage


def _node(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The class of a nested mapping some of whose keys a scale may set."""
    field = model.model_fields.get(key)
    nested = node_in(field.annotation) if field is not None else None
    return nested if nested is not None and marked(nested, SIZE) else None


def _own(raw: Any, path: Where, default: object) -> object:
    """The recipe's own value, before any scale."""
    for key in path:
        if isinstance(raw, Mapping) and key not in raw:
            return default
        if not isinstance(raw, Mapping) and not (isinstance(raw, list) and isinstance(key, int)):
            return default
        raw = raw[key]
    return raw


def _types(annotation: Any) -> set[Any]:
    """The plain types in an annotation, however deep in unions and `Annotated`."""
    return {annotation}.union(*(_types(part) for part in get_args(annotation)))


def _scaled(value: object, own: object, annotation: Any) -> object:
    """The value, or for `x 0.4` that part of the recipe's own. Raises ValueError."""
    factor = FACTOR.match(value) if isinstance(value, str) else None
    whole, number = (kind in _types(annotation) for kind in (int, float))
    if factor is None or not (whole or number):
        return value
    if own is None:  # a part of nothing
        return None
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise ValueError(f"{value!r} is a part of the recipe's own number, and the recipe has none here")
    try:
        scaled = own * float(factor[1])
        return max(1, round(scaled)) if whole else float(f"{scaled:.6g}")
    except OverflowError:
        raise ValueError(f"{value!r} of {brief(own)} is no number that a computer has") from None
