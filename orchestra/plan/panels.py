"""What a panel of experts takes: how many there are, and what it is to ask each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestra.config.trained import EACH, TrainingStage

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage
    from orchestra.plan.estimate import Estimator

DOMAINS = 4
"""Domains of data that names none; which there are is known when it is read, and the embedded formal problems have
four."""


def experts_trained(stage: TrainingStage) -> int:
    """How many experts a stage trains, one after the other; 1 where it trains a single policy."""
    if stage.expert != EACH:
        return 1
    return len(stage.domains) if stage.domains is not None else DOMAINS


def each_trained(estimator: Estimator, stage: TrainingStage, work: tuple[int, float]) -> tuple[int, float]:
    """Tokens and seconds of a stage that takes `work` for each of its experts, and evaluates their panel at the end."""
    if stage.expert != EACH:
        return work
    times, (asked, answering) = experts_trained(stage), estimator.evaluation(stage)
    return times * work[0] + asked, times * work[1] + answering


def experts_before(recipe: Recipe, stage: Stage) -> int:
    """How many experts the panel has that a stage takes up."""
    found: dict[str, int] = {}
    for one in recipe.before(stage.name):
        if one.trains is not None:
            found[one.trains] = experts_trained(one)
    return sum(found.values())


def arms_asked(estimator: Estimator, stage: Stage, learning: int, oracle_samples: int) -> tuple[int, float]:
    """Tokens and seconds for the base and every expert to write so many completions to learn from, and to answer the
    held-out problems twice, and for the panel to answer them.

    Args:
        learning: completions of each arm.
    """
    settings = stage.evaluation(estimator.recipe)
    problems = estimator.held_out_count(stage)
    each = learning + problems * (oracle_samples + settings.samples)
    tokens, seconds = estimator.generate(estimator.base, each, settings.max_completion_tokens)
    arms, (asked, answering) = 1 + experts_before(estimator.recipe, stage), estimator.evaluation(stage)
    return arms * tokens + asked, arms * seconds + answering
