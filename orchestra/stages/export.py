"""export: the policy as files that stand alone, loaded again and compared with it before they count, and published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.stage import Draft, Stage
from orchestra.work.settings import EXPORT, ExportSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class ExportStage(Stage, ExportSettings):
    """The policy as a merged model, or as its adapter alone, loaded again and compared before it counts."""

    outputs: ClassVar[tuple[str, ...]] = (f"{EXPORT}/export.json",)

    kind: Literal["export"]
    """export"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        trained = any(kind is None or "policy" in kind.gives for kind in draft.kinds.values())
        if not trained or self.parent == "base":
            yield "kind", "there is nothing to export; put an sft or grpo stage before it"

    def plan(self, estimator: Estimator) -> StagePlan:
        base = estimator.base
        seconds = base.parameters * 8 / 200e6  # read, fold, write, read again
        tokens, answers = estimator.answers(self.check.problems)
        memory = estimator.serving() | estimator.reloaded() | {"parameters": estimator.frozen(4)}
        return estimator.row(self, (tokens, seconds + answers), memory, data=self.hub or "")

    def summary(self, recipe: Recipe) -> str:
        (parent,) = recipe.parents_of(self.name)
        return f"export {parent}, {self.dtype}" if self.what == "merged" else f"export {parent}, its adapter"

    def ready(self, recipe: Recipe) -> None:
        if self.hub is not None:
            from orchestra.work.publishing import may_publish

            may_publish(self)

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.exported import TrainedPolicy
        from orchestra.work.exporting import export_policy
        from orchestra.work.publishing import publish, write_card

        policy = TrainedPolicy.of(context.parent, context.earlier[context.parent], context.result_of(context.parent))
        folder, say = context.folder / EXPORT, context.progress.say
        record = context.once(lambda: export_policy(context.resources, policy, folder, self, context.progress))
        for line in record.lines():
            say(f"    {line}")
        context.once(lambda: write_card(folder, context.run_dir, context.recipe))
        if self.hub is not None:
            say(f"    {context.once(lambda: publish(folder, context.run_dir, context.recipe, self, say=say))}")
        else:
            say(f"    {folder}; to publish it: orchestra export {context.run_dir} --to hub:you/name")
        result = context.result(kl_to_policy=record.fidelity.kl, top1_agreement=record.fidelity.agreement)
        return replace(result, adapter_sha256=record.policies[policy.name])
