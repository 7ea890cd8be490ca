"""What a panel of experts takes: how many there are, what it is to ask each of them, and to hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestra.config.experts import EACH, PlannedExpert, planned_panel
from orchestra.config.imitating import GrowingStage
from orchestra.config.trained import TrainingStage

if TYPE_CHECKING:
    from models.settings import Lora
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage
    from orchestra.plan.estimate import Estimator

DOMAINS: Mapping[str, int] = {
    "embedded": 6,
    "embedded:formal": 4,
    "embedded:stories": 2,
    "openai/gsm8k": 1,
    "nlile/hendrycks-MATH-benchmark": 7,
}
"""How many domains the problems of a source have."""
DOMAINS_ASSUMED = 4
"""Of another source, where a stage names none: which there are is known when the problems are read."""


def domains_of(recipe: Recipe) -> int:
    """How many the training problems have."""
    return DOMAINS.get(recipe.problems.train, DOMAINS_ASSUMED)


def experts_trained(recipe: Recipe, stage: TrainingStage) -> int:
    """How many experts a stage trains, one after the other; 1 where it trains a single policy."""
    if stage.expert != EACH:
        return 1
    return len(stage.domains) if stage.domains is not None else domains_of(recipe)


def said_of_each(recipe: Recipe, stage: TrainingStage) -> str:
    """For the plan's row of a stage that trains several experts: how many."""
    return f", {experts_trained(recipe, stage)} experts" if stage.expert == EACH else ""


def each_trained(estimator: Estimator, stage: TrainingStage, work: tuple[int, float]) -> tuple[int, float]:
    """Tokens and seconds of a stage that takes `work` for each of its experts, and evaluates their panel at the end;
    each that goes on is asked before, whether it starts as it is recorded."""
    if stage.expert is None:
        return work
    panel = planned_panel(estimator.recipe.before(stage.name))
    goes_on = panel.perhaps(stage.names) or panel.get(stage.starts_from) is not None
    checked = estimator.held_out_asked(stage, stage.evaluation(estimator.recipe).samples) if goes_on else (0, 0.0)
    times = experts_trained(estimator.recipe, stage)
    asked, answering = estimator.evaluation(stage) if stage.expert == EACH else (0, 0.0)
    return times * (work[0] + checked[0]) + asked, times * (work[1] + checked[1]) + answering


def experts_before(recipe: Recipe, stage: Stage) -> tuple[Lora, ...]:
    """The experts of the panel that a stage takes up; where one grows before it, as many as are planned."""
    found: list[Lora] = []
    for expert in planned_panel(recipe.before(stage.name)).experts:
        found += [expert.made_in.adapter(recipe)] * _meant(recipe, expert, len(found))
    return tuple(found)


def _meant(recipe: Recipe, expert: PlannedExpert, there: int) -> int:
    """How many a planned expert stands for, beside those before it."""
    if not expert.several:
        return 1
    maker = expert.trained_in[0]
    if isinstance(maker, GrowingStage):
        return experts_kept(maker, there, experts_grown(maker, there))
    return experts_trained(recipe, maker)


def experts_grown(stage: GrowingStage, there: int) -> int:
    """How many experts a stage is planned to train: as many as the panel has room for and one that wins nothing, if its
    windows are enough for that (`growth.windows` in a row before each, and the cooldown).

    Args:
        there: experts of the panel before.
    """
    growth, room = stage.growth, stage.growth.at_most - there
    if room <= 0 or stage.rounds < growth.windows:
        return 0
    times = 1 + (stage.rounds - growth.windows) // max(growth.windows, growth.cooldown + 1)
    return min(times, room + 1)


def experts_kept(stage: GrowingStage, there: int, grown: int) -> int:
    """How many of those stay, at most."""
    return min(grown, max(stage.growth.at_most - there, 0))


def panel_memory(estimator: Estimator, stage: Stage) -> dict[str, int]:
    """Bytes by part while the panel before a stage is asked."""
    return estimator.panel(experts_before(estimator.recipe, stage))


def trained_memory(estimator: Estimator, stage: TrainingStage, training: Mapping[str, int]) -> Mapping[str, int]:
    """Bytes by part at the time when a stage needs most: while it trains, or when it asks the panel of all its experts
    at the end."""
    if stage.expert != EACH:
        return training
    recipe = estimator.recipe
    experts = (stage.adapter(recipe),) * experts_trained(recipe, stage)
    known = planned_panel(recipe.before(stage.name)).perhaps(stage.names)
    others = () if known else experts_before(recipe, stage)
    asking = estimator.panel((*others, *experts))
    return max(training, asking, key=lambda parts: sum(parts.values()))


def growing_memory(estimator: Estimator, stage: GrowingStage, training: Mapping[str, int]) -> Mapping[str, int]:
    """Bytes by part while a stage trains a new expert: the panel as it was at the start and the one that it has become
    stay beside the trainer, each on a base of its own."""
    recipe = estimator.recipe
    there = experts_before(recipe, stage)
    grown = experts_grown(stage, len(there))
    if not grown:
        return estimator.panel(there)
    become = (*there, *(stage.adapter(recipe),) * max(experts_kept(stage, len(there), grown) - 1, 0))
    held = estimator.experts(there) + estimator.experts(become)
    return {**training, "parameters": 3 * training["parameters"], "experts": held}


def arms_asked(
    estimator: Estimator, stage: Stage, learning: int, oracle_samples: int, more: int = 0
) -> tuple[int, float]:
    """Tokens and seconds for the base and every expert to write so many completions to learn from, and to answer the
    held-out problems twice, and for the panel to answer them.

    Args:
        learning: completions of each arm; more: experts besides those of the panel before the stage.
    """
    settings = stage.evaluation(estimator.recipe)
    problems = estimator.held_out_count(stage)
    each = learning + problems * (oracle_samples + settings.samples)
    tokens, seconds = estimator.generate(estimator.base, each, settings.max_completion_tokens)
    arms = 1 + len(experts_before(estimator.recipe, stage)) + more
    asked, answering = estimator.evaluation(stage)
    return arms * tokens + asked, arms * seconds + answering
