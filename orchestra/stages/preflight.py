"""preflight: whether data fits the policy that is to imitate it, measured before it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.stage import Stage
from orchestra.work.settings import PreflightSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext

RESULT, STATISTICS = "preflight.json", "statistics.json"


class PreflightStage(Stage, PreflightSettings):
    """Sources that an sft stage will imitate, read under the parent's policy and the evaluation's prompt."""

    reads: ClassVar[tuple[str, ...]] = (
        *("model", "problems.domain", "problems.test", "problems.format", "problems.test_limit"),
        *("rollouts.engine", "rollouts.sync", "rollouts.dtype", "rollouts.max_prompt_tokens"),
        *("rollouts.max_completion_tokens", "evaluate.confidence"),
    )
    outputs: ClassVar[tuple[str, ...]] = (RESULT,)

    kind: Literal["preflight"]
    """preflight"""

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        """What overlaps with held-out problems is left out here as it will be in training."""
        earlier = {stage.name for stage in recipe.stages}
        return tuple((source, None) for source in self.data if source not in earlier)

    def longest_completion(self, recipe: Recipe) -> int:
        return recipe.rollouts.max_completion_tokens

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.estimate import FLOPS_FORWARD, LOGIT_BYTES

        limit = estimator.recipe.rollouts.max_completion_tokens
        texts = self.problems * len(self.data)
        generated, sampling = estimator.generate(estimator.base, texts, limit)
        # each text under two prompts, and the policy's own
        read = 3 * (texts * estimator.prompt + generated)
        reading = estimator.train(read, 3 * texts, FLOPS_FORWARD)
        longest = estimator.longest_prompt + limit
        memory = estimator.serving() | {
            "parameters": estimator.frozen(4),
            "logits": longest * estimator.base.vocab * LOGIT_BYTES,
        }
        return estimator.row(self, (generated, sampling + reading), memory, data=", ".join(self.data))

    def summary(self, recipe: Recipe) -> str:
        return f"preflight of {', '.join(self.data)} on up to {self.problems:,} problems"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.parts import Counts

        if record.statistics:
            yield Counts(record.name, record.statistics)

    def ready(self, recipe: Recipe) -> None:
        """A prompt that is not evaluation's is known before a teacher has been asked for hours."""
        if self.mismatch == "fail":
            from orchestra.config.faults import UserError
            from orchestra.work.own_prompts import prompt_mismatches
            from orchestra.work.resources import Resources

            stages = frozenset(stage.name for stage in recipe.stages)
            if found := prompt_mismatches(Resources(recipe), self.data, stages):
                raise UserError(f"stage {self.name!r}: {'; '.join(found.values())}")

    def run(self, context: StageContext) -> StageResult:
        from orchestra.run.ledger import write_json
        from orchestra.work.policies import start_policy
        from orchestra.work.preflight import preflight

        rollouts = context.recipe.rollouts
        longest = rollouts.max_prompt_tokens + rollouts.max_completion_tokens
        found = preflight(context, start_policy(context), self, max_length=longest)
        for line in found.lines():
            context.progress.say(f"    {line}")
        context.once(lambda: write_json(context.folder / RESULT, found.as_tree()))
        context.once(lambda: write_json(context.folder / STATISTICS, found.numbers()))
        return replace(context.result(**found.told()), tokens=found.tokens)
