"""Scales: the same recipe on other hardware. A scale says how big, never what is learned.

A scale file has the recipe's own sections (`model`, `problems`, `rollouts`, `evaluate`), then `kinds` (settings for
every stage of a kind) and `stages` (settings for a stage by name, where the recipe has one). It may set only the
keys that the schema marks with `SIZE`. A value such as `x 0.4` is that part of the recipe's own number.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from evals.settings import Evaluate
from models.settings import Model
from orchestra.config.faults import Fault, brief, dotted
from orchestra.config.yamlfile import line_of, shown
from orchestra.stages import kinds
from rewards.settings import Problems
from rl.settings import Rollouts
from settings import SIZE, marked, near

SECTIONS: Mapping[str, type[BaseModel]] = {
    "model": Model,
    "problems": Problems,
    "rollouts": Rollouts,
    "evaluate": Evaluate,
}
FACTOR = re.compile(r"^x\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)$")

Where = tuple[str | int, ...]


def apply(raw: dict[str, Any], scale: Mapping[str, Any], path: Path, origins: dict[Where, str]) -> list[Fault]:
    """Write the scale's values into the raw recipe and note their origin; the faults of the scale file itself."""
    faults: list[Fault] = []
    recipes_own = copy.deepcopy(raw)

    def fault(keys: Where, message: str) -> None:
        line = line_of(path, keys)
        faults.append(Fault(keys, message, where=f"{shown(path)}:{line}" if line else shown(path)))

    def write(target: dict[str, Any], values: object, model: type[BaseModel], keys: Where, at: Where) -> None:
        if not isinstance(values, Mapping):
            fault(keys, f"{brief(values)} is not a mapping (`key: value`)")
            return
        for key, value in values.items():
            field, inner = model.model_fields.get(str(key)), _node(model, str(key))
            if field is None:
                fault((*keys, key), f"unknown key{near(key, marked(model, SIZE))}")
            elif inner is not None:
                if not isinstance(target.get(key), dict):
                    target[key] = {}
                write(target[key], value, inner, (*keys, key), (*at, key))
            elif key not in marked(model, SIZE):
                possible = ", ".join(sorted(marked(model, SIZE)))
                fault((*keys, key), f"a scale says how big, never what is learned (it may set: {possible})")
            else:
                try:
                    target[key] = _scaled(value, _own(recipes_own, (*at, key), field.default), field.annotation)
                except ValueError as error:
                    fault((*keys, key), str(error))
                origins[(*at, key)] = f"{shown(path)} ({dotted((*keys, key))})"

    for key, values in scale.items():
        if key in SECTIONS:
            if not isinstance(raw.get(key), dict):
                raw[key] = {} if raw.get(key) is None else raw[key]
            if isinstance(raw[key], dict):
                write(raw[key], values, SECTIONS[key], (key,), (key,))
        elif key not in ("kinds", "stages"):
            options = [*SECTIONS, "kinds", "stages"]
            fault((key,), f"a scale has the sections {', '.join(options)}{near(key, options)}")
    for key in ("kinds", "stages"):
        settings = scale.get(key) or {}
        if not isinstance(settings, Mapping):
            fault((key,), f"{brief(settings)} is not a mapping (`key: value`)")
            continue
        for name, values in settings.items():
            if key == "kinds" and name not in kinds():
                fault((key, name), f"not a kind of stage; one of {', '.join(kinds())}{near(name, kinds())}")
                continue
            for i, stage in _stages(raw):
                if name == stage.get("kind" if key == "kinds" else "name"):
                    write(stage, values, kinds()[stage["kind"]], (key, name), ("stages", i))
    return list(dict.fromkeys(faults))


def _stages(raw: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    stages = raw.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict) and isinstance(stage.get("kind"), str) and stage["kind"] in kinds():
            yield i, stage


def _node(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The class of a nested mapping some of whose keys a scale may set."""
    field = model.model_fields.get(key)
    annotation = field.annotation if field is not None else None
    nested = isinstance(annotation, type) and issubclass(annotation, BaseModel) and marked(annotation, SIZE)
    return annotation if nested else None


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
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise ValueError(f"{value!r} is a part of the recipe's own number, and the recipe has none here")
    scaled = own * float(factor[1])
    return max(1, round(scaled)) if whole else float(f"{scaled:.6g}")
