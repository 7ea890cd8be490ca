"""What one recipe changes of another, key by key: how an arm is told from the first one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestra.config.experiment import Experiment, load_experiment
from orchestra.config.faults import RecipeError
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Stage
from settings import Node

NOT_OF_AN_ARM = ("name", "seed", "stages")
"""Keys of a recipe that are the experiment's, or told stage by stage."""


@dataclass(frozen=True)
class Change:
    """A key and its values as one writes them; None where there is none: a stage that is taken out, or put in."""

    key: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.after is None:
            return f"{self.key}: taken out"
        return (
            f"{self.key}: put in: {self.after}" if self.before is None else f"{self.key}: {self.before} -> {self.after}"
        )


def changes(own: Recipe, first: Recipe) -> tuple[Change, ...]:
    """What `own` has otherwise than `first`: the parts in the recipe's order, then its stages."""
    parts = [key for key in Recipe.model_fields if key not in NOT_OF_AN_ARM]
    found = [one for key in parts for one in _between(key, getattr(first, key), getattr(own, key))]
    before, after = ({stage.name: stage for stage in recipe.stages} for recipe in (first, own))
    for name, stage in before.items():
        key = f"stages.{name}"
        if name not in after:
            found.append(Change(key, _said(stage), None))
        elif type(stage) is type(after[name]):
            found += _between(key, stage, after[name])
        else:
            found.append(Change(key, _said(stage), _said(after[name])))
    return (
        *found,
        *(Change(f"stages.{name}", None, _said(stage)) for name, stage in after.items() if name not in before),
    )


def of_the_scale(name: str, experiment: Experiment, sets: Iterable[str]) -> str:
    """What the recipe file says otherwise than the experiment that a scale has made of it: `key: value -> value`, with
    commas; of a recipe that is wrong without a scale nothing is known.

    Args:
        name: of the recipe file; `sets`: overrides, which are in both.
    """
    try:
        plain = load_experiment(name, None, sets, files=False)
    except RecipeError:
        return ""
    return ", ".join(map(str, changes(experiment.recipe, plain.recipe)))


def _between(key: str, before: object, after: object) -> Iterator[Change]:
    if isinstance(before, Node) and type(before) is type(after):
        for name in (*type(before).model_fields, *(before.__pydantic_extra__ or {})):
            yield from _between(f"{key}.{name}", getattr(before, name), getattr(after, name, None))
    elif before != after:
        yield Change(key, _plain(before), _plain(after))


def _said(stage: Stage) -> str:
    """A stage in a line: its kind, and what it says that is no default."""
    own = stage.model_dump(mode="json", exclude_defaults=True, exclude={"name", "kind"})
    return ", ".join([stage.kind, *(f"{key} {_plain(value)}" for key, value in own.items())])


def _plain(value: object) -> str:
    if isinstance(value, Node):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
