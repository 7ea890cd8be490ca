"""The problems of a recipe: those that it trains on, and those held out, of which none is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards.domain import get_domain
from rewards.problems import Problem, Split, overlapping

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage


def load(recipe: Recipe, source: str, split: Split, limit: int | None) -> list[Problem]:
    """Problems of a source. The held-out ones are the same for every training seed."""
    seed = recipe.seed if split == "train" else 0
    return get_domain(recipe.problems.domain).problems(source, split, limit=limit, seed=seed)


def held_out(recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
    """(source, limit) of every evaluation in the recipe, each once, that of the base first."""
    evaluated = (stage.held_out_sets(recipe) for stage in recipe.all_stages if "evaluation" in stage.gives)
    return tuple(dict.fromkeys(one for sets in evaluated for one in sets.values()))


def lost_to_other_evaluations(recipe: Recipe, stage: Stage) -> list[str]:
    """What a stage does not train on because of evaluations on problems other than `problems.test`: the problems' ids.

    Only these count for what it computes: an evaluation may be added to a finished run as long as nothing that was
    trained on is asked in it.
    """
    (first, *others), trained_on = held_out(recipe), stage.trains_on(recipe)
    if not others or not trained_on:
        return []
    against = [problem for source, limit in others for problem in load(recipe, source, "test", limit)]
    test = load(recipe, first[0], "test", first[1])
    lost: set[str] = set()
    for source, limit in trained_on:
        problems = load(recipe, source, "train", limit)
        lost |= overlapping(problems, against) - overlapping(problems, test)
    return sorted(lost)
