"""`--set key=value`: any key of the recipe from the command line, checked like the file.

Stages go by name: `stages.polish.beta=0.02`; `stages.*.steps=3` sets every stage that has the key. Values are YAML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from orchestra.config.arms import ExperimentKeys
from orchestra.config.faults import Fault, RecipeError, brief, dotted
from orchestra.config.recipe import Recipe
from orchestra.config.yamlfile import parse
from orchestra.stages import kinds
from settings import near

Where = tuple[str | int, ...]


def apply(
    raw: dict[str, Any], sets: Iterable[str], origins: dict[Where, str], elsewhere: Sequence[Mapping[str, Any]] = ()
) -> list[Fault]:
    """Write the overrides into the raw recipe and note their origin; the faults of the overrides themselves.

    Args:
        elsewhere: stages of other arms; an override of one of these says nothing of a recipe without it.
    """
    faults: list[Fault] = []
    for text in sets:
        origin = f"--set {text if len(text) <= 200 else text[:197] + '...'}"
        key, equals, value_text = text.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys):
            faults.append(Fault((), "write it as key=value, such as seed=2 or stages.polish.beta=0.02", where=origin))
            continue
        try:
            value = parse(value_text, origin)
        except RecipeError as error:
            faults += error.faults
            continue
        if keys[0] in ExperimentKeys.model_fields:
            remedy = "; --seeds says it" if keys[0] == "seeds" else ""
            message = f"{keys[0]} is the file's own to say, a recipe has no such key{remedy}"
            faults.append(Fault((), message, where=origin))
            continue
        if keys[0] == "stages" and len(keys) > 1:
            faults += _set_in_stages(raw, keys, value, origin, origins, elsewhere)
        else:
            faults += _set(raw, raw, (), keys, value, origin, origins)
    return faults


def _set_in_stages(
    raw: dict[str, Any], keys: list[str], value: object, origin: str, origins: dict[Where, str],
    elsewhere: Sequence[Mapping[str, Any]],
) -> list[Fault]:  # fmt: skip
    stages = raw.get("stages")
    stages = [stage if isinstance(stage, dict) else {} for stage in stages] if isinstance(stages, list) else []
    names = [str(stage.get("name")) for stage in stages]
    wanted, rest = keys[1], keys[2:]
    if not rest:
        example = f"stages.{wanted}.steps=10"
        return [Fault((), f"name a key of the stage too, as in {example}", where=origin)]
    pattern = any(sign in wanted for sign in "*?[")

    def meant(name: str) -> bool:
        return fnmatchcase(name, wanted) if pattern else name == wanted

    chosen = [i for i, name in enumerate(names) if meant(name)]
    others = [stage for stage in elsewhere if meant(str(stage.get("name")))]
    if not chosen and others:
        return []
    if not chosen:
        return [
            Fault((), f"no stage is called {wanted!r} (stages: {', '.join(names)}){near(wanted, names)}", where=origin)
        ]
    if pattern:
        has_key = [i for i in chosen if _has(stages[i], rest[0])]
        if not has_key and any(_has(stage, rest[0]) for stage in others):
            return []
        if not has_key:
            possible = {
                key for i in chosen if (kind := kinds().get(str(stages[i].get("kind")))) for key in kind.model_fields
            }
            return [Fault((), f"no such stage has the key {rest[0]!r}{near(rest[0], possible)}", where=origin)]
        chosen = has_key
    return [
        fault for i in chosen for fault in _set(raw, stages[i], ("stages", i), rest, value, origin, origins)
    ]  # fmt: skip


def _has(stage: Mapping[str, Any], key: str) -> bool:
    kind = kinds().get(str(stage.get("kind")))
    return kind is not None and key in kind.model_fields


def _set(
    raw: dict[str, Any],
    target: dict[str, Any],
    at: Where,
    keys: list[str],
    value: object,
    origin: str,
    origins: dict[Where, str],
) -> list[Fault]:
    for depth, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        if not isinstance(target[key], dict):
            path = dotted(keys[: depth + 1])
            hint = near(key, Recipe.model_fields) if not at and not depth and key not in Recipe.model_fields else ""
            return [Fault((), f"{path} is {brief(target[key])}, which has no keys of its own{hint}", where=origin)]
        target, at = target[key], (*at, key)
    target[keys[-1]] = value
    origins[(*at, keys[-1])] = origin
    return []
