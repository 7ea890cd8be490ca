"""The problems of a recipe: those that it trains on, and those held out, of which none is trained on.

Held out are the problems of every evaluation, and those of `problems.validation`, which choose among the steps of a
stage and so may be neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestra.config.faults import UserError
from rewards.domain import get_domain
from rewards.problems import Problem, Split, overlapping

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage


def load(recipe: Recipe, source: str, split: Split, limit: int | None) -> list[Problem]:
    """Problems of a source. The held-out ones are the same for every training seed."""
    seed = recipe.seed if split == "train" else 0
    return get_domain(recipe.problems.domain).problems(source, split, limit=limit, seed=seed)


def must_be_readable(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Read what stages train on once, so that a row that cannot be used is known before anything has run.

    Raises:
        ProblemError: there is such a row.
    """
    for source, limit in dict.fromkeys(one for stage in stages for one in stage.trains_on(recipe)):
        load(recipe, source, "train", limit)


def held_out(recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
    """(source, limit) of every evaluation in the recipe, each once, that of the base first."""
    evaluated = (stage.held_out_sets(recipe) for stage in recipe.all_stages if "evaluation" in stage.gives)
    return tuple(dict.fromkeys(one for sets in evaluated for one in sets.values()))


def validation(recipe: Recipe) -> list[Problem]:
    """The problems of `problems.validation`, of which none is asked in an evaluation; none where the recipe has none.

    A number of them are those with the lowest hashes of their text, of all that the source has: the same ones for every
    training seed, in whatever order they stand there, and however many of them are trained on.

    Raises:
        UserError: they overlap with test problems, or leave nothing to train on.
    """
    own = recipe.problems
    if own.validation is None:
        return []
    if isinstance(own.validation, int):
        pool = get_domain(own.domain).problems(own.train, "train", limit=None, seed=0)
        asked = (problem for source, limit in held_out(recipe) for problem in load(recipe, source, "test", limit))
        taken = overlapping(pool, asked)
        free = {problem.question: problem for problem in pool if problem.id not in taken}
        if own.validation >= len(free):
            raise UserError(
                f"problems.validation: {own.validation} of the {len(free)} training problems ({own.train}) that no "
                "evaluation asks leave nothing to train on; ask for fewer, or name a source of their own"
            )
        return sorted(free.values(), key=lambda problem: _digest([f"validation\n{problem.question}"]))[: own.validation]
    problems = load(recipe, own.validation, "test", None)
    for source, limit in held_out(recipe):
        taken = overlapping(problems, load(recipe, source, "test", limit))
        if taken:
            first = next(problem.id for problem in problems if problem.id in taken)
            raise UserError(
                f"problems.validation: {len(taken)} of the {len(problems)} problems of {own.validation} overlap with "
                f"test problems ({source}; 13 words in a row, or the whole question), the first is {first!r}; the step "
                "that is kept may not be chosen on test problems: take them out, name another source, or write a "
                "number (so many of the training problems)"
            )
    return problems


def lost_to_other_evaluations(recipe: Recipe, stage: Stage) -> list[str]:
    """What a stage does not train on because of evaluations on problems other than `problems.test`: the problems' ids.

    Only these count for what it computes: an evaluation may be added to a finished run as long as nothing that was
    trained on is asked in it.
    """
    others = held_out(recipe)[1:]
    if not others or not stage.trains_on(recipe):
        return []
    return _lost(recipe, stage, [one for source, limit in others for one in load(recipe, source, "test", limit)])


def lost_to_validation(recipe: Recipe, stage: Stage) -> list[str]:
    """The same because of `problems.validation`."""
    if recipe.problems.validation is None or not stage.trains_on(recipe):
        return []
    return _lost(recipe, stage, validation(recipe))


def validation_digest(recipe: Recipe) -> str:
    """Of the validation problems with their golds, whatever they are called and wherever they lie."""
    return _digest(sorted(f"{problem.question}\n{problem.gold}" for problem in validation(recipe)))


def _lost(recipe: Recipe, stage: Stage, against: list[Problem]) -> list[str]:
    """Problems that a stage would train on, and does not because they overlap with these and not with test problems."""
    source, limit = held_out(recipe)[0]
    test = load(recipe, source, "test", limit)
    lost: set[str] = set()
    for source, limit in stage.trains_on(recipe):
        problems = load(recipe, source, "train", limit)
        lost |= overlapping(problems, against) - overlapping(problems, test)
    return sorted(lost)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()
