"""evaluate: a further evaluation of an earlier stage's policy, on other problems or with other sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from evals.settings import Evaluate
from orchestra.config.stage import Draft, Gives, Stage
from settings import SIZE, Count, Refers, Text, optional

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class EvaluateStage(
    Stage,
    optional(
        Evaluate, "samples", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty",
        "greedy", "pass_at_k", "max_completion_tokens",
        otherwise="None: as in `evaluate`.",
    ),
):  # fmt: skip
    """A further evaluation of the parent's policy; what is not said is as in `evaluate`."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"evaluation"})

    kind: Literal["evaluate"]
    """evaluate"""
    problems: Annotated[Text | None, SIZE, Refers("problems")] = None
    """Other held-out problems. None: `problems.test`."""
    limit: Annotated[Count | None, SIZE] = None
    """At most this many problems. None: `problems.test_limit`."""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        if (settings := draft.sections.get("evaluate")) is not None:
            own = settings.overridden_by(self)
            most = max(own.pass_at_k, default=0)
            if most > own.samples:
                yield "pass_at_k", f"k = {most} needs at least {most} samples (samples: {own.samples})"

    def evaluation(self, recipe: Recipe) -> Evaluate:
        return super().evaluation(recipe).overridden_by(self)

    def held_out(self, recipe: Recipe) -> tuple[str, int | None]:
        source, limit = super().held_out(recipe)
        return self.problems or source, self.limit or limit

    def plan(self, estimator: Estimator) -> StagePlan:
        return estimator.row(
            self, estimator.evaluation(self), estimator.serving(), data=self.held_out(estimator.recipe)[0]
        )

    def summary(self, recipe: Recipe) -> str:
        (parent,) = recipe.parents_of(self.name) or ("base",)
        return f"evaluate {parent} on {self.held_out(recipe)[0]}"

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.policies import evaluated, measured, serve, start_policy

        serve(context, start_policy(context))
        evaluation, asked = evaluated(context)
        return measured(context, evaluation, context.result(left_out=asked.left_out))
