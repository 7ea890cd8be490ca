"""base: stage 00 of every run, the evaluation of the untrained base as it is trained on, that is quantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.stage import Gives, Stage
from settings import Slug

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class BaseStage(Stage):
    """The evaluation of the untrained base. Not written in a recipe."""

    written: ClassVar[bool] = False
    gives: ClassVar[frozenset[Gives]] = frozenset({"evaluation"})
    reads: ClassVar[tuple[str, ...]] = ("model.base", "model.quantize", "model.dtype", "model.prompt")

    kind: Literal["base"] = "base"
    name: Slug = "base"

    def plan(self, estimator: Estimator) -> StagePlan:
        tokens, seconds = estimator.evaluation(self)
        started = (tokens, seconds + estimator.device.start)
        return estimator.row(self, started, estimator.serving(), data=estimator.held_out(self))

    def summary(self, recipe: Recipe) -> str:
        return f"evaluate {recipe.model.base}"

    def run(self, context: StageContext) -> StageResult:
        from models.engines.start import why_not_vllm
        from orchestra.work.policies import evaluated, evaluated_in_both_formats, measured, serve, start_policy

        served = serve(context, start_policy(context))
        if served.engine.kind != "vllm":
            base = context.recipe.model.base
            reason = why_not_vllm(base, base) or "so rollouts.engine asks"
            context.progress.say(f"    completions come from transformers' generate, which is slower: {reason}")
        spoken = context.resources.conversation
        if spoken.other is None:
            evaluation, asked = evaluated(context)
            return measured(context, evaluation, context.result(left_out=asked.left_out))
        end = context.resources.tokenizer().eos_token
        context.progress.say(f"    {spoken.format} prompts, completions end with {end!r}: {spoken.why}")
        evaluation, asked, told = evaluated_in_both_formats(context, spoken.other)
        return measured(context, evaluation, context.result(left_out=asked.left_out, **told))
