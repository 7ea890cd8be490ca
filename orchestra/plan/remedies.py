"""What would make a recipe fit: a few changes that leave alone what is learned, each tried by planning it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from models.settings import TrainingSettings
from orchestra.config.checks import faults_between_stages
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Stage

Changes = Mapping[str, object]

ENGINE = "rollouts.gpu_memory_utilization"
SHARES = tuple(percent / 100 for percent in range(90, 5, -5))
"""Of a GPU for the engine; that nearest to the recipe's own is tried first."""
ROWS = (64, 32, 16, 8, 4, 2, 1)
"""Of a forward pass."""


def what_fits(recipe: Recipe, too_large: Callable[[Recipe], frozenset[str]], *, cuda: bool) -> str | None:
    """The least change found by which the recipe fits, as `--set` options; None where none of those tried does.

    Tried are, in this order, another share of the GPU for the engine, fewer rows in a forward pass, both, and gradient
    checkpointing besides.

    Args:
        too_large: the names of the stages that do not fit, of a recipe.
        cuda: whether the engine has a share of a GPU.
    """
    own = recipe.rollouts.gpu_memory_utilization
    shares: list[Changes] = (
        [{ENGINE: share} for share in sorted(SHARES, key=lambda one: abs(one - own))] if cuda else []
    )
    for again in (False, True):
        for rows in (False, True):
            for share in ({}, *shares):
                changes = _least(recipe, share, too_large, rows=rows, again=again)
                if changes is not None:
                    return " ".join(f"--set {key}={_shown(value)}" for key, value in changes.items())
    return None


def _least(
    recipe: Recipe, share: Changes, too_large: Callable[[Recipe], frozenset[str]], *, rows: bool, again: bool
) -> Changes | None:
    """The share, with the largest `rows` and with `again` (checkpointing) where a stage does not fit without."""
    changes = dict(share)
    for name in sorted(too_large(changed(recipe, changes))):
        options = _options(recipe.stage(name), rows=rows, again=again)
        fitting = (
            more
            for more in options
            if _is_valid(recipe, name, more) and name not in too_large(changed(recipe, changes | more))
        )
        found = next(fitting, None)
        if found is None:
            return None
        changes |= found
    return changes or None


def _options(stage: Stage, *, rows: bool, again: bool) -> Iterator[dict[str, object]]:
    if not isinstance(stage, TrainingSettings):
        return
    checkpointing = {f"stages.{stage.name}.gradient_checkpointing": True} if again else {}
    if again and not rows:
        yield checkpointing
    for count in ROWS if rows else ():
        if stage.micro_batch_size is None or count < stage.micro_batch_size:
            yield {f"stages.{stage.name}.micro_batch_size": count} | checkpointing


def _is_valid(recipe: Recipe, name: str, changes: Changes) -> bool:
    made = changed(recipe, changes)
    return not any(fault.stage == name for fault in faults_between_stages(made.sections, made.stages))


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """A recipe with values in the place of its own, by `rollouts.key` or `stages.name.key`."""
    rollouts, stages = {}, {stage.name: {} for stage in recipe.stages}
    for key, value in changes.items():
        section, _, rest = key.partition(".")
        if section == "rollouts":
            rollouts[rest] = value
        else:
            name, _, own = rest.partition(".")
            stages[name][own] = value
    return recipe.model_copy(
        update={
            "rollouts": recipe.rollouts.model_copy(update=rollouts),
            "stages": tuple(stage.model_copy(update=stages[stage.name]) for stage in recipe.stages),
        }
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
