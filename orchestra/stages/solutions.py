"""solutions: the training problems' own written solutions as traces, to set beside a model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.stage import Gives, Stage
from sft.settings import SolutionsSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class SolutionsStage(Stage, SolutionsSettings):
    """The training problems' own written solutions (sft/distill.py)."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"traces"})
    reads: ClassVar[tuple[str, ...]] = ("model.base", "model.prompt", "problems", "rollouts.max_prompt_tokens")

    kind: Literal["solutions"]
    """solutions"""

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """No policy has a part in it."""
        return ()

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        return ((recipe.problems.train, recipe.problems.train_limit),)

    def plan(self, estimator: Estimator) -> StagePlan:
        return estimator.row(self, (0, 0.0), estimator.serving(), data=estimator.recipe.problems.train)

    def summary(self, recipe: Recipe) -> str:
        of = f"the problems of {self.same_problems_as}" if self.same_problems_as else recipe.problems.train
        return f"written solutions of {of}"

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.traces import written_solutions
        from sft.distill import TRACES, write_traces

        traces, left_out = written_solutions(context.resources, context.earlier.get(self.same_problems_as or ""))
        context.once(lambda: write_traces(context.folder / TRACES, traces))
        context.progress.say(f"    {len(traces):,} written solutions")
        return context.result(left_out=left_out, kept=len(traces))
