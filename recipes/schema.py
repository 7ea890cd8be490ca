"""The recipe: what may stand in the YAML file, with unit, range and source of every key.

Strict and frozen: an unknown key, text where a number belongs, or a beta that falls is an error before anything runs.
The kinds of stages are in `schema_stages.py`, what concerns several stages at once (names, references, rising beta)
in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from evals.settings import Evaluate
from models.settings import Lora, Model
from recipes.checks import faults_between_stages
from recipes.schema_stages import (
    KINDS,
    AnyStage,
    BaseStage,
    DistillStage,
    EvaluateStage,
    ExportStage,
    Gate,
    GrpoStage,
    SftStage,
    Stage,
    Training,
)
from rewards.settings import Problems, Reward
from rl.settings import DynamicSampling, Rollouts
from settings import FREE, SIZE, Mark, Node, Slug, as_tuple, marked

__all__ = [
    "FREE", "KINDS", "SIZE", "AnyStage", "BaseStage", "DistillStage", "DynamicSampling", "Evaluate", "EvaluateStage",
    "ExportStage", "Gate", "GrpoStage", "Lora", "Mark", "Model", "Node", "Problems", "Recipe", "Reward", "Rollouts",
    "SftStage", "Stage", "Training", "marked",
]  # fmt: skip


class Recipe(Node):
    """A recipe: which base, which problems, which stages in which order."""

    name: Slug
    """Names the run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 17
    """Of everything that is random."""
    model: Model
    """The frozen base and the adapter."""
    problems: Problems
    """Training problems and held-out problems."""
    reward: Reward = Reward()
    """What grpo optimises."""
    rollouts: Rollouts = Rollouts()
    """How completions are sampled while training."""
    evaluate: Evaluate = Evaluate()
    """How every stage is evaluated."""
    report_to: Annotated[Literal["none", "tensorboard", "trackio", "wandb"], FREE] = "none"
    """Where step metrics go besides metrics.jsonl."""
    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1, max_length=90), BeforeValidator(as_tuple)]
    """What happens, in this order."""

    @model_validator(mode="before")
    @classmethod
    def _stages_fit_together(cls, data: Any, info: ValidationInfo) -> Any:
        checked = (info.context or {}).get("between_stages") == "checked"
        faults = faults_between_stages(data) if isinstance(data, Mapping) and not checked else []
        if faults:
            raise PydanticCustomError("between_stages", "{text}", {"text": "\n".join(map(str, faults))})
        return data

    def stage(self, name: str) -> Stage:
        """The stage of that name; `base` is the pseudo stage 00. Raises KeyError."""
        found = next((stage for stage in (BaseStage(), *self.stages) if stage.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def parent_of(self, name: str) -> str | None:
        """The earlier stage whose policy this stage takes up; None for the base."""
        before: str | None = None
        for stage in self.stages:
            if stage.name == name:
                return before if stage.parent is None else (None if stage.parent == "base" else stage.parent)
            if isinstance(stage, SftStage | GrpoStage):
                before = stage.name
        return None

    def rollouts_of(self, stage: GrpoStage) -> Rollouts:
        """The rollout settings of a grpo stage, its own overrides included."""
        own = {key: getattr(stage, key) for key in
               ("group_size", "prompts_per_step", "temperature", "max_completion_tokens")}  # fmt: skip
        return self.rollouts.model_copy(update={key: value for key, value in own.items() if value is not None})

    def evaluate_of(self, stage: Stage) -> Evaluate:
        """The evaluation settings of a stage, its own overrides included and `max_completion_tokens` filled in."""
        keys = ("samples", "temperature", "top_p", "greedy", "pass_at_k", "max_completion_tokens")
        own = {key: getattr(stage, key) for key in keys} if isinstance(stage, EvaluateStage) else {}
        update = {key: value for key, value in own.items() if value is not None}
        update.setdefault(
            "max_completion_tokens", self.evaluate.max_completion_tokens or self.rollouts.max_completion_tokens
        )
        return self.evaluate.model_copy(update=update)
