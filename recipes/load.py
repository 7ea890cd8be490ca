"""From a name on the command line to a validated `Recipe`: file, then scale, then overrides, each checked alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recipes import machine, overrides, scales
from recipes.checks import faults_between_stages, is_file, is_problem_file, unknown_words
from recipes.errors import Fault, RecipeError, UserError, brief, near
from recipes.explain import faults_from, stage_label
from recipes.schema import Recipe
from recipes.yamlfile import line_of, read_mapping, shown

PACKAGE = Path(__file__).parent

Path_ = tuple[str | int, ...]
Origins = dict[Path_, str]


@dataclass(frozen=True)
class Scale:
    """A scale by name, its file, and why it was chosen."""

    name: str
    path: Path | None
    why: str = ""


def available(folder: str = "") -> dict[str, Path]:
    """Recipes (or, with `folder="scales"`, scales) by name: those in ./recipes first, then those of the package."""
    found: dict[str, Path] = {}
    for place in (Path.cwd() / "recipes" / folder, PACKAGE / folder):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            found.setdefault(path.stem, path)
    return found


def find(name: str, what: str = "recipe") -> Path:
    """The file of a recipe or scale, from its name or its path. Raises UserError with the near misses."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        reason = "is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{what} {name}: {reason}{near(name, [str(other) for other in path.parent.glob('*.y*ml')])}")
    options = available("scales" if what == "scale" else "")
    if name in options:
        return options[name]
    raise UserError(f"no {what} is called {name!r} (there are: {', '.join(options) or 'none'}){near(name, options)}")


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
    path = find(name)
    raw = read_mapping(path)
    origins: Origins = {}
    faults: list[Fault] = []
    chosen = choose_scale(scale)
    if chosen.path is not None:
        faults += scales.apply(raw, read_mapping(chosen.path), chosen.path, origins)
    faults += overrides.apply(raw, sets, origins)
    if files:
        faults += _local_files(raw, path)
        faults += unknown_words(raw)
    faults += faults_between_stages(raw)
    recipe = None
    try:
        recipe = Recipe.model_validate(raw, context={"between_stages": "checked"})
    except ValidationError as error:
        faults += faults_from(error.errors(include_url=False), raw)
    if faults or recipe is None:
        raise RecipeError(sorted((_placed(fault, path, origins) for fault in faults), key=_order))
    return recipe


def _placed(fault: Fault, path: Path, origins: Mapping[Path_, str]) -> Fault:
    """The fault with the place that the value came from: an override, the scale, or a line of the recipe."""
    if fault.where:
        return fault
    place = next((origins[fault.path[:n]] for n in range(len(fault.path), 0, -1) if fault.path[:n] in origins), None)
    if place is None:
        line = line_of(path, fault.path)
        place = f"{shown(path)}:{line}" if line is not None else shown(path)
    return Fault(fault.path, fault.message, where=place, stage=fault.stage)


def _order(fault: Fault) -> tuple[bool, bool, int, float]:
    """First what lies outside the stages, then stage by stage; what has a line before what is missing."""
    in_stages, by_set = fault.path[:1] == ("stages",), fault.where.startswith("--set")
    position = fault.path[1] if len(fault.path) > 1 and isinstance(fault.path[1], int) else -1
    line = fault.where.rpartition(":")[2]
    return in_stages, by_set, position, int(line) if line.isdigit() else float("inf")


def _local_files(raw: dict[str, Any], path: Path) -> list[Fault]:
    """Find local files relative to the working directory or to the recipe; a fault for each that is not there."""
    faults: list[Fault] = []

    def find_in(mapping: object, key: str, at: Path_, wanted: Callable[[str], bool]) -> None:
        value = mapping.get(key) if isinstance(mapping, dict) else None
        if isinstance(value, str) and wanted(value):
            mapping[key] = found(value, (*at, key))
        elif isinstance(value, list):
            mapping[key] = [
                found(item, (*at, key)) if isinstance(item, str) and wanted(item) else item for item in value
            ]

    def found(value: str, at: Path_) -> str:
        plain = Path(value).expanduser()
        for candidate in (plain, path.parent / plain):
            if candidate.is_file():
                return str(candidate)
        reason = "is a folder" if plain.is_dir() else "no such file"
        siblings = [str(other) for other in plain.parent.glob("*")] if plain.parent.is_dir() else []
        faults.append(Fault(at, f"{brief(value, 200)}: {reason}{near(value, siblings)}", stage=stage_label(at, raw)))
        return value

    for key in ("train", "test"):
        find_in(raw.get("problems"), key, ("problems",), is_problem_file)
    find_in(raw.get("reward"), "file", ("reward",), lambda value: True)
    stages = raw.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else []):
        kind = stage.get("kind") if isinstance(stage, dict) else None
        if kind == "sft":
            find_in(stage, "data", ("stages", i), is_file)
        elif kind == "evaluate":
            find_in(stage, "problems", ("stages", i), is_problem_file)
    return faults


def unused_scale_stages() -> list[str]:
    """Stage names in scale files that no recipe has, which would otherwise be ignored without a word."""
    names = set()
    for path in available().values():
        stages = read_mapping(path).get("stages")
        names |= {
            str(stage.get("name")) for stage in (stages if isinstance(stages, list) else []) if isinstance(stage, dict)
        }
    messages = []
    for path in available("scales").values():
        settings = read_mapping(path).get("stages")
        for name in settings if isinstance(settings, dict) else ():
            if str(name) not in names:
                messages.append(f"{shown(path)}: stages.{name}: no recipe has a stage of that name{near(name, names)}")
    return messages
