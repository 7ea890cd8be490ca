"""The recipe: the nouns of the YAML file, each declared by the component that uses it, and its stages in order.

Strict and frozen: an unknown key, text where a number belongs, or a beta that falls is an error before anything runs.
The kinds of stages are the files of `orchestra/stages/`; what concerns several stages at once is in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, Union

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from evals.settings import Evaluate
from models.experts import BASE
from models.settings import Model
from orchestra.config.checks import faults_between_stages
from orchestra.config.stage import Stage
from orchestra.stages import all_kinds, kinds
from rewards.settings import Problems, Reward
from rl.settings import Rollouts
from settings import FREE, Node, Slug, as_tuple

AnyStage = Annotated[Union[tuple(kinds().values())], Field(discriminator="kind")]  # noqa: UP007  (made from a registry)


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

    @model_validator(mode="after")
    def _stages_fit_together(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get("between_stages") != "checked":
            faults = faults_between_stages(self.sections, self.stages)
            if faults:
                raise PydanticCustomError("between_stages", "{text}", {"text": "\n".join(map(str, faults))})
        return self

    @property
    def sections(self) -> Mapping[str, Node]:
        """The parts other than the stages, by key."""
        return {name: value for name, value in self if isinstance(value, Node)}

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The evaluation of the base, which every run begins with, and the recipe's own stages."""
        return (all_kinds()[BASE](kind=BASE, name=BASE), *self.stages)

    def stage(self, name: str) -> Stage:
        """The stage of that name; `base` is stage 00. Raises KeyError."""
        return {stage.name: stage for stage in self.all_stages}[name]

    def parents_of(self, name: str) -> tuple[str, ...]:
        """The earlier stages whose policies this stage takes up; none is the base."""
        if name == BASE:
            return ()
        at = next(i for i, stage in enumerate(self.stages) if stage.name == name)
        return self.stages[at].parents(self.stages[:at])

    def panel_of(self, name: str) -> str | None:
        """The earlier stage whose panel this stage takes up."""
        return self.stage(name).panel(self.before(name)[1:]) if name != BASE else None

    def before(self, name: str) -> tuple[Stage, ...]:
        """The stages before this one, the base's evaluation first."""
        names = [stage.name for stage in self.all_stages]
        return self.all_stages[: names.index(name)]
