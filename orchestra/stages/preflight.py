"""preflight: whether data fits the policy that is to imitate it, measured before it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.stage import Stage
from orchestra.work.settings import PREFLIGHT, PreflightSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext
    from orchestra.work.preflighted import Preflighted

STATISTICS = "statistics.json"


class PreflightStage(Stage, PreflightSettings):
    """Sources that an sft stage will imitate, read under the parent's policy and the evaluation's prompt."""

    reads: ClassVar[tuple[str, ...]] = (
        *("model", "problems.domain", "problems.test", "problems.format", "problems.test_limit"),
        *("rollouts.engine", "rollouts.sync", "rollouts.dtype", "rollouts.max_prompt_tokens"),
        *("rollouts.max_completion_tokens", "evaluate.confidence"),
    )
    outputs: ClassVar[tuple[str, ...]] = (PREFLIGHT,)

    kind: Literal["preflight"]
    """preflight"""

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        """What overlaps with held-out problems is left out here as it will be in training."""
        earlier = {stage.name for stage in recipe.stages}
        return tuple((source, None) for source in self.data if source not in earlier)

    def longest_completion(self, recipe: Recipe) -> int:
        return recipe.rollouts.max_completion_tokens

    def preflights(self, recipe: Recipe) -> Preflighted:
        from orchestra.work.preflighted import preflighted

        return preflighted(recipe, self, self.data, self, self._longest(recipe))

    @staticmethod
    def _longest(recipe: Recipe) -> int:
        """Tokens of an example."""
        return recipe.rollouts.max_prompt_tokens + recipe.rollouts.max_completion_tokens

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.memory import LOGIT_BYTES

        longest = estimator.longest_prompt + estimator.recipe.rollouts.max_completion_tokens
        memory = estimator.serving() | {
            "parameters": estimator.frozen(4),
            "logits": longest * estimator.base.vocab * LOGIT_BYTES,
        }
        return estimator.row(self, estimator.preflight(self), memory, data=", ".join(self.data))

    def summary(self, recipe: Recipe) -> str:
        return f"preflight of {', '.join(self.data)} on up to {self.problems:,} problems"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.parts import Counts

        if record.statistics:
            yield Counts(record.name, record.statistics)

    def ready(self, recipe: Recipe) -> None:
        from orchestra.work.preflighted import must_be_asked_alike

        must_be_asked_alike(recipe, self)

    def run(self, context: StageContext) -> StageResult:
        from orchestra.run.ledger import write_json
        from orchestra.work.policies import start_policy
        from orchestra.work.preflight import run_preflight
        from orchestra.work.traces import traces_of

        policy, sources = start_policy(context), {source: traces_of(context, source)[0] for source in self.data}
        found = run_preflight(context, policy, sources, self, max_length=self._longest(context.recipe))
        context.once(lambda: write_json(context.folder / STATISTICS, found.numbers()))
        return replace(context.result(**found.told()), tokens=found.tokens)
