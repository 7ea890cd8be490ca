"""From a recipe file to an experiment: its arms as recipes of their own, and the seeds under which each is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestra.config import loading
from orchestra.config.arms import ExperimentKeys, Origins, Overlaid, Reported, overlaid
from orchestra.config.explain import faults_from
from orchestra.config.faults import Fault, RecipeError, UserError, brief
from orchestra.config.recipe import Recipe
from orchestra.config.yamlfile import read_mapping, shown
from settings import near

KEYS = tuple(ExperimentKeys.model_fields)


@dataclass(frozen=True)
class Experiment:
    """What a recipe file asks for.

    Fields:
        recipe: as it stands, without an arm; arms: by name, in the file's order, the first being what the others are
            compared with; empty where the file has none. seeds: empty where there is the recipe's own alone.
        reported: what others have reported.
    """

    recipe: Recipe
    arms: Mapping[str, Recipe]
    seeds: tuple[int, ...]
    reported: Reported | None = None

    @property
    def single(self) -> bool:
        """Whether there is one run and nothing to compare."""
        return not self.arms and not self.seeds

    def each(self, change: Callable[[Recipe], Recipe]) -> Experiment:
        """The same with every recipe changed so."""
        arms = {arm: change(recipe) for arm, recipe in self.arms.items()}
        return replace(self, recipe=change(self.recipe), arms=arms)

    @property
    def named(self) -> Mapping[str, Recipe]:
        """The arms; without any the recipe under its own name."""
        return self.arms or {self.recipe.name: self.recipe}

    def runs(self) -> dict[tuple[str, int], Recipe]:
        """(arm, seed) -> its recipe, in the order in which they are run: seed by seed, so that there is something to
        compare as early as can be."""
        return {
            (arm, seed): recipe.model_copy(update={"seed": seed})
            for seed in self.seeds or (self.recipe.seed,)
            for arm, recipe in self.named.items()
        }


def load_experiment(
    name: str, scale: str | None = "auto", sets: Iterable[str] = (), seeds: tuple[int, ...] = (), *, files: bool = True
) -> Experiment:
    """The experiment of a recipe file at a scale, with `key=value` overrides in every arm that has what they name.

    Args:
        seeds: instead of the file's.
        files: also require that the local files it names exist.

    Raises:
        UserError: there is no such file.
        RecipeError: with every fault.
    """
    path, sets = loading.find(name), tuple(sets)
    written = read_mapping(path)
    keys = _keys(written, path)
    base, kin = _extended({key: value for key, value in written.items() if key not in KEYS}, keys.extends, path)
    if keys.extends is not None and written.get("name") in (None, *kin):
        message = "is missing" if written.get("name") is None else f"{written['name']!r} is that recipe's own"
        message += f"; a recipe that extends {keys.extends} has a name, and so a folder, of its own"
        raise RecipeError([loading.placed(Fault(("name",), message), path, {})])
    labels = {arm: f"arm {arm!r}" for arm in keys.arms}
    overlays = {
        arm: overlaid(base.raw, changes or {}, path, ("arms", arm), labels[arm]) for arm, changes in keys.arms.items()
    }
    every = [stage for one in (base, *overlays.values()) for stage in loading.stages_in(one.raw)]

    def recipe_of(one: Overlaid, origins: Origins) -> Recipe:
        return loading.recipe_of(
            one.raw, path, scale, sets, files=files, origins=origins, faults=one.faults, kin=kin, elsewhere=every
        )

    for one in sets if seeds or keys.seeds else ():
        if one.partition("=")[0].strip() == "seed":
            listed = ", ".join(map(str, seeds or keys.seeds))
            message = f"does nothing: the recipe is run under the seeds {listed}; say how many with --seeds"
            raise RecipeError([Fault((), message, where=f"--set {one[:200]}")])
    recipe = recipe_of(base, base.origins)
    arms: dict[str, Recipe] = {}
    faults: list[Fault] = []
    for arm, changes in keys.arms.items():
        label, made = labels[arm], overlays[arm]
        made.faults.extend(_not_an_arms(changes or {}, made.raw, base.raw, arm, path, label))
        try:
            arms[arm] = recipe_of(made, made.origins_over(base.origins, path))
        except RecipeError as error:
            faults += [_labelled(fault, label) for fault in error.faults]
            continue
        faults += _same_faults(arm, changes, arms, recipe, path)
    if faults:
        raise RecipeError(faults)
    return Experiment(recipe, arms, seeds or keys.seeds, keys.reported)


def _keys(written: Mapping[str, Any], path: Path) -> ExperimentKeys:
    raw = {key: written[key] for key in KEYS if key in written}
    faults = [
        Fault(("arms", arm), "is not a mapping (`key: value`); {} is the recipe as it stands", where=shown(path))
        for arm, changes in (raw.get("arms") if isinstance(raw.get("arms"), Mapping) else {}).items()
        if not isinstance(changes, Mapping | None)
    ]
    try:
        keys = ExperimentKeys.model_validate(raw)
    except ValidationError as error:
        faults += [loading.placed(fault, path, {}) for fault in faults_from(error.errors(include_url=False), raw)]
    if faults:
        raise RecipeError(faults)
    arms = set(keys.arms)
    for figure in keys.reported.figures if keys.reported is not None else ():
        if figure.arm is not None and figure.arm not in arms:
            raise RecipeError(
                [
                    Fault(
                        ("reported",),
                        f"{figure.arm!r} is no arm of this file (arms: {', '.join(keys.arms) or 'none'}; those of a "
                        f"recipe that it extends are not taken over){near(figure.arm, keys.arms)}",
                        where=shown(path),
                    )
                ]
            )
    return keys


def _extended(
    own: dict[str, Any], extends: object, path: Path, seen: tuple[Path, ...] = ()
) -> tuple[Overlaid, tuple[str, ...]]:
    """The file's own text over that of the recipe which it extends, and the names of those, the first one first."""
    if extends is None:
        # of a file that another one extends, so that a fault in it is not looked for there
        place = f"{shown(path)}, which {shown(seen[0])} extends" if seen else ""
        return Overlaid(own, loading.origins_of(own, place) if seen else {}, []), ()
    if not isinstance(extends, str):
        raise RecipeError([loading.placed(Fault(("extends",), f"{brief(extends)} is no recipe's name"), path, {})])
    other = _other(extends, path)
    chain = (*seen, path.resolve())
    if other.resolve() in chain:
        raise UserError(f"{shown(path)}: extends: {extends!r} extends this file, too")
    written = read_mapping(other)
    text = {key: value for key, value in written.items() if key not in KEYS}
    base, kin = _extended(text, written.get("extends"), other, chain)
    loading.found_beside(base.raw, other)
    made = overlaid(base.raw, own, path, ())
    origins = made.origins_over(base.origins, other)
    return Overlaid(made.raw, origins, [*base.faults, *made.faults]), (*kin, str(written.get("name", other.stem)))


def _other(extends: str, path: Path) -> Path:
    """The file of a recipe that is extended: beside this one, or else as on the command line. Raises UserError."""
    beside = path.parent / Path(extends).expanduser()
    if loading.is_path(extends) and beside.is_file():
        return beside
    try:
        return loading.find(extends)
    except UserError as error:
        raise UserError(f"{shown(path)}: extends: {error}") from error


def _not_an_arms(
    changes: Mapping[str, Any], raw: Mapping[str, Any], base: Mapping[str, Any], arm: str, path: Path, label: str
) -> Iterator[Fault]:
    """What would be there and do nothing."""
    for key, remedy in (
        ("seed", "every arm is run under the same seeds; write `seeds: [...]` beside `arms`"),
        ("name", "an arm is called by its key under `arms`"),
    ):
        if key in changes and raw.get(key) != base.get(key):
            message = f"is not an arm's to change: {remedy}"
            place = loading.placed(Fault(("arms", arm, key), message), path, {})
            yield Fault((key,), message, where=f"{place.where}: {label}")


def _same_faults(arm: str, changes: object, arms: Mapping[str, Recipe], recipe: Recipe, path: Path) -> list[Fault]:
    """An arm that is not what its name says that it is."""
    at, where = ("arms", arm), shown(path)
    if changes and arms[arm] == recipe:
        message = "changes nothing: the recipe has these values already; change others, or write {} for the recipe"
        return [Fault(at, message, where=where)]
    twin = next((other for other in arms if other != arm and arms[other] == arms[arm]), None)
    return [] if twin is None else [Fault(at, f"is the same as arm {twin!r}; change it, or take it out", where=where)]


def _labelled(fault: Fault, label: str) -> Fault:
    return fault if label in fault.where else replace(fault, where=f"{fault.where}: {label}" if fault.where else label)
