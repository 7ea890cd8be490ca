"""grpo: the policy is optimised for the reward, under a KL penalty that never falls from stage to stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.checks import share_faults, sweep_faults
from orchestra.config.experts import panel_before
from orchestra.config.stage import Draft, Stage
from orchestra.config.trained import OptimisingStage
from orchestra.work.settings import EXPERTS, PERPLEXITY

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part, Tile
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext

# (metric, title, unit, whether it is a share)
COURSES = (
    ("reward", "Reward", "mean per completion", False),
    ("kl", "KL to the reference", "nats per token (k3 estimate)", False),
    ("entropy", "Entropy of the policy", "nats per token", False),
    ("completion_length", "Completion length", "tokens", False),
    ("truncated", "Truncated completions", "share cut off at the limit", True),
    ("zero_variance_groups", "Groups without a signal", "all right or all wrong", True),
)


class GrpoStage(OptimisingStage):
    """The policy is optimised for the reward (TRL GRPOTrainer; arXiv 2402.03300)."""

    reads: ClassVar[tuple[str, ...]] = ("model", "problems", "reward", "rollouts")
    outputs: ClassVar[tuple[str, ...]] = (PERPLEXITY, EXPERTS)

    kind: Literal["grpo"]
    """grpo"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        yield from super().faults(draft)
        before = self._grpo_before(draft)
        if before is not None and self.beta < before.beta:
            yield "beta", f"{self.beta:g} is less than {before.beta:g} in stage {before.name!r}; beta must not fall"
        yield from sweep_faults(self, draft)
        if (rollouts := draft.sections.get("rollouts")) is not None:
            # problems, so that no group is split over two processes
            yield from share_faults(rollouts.overridden_by(self).prompts_per_step, "prompts_per_step", draft)

    def _grpo_before(self, draft: Draft) -> GrpoStage | None:
        """The nearest grpo stage among those whose policy it builds on; of those that trained its expert, or one of its
        experts, the one with the highest beta."""
        if self.expert is not None:
            panel = panel_before(self, draft)
            own = () if panel.unsure else panel.perhaps(self.names)
            stages = [stage for expert in own for stage in expert.trained_in if isinstance(stage, GrpoStage)]
            return max(stages, key=lambda stage: stage.beta, default=None)
        stage: Stage | None = self
        while (stage := draft.parent_of(stage)) is not None:
            if isinstance(stage, GrpoStage):
                return stage
        return None

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        return ((recipe.problems.train, recipe.problems.train_limit),)

    def longest_completion(self, recipe: Recipe) -> int:
        return max(super().longest_completion(recipe), recipe.rollouts.overridden_by(self).max_completion_tokens)

    def plan(self, estimator: Estimator) -> StagePlan:
        from models.sizes import completion_tokens_at_once
        from orchestra.plan.estimate import FLOPS_FORWARD, FLOPS_TRAIN
        from orchestra.plan.panels import each_trained, experts_trained, said_of_each, trained_memory

        rollouts = estimator.recipe.rollouts.overridden_by(self)
        batch, limit = rollouts.group_size * rollouts.prompts_per_step, rollouts.max_completion_tokens
        at_once = completion_tokens_at_once(
            self.micro_batch_size, estimator.longest_prompt + limit, cuda=estimator.device.cuda
        )
        generated, sampling = estimator.generate(estimator.base, batch, limit)
        memory, again = estimator.training(self, at_once)
        passes = (FLOPS_TRAIN + again * FLOPS_FORWARD) * self.num_iterations
        passes += FLOPS_FORWARD if self.beta > 0 else 0.0
        tokens = batch * estimator.prompt + generated
        own_passes = math.ceil(tokens / estimator.device.processes / at_once)
        optimising = estimator.train(tokens, self.num_iterations * own_passes, passes)
        trained = self.steps * generated, self.steps * (sampling + optimising)
        work = estimator.with_evaluation(self, *estimator.with_sweep(self, self, *trained))
        return estimator.row(
            self, each_trained(estimator, self, work), trained_memory(estimator, self, memory),
            data=estimator.recipe.problems.train + said_of_each(estimator.recipe, self),
            steps=self.steps * experts_trained(estimator.recipe, self), beta=self.beta, reference=self.reference,
        )  # fmt: skip

    def summary(self, recipe: Recipe) -> str:
        (parent,) = recipe.parents_of(self.name) or ("base",)
        start = f" from {parent}" if self.expert is None else ""
        told = f"{self.steps} steps, beta {self.beta:g}, reference {self.reference}"
        return f"grpo{start}, {told}{self.said_of_experts()}"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.experts import experts_parts
        from orchestra.report.modelled import notices_of
        from orchestra.report.panel import structure_parts
        from orchestra.report.parts import Course
        from orchestra.report.sweep import sweep_parts

        yield from notices_of(record)
        yield from experts_parts(record)
        for key, title, note, share in COURSES:
            yield Course(key, title, note, share=share)
        yield from structure_parts(record)
        yield from sweep_parts(record)

    @classmethod
    def headline(cls, evaluated: Sequence[StageRecord]) -> Iterator[Tile]:
        """What GRPO added: the last grpo stage against the last policy before it that was trained otherwise."""
        from orchestra.report.parts import tile_of_gain

        last = next((at for at, record in reversed(list(enumerate(evaluated))) if record.kind == "grpo"), None)
        before = [r for r in evaluated[:last] if r.gives("imitation")] if last is not None else []
        if before:
            yield from tile_of_gain("GRPO", before[-1], evaluated[last])

    def asks_validation(self) -> bool:
        return self.evaluate_every is not None

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.optimising import optimise

        return optimise(context, self)
