"""From a name on the command line to a validated `Recipe`: file, then scale, then overrides, each checked alike."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from models import processes
from orchestra import RECIPES
from orchestra.config import overrides, scales
from orchestra.config.checks import Unread, faults_between_stages
from orchestra.config.explain import faults_from, stage_label
from orchestra.config.faults import Fault, RecipeError, UserError
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Stage
from orchestra.config.words import base_faults, domain_of, find_files, unknown_rewards, unknown_words
from orchestra.config.yamlfile import line_of, read_mapping, shown
from orchestra.plan import machine
from orchestra.stages import kinds
from settings import Node, near

Where = tuple[str | int, ...]
Origins = dict[Where, str]


@dataclass(frozen=True)
class Scale:
    """A scale by name, its file, and why it was chosen."""

    name: str
    path: Path | None
    why: str = ""


def available(folder: str = "") -> dict[str, Path]:
    """Recipes (or, with `folder="scales"`, scales) by name: those in ./recipes first, then those of the package."""
    found: dict[str, Path] = {}
    for place in (Path.cwd() / "recipes" / folder, RECIPES / folder):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            found.setdefault(path.stem, path)
    return found


def find(name: str, what: str = "recipe") -> Path:
    """The file of a recipe or scale, from its name or its path. Raises UserError with the near misses."""
    if is_path(name):
        path = Path(name).expanduser()
        if path.is_file():
            return path
        reason = "is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{what} {name}: {reason}{near(name, [str(other) for other in path.parent.glob('*.y*ml')])}")
    options = available("scales" if what == "scale" else "")
    if name in options:
        return options[name]
    raise UserError(f"no {what} is called {name!r} (there are: {', '.join(options) or 'none'}){near(name, options)}")


def is_path(name: str) -> bool:
    """Whether a recipe, or a scale, is called by its file's path."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def choose_scale(name: str | None) -> Scale:
    """`auto` is gpu where CUDA is, embedded elsewhere; None is the recipe's own numbers. Raises UserError."""
    if name is None or name == "none":
        return Scale("none", None, "the recipe's own numbers")
    if name != "auto":
        path = find(name, "scale")
        return Scale(path.stem, path)
    found = machine.gpus()
    chosen = "gpu" if found else "embedded"
    why = f"{len(found)} x {found[0].name} here" if found else "no CUDA device here"
    return Scale(chosen, find(chosen, "scale"), f"scale auto: {chosen}, {why}")


def load_recipe(name: str, scale: str | None = "auto", sets: Iterable[str] = (), *, files: bool = True) -> Recipe:
    """The recipe of that name or path at that scale, with `key=value` overrides.

    `files`: also require that the local files it names exist. Raises UserError, or RecipeError with every fault.
    """
    from orchestra.config.experiment import load_experiment

    return load_experiment(name, scale, sets, files=files).recipe


def recipe_of(
    raw: Mapping[str, Any], path: Path, scale: str | None, sets: Iterable[str], *,
    files: bool, origins: Origins, faults: Iterable[Fault] = (), kin: Sequence[str] = (),
    elsewhere: Sequence[Mapping[str, Any]] = (),
) -> Recipe:  # fmt: skip
    """A recipe's own text at a scale, with overrides.

    Args:
        raw: left as it is; path: the file that it is from.
        origins: where keys come from that do not stand in that file; faults: that were found in it before.
        kin: the names of the recipes that it extends, the first one first.
        elsewhere: the stages of the file's other arms, of which an override may be instead of this one's.
    """
    raw, origins, faults = copy.deepcopy(dict(raw)), dict(origins), list(faults)
    chosen = choose_scale(scale)
    if chosen.path is not None:
        faults += scales.apply(raw, read_mapping(chosen.path), chosen.path, origins, kin)
    faults += overrides.apply(raw, sets, origins, elsewhere)
    if files:
        faults += _words(raw, path, {at for at, place in origins.items() if place.startswith("--set")})
    faults += _between_stages(raw)
    recipe = None
    try:
        recipe = Recipe.model_validate(raw, context={"between_stages": "checked"})
    except ValidationError as error:
        faults += faults_from(error.errors(include_url=False), raw)
    if faults or recipe is None:
        raise RecipeError(sorted((placed(fault, path, origins) for fault in faults), key=_order))
    return recipe


def placed(fault: Fault, path: Path, origins: Mapping[Where, str]) -> Fault:
    """The fault with the place that the value came from: an override, the scale, or a line of the recipe."""
    if fault.where:
        return fault
    place = next((origins[fault.path[:n]] for n in range(len(fault.path), 0, -1) if fault.path[:n] in origins), None)
    if place is None:
        line = line_of(path, fault.path)
        place = f"{shown(path)}:{line}" if line is not None else shown(path)
    return Fault(fault.path, fault.message, where=place, stage=fault.stage)


def stages_in(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a raw recipe, as far as they are mappings."""
    stages = raw.get("stages")
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def origins_of(raw: Mapping[str, Any], place: str) -> Origins:
    """Where a raw recipe is from, of its every part and stage."""
    stages = raw.get("stages")
    places = [(key,) for key in raw] + [("stages", i) for i in range(len(stages) if isinstance(stages, list) else 0)]
    return dict.fromkeys(places, place)


def found_beside(raw: dict[str, Any], path: Path) -> None:
    """Write the places of the local files that lie beside a raw recipe's own file into it."""
    for at, mapping, model in _mappings(raw):
        find_files(mapping, at, model, path.absolute().parent, None, ())


def _order(fault: Fault) -> tuple[bool, bool, int, float]:
    """First what lies outside the stages, then stage by stage; what has a line before what is missing."""
    in_stages, by_set = fault.path[:1] == ("stages",), fault.where.startswith("--set")
    position = fault.path[1] if len(fault.path) > 1 and isinstance(fault.path[1], int) else -1
    line = fault.where.rpartition(":")[2]
    return in_stages, by_set, position, int(line) if line.isdecimal() else float("inf")


def _words(raw: dict[str, Any], path: Path, overridden: Container[Where]) -> list[Fault]:
    """Find what the recipe names outside itself; a fault for each that is not there."""
    faults: list[Fault] = []
    domain = domain_of(raw.get("problems"), faults)
    for at, mapping, model in _mappings(raw):
        stage = stage_label(at, raw)
        faults += find_files(mapping, at, model, path.parent, stage, overridden)
        faults += unknown_words(mapping, at, model, domain, stage)
    return [*faults, *unknown_rewards(raw.get("reward")), *base_faults(raw.get("model"))]


def _mappings(raw: dict[str, Any]) -> Iterator[tuple[Where, dict[str, Any], type[BaseModel]]]:
    """Where, the mapping there and its schema: the recipe's parts, then its stages of a known kind."""
    for key, field in Recipe.model_fields.items():
        if isinstance(raw.get(key), dict) and isinstance(field.annotation, type) and issubclass(field.annotation, Node):
            yield (key,), raw[key], field.annotation
    stages = raw.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else []):
        kind = _kind(stage)
        if kind is not None:
            yield ("stages", i), stage, kind


def _kind(stage: object) -> type[Stage] | None:
    name = stage.get("kind") if isinstance(stage, dict) else None
    return kinds().get(name) if isinstance(name, str) else None


def _between_stages(raw: dict[str, Any]) -> list[Fault]:
    """The faults between what can be read, whatever is wrong elsewhere."""
    sections = {}
    for key, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Node):
            read = _read(field.annotation, raw[key]) if key in raw else field.get_default()
            sections |= {key: read} if isinstance(read, Node) else {}
    stages = raw.get("stages")
    read = [_stage(one) for one in (stages if isinstance(stages, list) else [])]
    return faults_between_stages(sections, read, processes.count())


def _stage(raw: object) -> Stage | Unread:
    kind, mapping = _kind(raw), raw if isinstance(raw, dict) else {}
    if kind is not None:
        # unknown keys are told of elsewhere; the rest can be judged without them
        read = _read(kind, {key: value for key, value in mapping.items() if key in kind.model_fields})
        if isinstance(read, Stage):
            return read
    name = mapping.get("name")
    return Unread(name if isinstance(name, str) else None, kind, mapping)


def _read(model: type[Node], raw: object) -> Node | None:
    try:
        return model.model_validate(raw)
    except ValidationError:
        return None


def _readable(path: Path) -> dict[str, Any]:
    """A file's mapping; what cannot be read is told of elsewhere."""
    with contextlib.suppress(RecipeError):
        return read_mapping(path)
    return {}


def _stage_names(written: Mapping[str, Any]) -> Iterator[str]:
    """The stages that a recipe file names, in whatever form: its own, those that it adds to another's, its arms'."""
    arms = written.get("arms")
    for one in (written, *(arms.values() if isinstance(arms, dict) else ())):
        stages = one.get("stages") if isinstance(one, dict) else None
        if isinstance(stages, dict):
            yield from map(str, stages)
        else:
            yield from (str(stage.get("name")) for stage in stages_in(one if isinstance(one, dict) else {}))


def unknown_in_scales() -> list[str]:
    """Names of recipes and stages in scale files that there are not, which would else be ignored without a word."""
    names = {name for path in available().values() for name in _stage_names(_readable(path))}
    messages = []
    for path in available("scales").values():
        scale = _readable(path)
        own = scale.get("recipes") if isinstance(scale.get("recipes"), dict) else {}
        for name in own:
            if str(name) not in available():
                messages.append(f"{shown(path)}: recipes.{name}: no recipe has that name{near(name, available())}")
        for at, values in {"": scale, **{f"recipes.{name}.": values for name, values in own.items()}}.items():
            settings = values.get("stages") if isinstance(values, dict) else None
            for name in settings if isinstance(settings, dict) else ():
                if str(name) not in names:
                    messages.append(
                        f"{shown(path)}: {at}stages.{name}: no recipe has a stage of that name{near(name, names)}"
                    )
    return messages
