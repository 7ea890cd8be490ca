"""Which preflights a recipe has, told from the recipe alone: what one stage has measured no later one measures again,
and what stops one stops the run before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestra.config.recipe import BASE
from orchestra.work.settings import PreflightLimits

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage


@dataclass(frozen=True)
class Preflighted:
    """What a stage's preflight reads.

    Fields:
        policy: under whose; `base`, an earlier stage, or experts as an earlier stage left them.
        sources: names of stages, and files; domains: of their problems, None where all are read.
        limits: how much of them, and within which bounds.
        max_length: tokens of the longest example.
    """

    policy: str
    sources: frozenset[str]
    limits: PreflightLimits
    max_length: int
    domains: tuple[str, ...] | None = None

    def covers(self, other: Preflighted) -> bool:
        """Whether nothing would be new in the other."""
        return replace(self, sources=other.sources) == other and self.sources >= other.sources


def preflighted(
    recipe: Recipe, stage: Stage, sources: Iterable[str], limits: PreflightLimits, max_length: int
) -> Preflighted:
    """What this stage's preflight reads, under the policy that it starts from."""
    (policy,) = recipe.parents_of(stage.name) or (BASE,)
    if stage.trains is not None:
        panel = recipe.panel_of(stage.name)
        policy = BASE if panel is None else f"{panel}/{stage.trains}"
    # of a stage whose own keys they are, these alone
    alone = PreflightLimits(**{name: getattr(limits, name) for name in PreflightLimits.model_fields})
    return Preflighted(policy, frozenset(sources), alone, max_length, getattr(stage, "domains", None))


def measured_by(recipe: Recipe, stage: Stage) -> str | None:
    """The earlier stage that has measured all that this one would; None where it is new."""
    own = stage.preflights(recipe)
    if own is None:
        return None
    before = ((earlier.name, earlier.preflights(recipe)) for earlier in recipe.before(stage.name))
    return next((name for name, other in before if other is not None and other.covers(own)), None)


def must_be_asked_alike(recipe: Recipe, stage: Stage) -> None:
    """A prompt that is not evaluation's is known before a teacher has been asked for hours. Raises UserError."""
    own = stage.preflights(recipe)
    stages = frozenset(one.name for one in recipe.stages)
    if own is None or own.limits.mismatch != "fail" or own.sources <= stages:
        return
    from orchestra.config.faults import UserError
    from orchestra.work.own_prompts import prompt_mismatches
    from orchestra.work.resources import Resources

    if found := prompt_mismatches(Resources(recipe), sorted(own.sources), stages):
        raise UserError(f"stage {stage.name!r}: {'; '.join(found.values())}")
